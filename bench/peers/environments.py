"""The environment that each peer runs in, made of its own lock: their dependencies exclude each other's and ours."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from headrace.cli.console import complain

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENTS = ROOT / ".headrace" / "peers"


class NoEnvironment(Exception):
    """It can't be made here, and why."""


def interpreter(peer: str) -> Path:
    """The Python of the peer's environment, which is made or brought up to its lock where it isn't. Raises
    NoEnvironment.
    """
    lock = HERE / f"{peer}.lock"
    folder = ENVIRONMENTS / peer
    python = folder / "bin" / "python"
    made_from = folder / "made-from"
    wanted = f"{hashlib.sha256(lock.read_bytes()).hexdigest()} {sys.version}"
    if made_from.is_file() and made_from.read_text() == wanted:
        return python
    complain(f"making the environment of {peer}, once: {folder.relative_to(ROOT)}")
    uv = _uv()
    _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)])
    # NLTK, which LlamaIndex cuts sentences with, refuses to read hard links, which uv would make to its cache.
    sync = [uv, "pip", "sync", "--quiet", "--link-mode", "copy", "--python", str(python), "--require-hashes"]
    _run([*sync, str(lock)])
    made_from.write_text(wanted)
    return python


def _uv() -> str:
    own = ROOT / ".uv" / "bin" / "uv"
    found = str(own) if own.is_file() else shutil.which("uv")
    if found is None:
        raise NoEnvironment("there is no uv: `make setup` installs it")
    return found


def _run(command: list[str]) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise NoEnvironment(f"`{Path(command[0]).name} {' '.join(command[1:3])}` failed: {ended.stderr.strip()[-500:]}")
