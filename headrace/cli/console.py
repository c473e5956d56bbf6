"""Where output goes: results to stdout, progress and complaints to stderr."""

import os
import sys
from typing import IO, Any

from rich.console import Console

PIPE_WIDTH = 120
"""Columns where no terminal says how wide it is; rich would take 80, which cuts tables in logs."""


def _console(stream: IO[str]) -> Console:
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False)


def out() -> Console:
    """For what was asked for. Made at each use, so that it is the stdout of that moment."""
    return _console(sys.stdout)


def err() -> Console:
    """For everything else: a pipe that reads stdout never sees it."""
    return _console(sys.stderr)


def complain(line: str) -> None:
    """One line on stderr, never wrapped and never read as markup, so that a script can match it."""
    err().print(line, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout; msgspec Structs, dataclasses and datetimes included."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    sys.stdout.write(text + "\n")
