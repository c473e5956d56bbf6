"""What docs/operations.md lists."""

import re
from itertools import product
from pathlib import Path

TEXT = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


def _rows(title: str) -> list[list[str]]:
    """The cells of the section's tables, their headings left out."""
    section = TEXT.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in lines]
    return [row for row in cells if row[0].startswith("`")]


def metrics() -> dict[str, set[str]]:
    """The labels of each metric, by its name as Prometheus has it."""
    return {row[0].strip("`"): {label.strip() for label in row[1].split(",")} - {""} for row in _rows("Metrics")}


def log_events() -> dict[str, set[str]]:
    """The levels of each event. A row of several events has a level for each, or one for all of them."""
    listed: dict[str, set[str]] = {}
    for cell, levels_cell, *_ in _rows("Log events"):
        names, levels = re.findall(r"`(\w+)`", cell), levels_cell.split(", ")
        for name, level in zip(names, levels, strict=True) if len(names) == len(levels) else product(names, levels):
            listed.setdefault(name, set()).add(level)
    return listed
