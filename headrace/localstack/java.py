"""Finds the Java and the Maven that are already on this machine."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import Misconfigured

INSTALLED_JVMS = Path("/usr/lib/jvm")


@dataclass(frozen=True)
class Java:
    """A Java runtime. `major` is 17, 21, 25, ..."""

    executable: Path
    major: int


def parse_major(version_text: str) -> int | None:
    """The major version in what `java -version` prints; `1.8.0` counts as 8. None if there is no version in it."""
    found = re.search(r'version "(\d+)(?:\.(\d+))?', version_text)
    if found is None:
        return None
    first, second = int(found[1]), found[2]
    return int(second) if first == 1 and second else first


def find_java(minimum: int, *, needed_by: str) -> Java:
    """The first Java of at least `minimum`: JAVA_HOME, then the installed ones (newest first), then the PATH's.

    Raises Misconfigured, naming what to install.
    """
    found = []
    for java in _javas():
        if java.major >= minimum:
            return java
        found.append(f"{java.major} ({java.executable})")
    seen = f"; found only Java {', '.join(found)}" if found else ""
    raise Misconfigured(
        f"{needed_by} needs Java {minimum} or later{seen}: install a JDK (Debian: temurin-{max(minimum, 21)}-jdk or "
        f"openjdk-{max(minimum, 21)}-jdk-headless) or set JAVA_HOME to one"
    )


def find_maven() -> Path:
    """Raises Misconfigured where there is none."""
    maven = shutil.which("mvn")
    if maven is None:
        raise Misconfigured(
            "Maven is needed once, to fetch Kafka and OpenSearch: install it (Debian: apt-get install maven)"
        )
    return Path(maven)


def _javas() -> Iterator[Java]:
    seen: set[Path] = set()
    home = os.environ.get("JAVA_HOME")
    on_path = shutil.which("java")
    for group in ([Path(home) / "bin" / "java"] if home else [], _installed(), [Path(on_path)] if on_path else []):
        javas = []
        for executable in group:
            real = executable.resolve()
            if real in seen or not real.is_file():
                continue
            seen.add(real)
            major = _major_of(executable)
            if major is not None:
                javas.append(Java(executable, major))
        yield from sorted(javas, key=lambda java: java.major, reverse=True)


def _installed() -> list[Path]:
    return sorted(INSTALLED_JVMS.glob("*/bin/java"))


def _major_of(executable: Path) -> int | None:
    try:
        shown = subprocess.run([executable, "-version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_major(shown.stderr + shown.stdout)
