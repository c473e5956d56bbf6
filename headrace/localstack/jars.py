"""Fetches the servers' jars with Maven, once for each version of a pom."""

import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

from headrace.errors import Misconfigured
from headrace.localstack.java import find_maven

POMS = Path(__file__).parent / "jars"
MARKER = ".complete"
POM_NAMESPACE = "{http://maven.apache.org/POM/4.0.0}"
FETCH_TIMEOUT_S = 900


def jars(name: str, into: Path, on_progress: Callable[[str], None], *, poms: Path = POMS) -> Path:
    """The folder with every jar of `<poms>/<name>.xml`; Maven is asked only if it is missing or the pom has changed.

    A fetch that broke off leaves nothing that a later call would take for whole. Raises Misconfigured when Maven fails.
    """
    pom = poms / f"{name}.xml"
    digest = hashlib.sha256(pom.read_bytes()).hexdigest()
    folder = into / f"{name}-{_version(pom)}"
    marker = folder / MARKER
    if marker.is_file() and marker.read_text() == digest:
        return folder
    maven = find_maven()
    on_progress(f"fetching the jars of {folder.name} with Maven")
    partial = into / f"{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    into.mkdir(parents=True, exist_ok=True)
    _fetch(maven, pom, partial)
    (partial / MARKER).write_text(digest)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _version(pom: Path) -> str:
    version = ET.parse(pom).findtext(f"{POM_NAMESPACE}version")
    if version is None:
        raise ValueError(f"{pom} has no version")
    return version


def _fetch(maven: Path, pom: Path, folder: Path) -> None:
    command = [str(maven), "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"]
    command.append(f"-DoutputDirectory={folder.resolve()}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as exc:
        raise Misconfigured(
            f"Maven did not fetch the jars of {pom.stem} within {FETCH_TIMEOUT_S} s: check the way to its repository"
        ) from exc
    if done.returncode != 0:
        raise Misconfigured(why_maven_failed(pom.stem, done.stdout + done.stderr))
    if not any(folder.glob("*.jar")):
        raise Misconfigured(f"Maven ended well but wrote no jars of {pom.stem} to {folder}")


def why_maven_failed(name: str, output: str) -> str:
    """One line: what Maven's first error was, and what to do."""
    if "No space left on device" in output:
        return f"the disk is full: free some space, then try again (Maven was fetching the jars of {name})"
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    errors = [line.removeprefix("[ERROR]").strip() for line in plain.splitlines() if line.startswith("[ERROR]")]
    first = next((error for error in errors if error), plain.strip()[-300:] or "it said nothing")
    return (
        f"Maven could not fetch the jars of {name}: {first[:400]} (check the way to a Maven repository, or the mirror "
        "in Maven's settings.xml, then try again)"
    )
