"""The tables of the documents, as tests read them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def table(document: str, title: str) -> list[list[str]]:
    """The cells of the first table behind this text, the columns' names first."""
    text = (ROOT / "docs" / document).read_text()
    assert title in text, f"{document} has no {title!r}"
    (rows,) = re.findall(r"\A[^|]*((?:^\|.*\n)+)", text.partition(title)[2], re.MULTILINE)
    head, _, *body = [line.strip("| ").split(" | ") for line in rows.splitlines()]
    return [head, *body]


def pods_of_lags() -> dict[str, tuple[int, dict[int, int]]]:
    """docs/capacity.md's: by `stage, trigger`, the threshold, and the pods by lag."""
    head, *rows = table("capacity.md", "Pods that a lag of so many messages gets")
    lags = [number(cell) for cell in head[2:]]
    return {name: (number(threshold), dict(zip(lags, map(int, pods), strict=True))) for name, threshold, *pods in rows}


def number(cell: str) -> int:
    return int(cell.replace(",", ""))
