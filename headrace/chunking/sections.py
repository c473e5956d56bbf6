"""Sections of a text, by its headings, and how they become windows."""

from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from headrace.chunking.readable import Headings
from headrace.chunking.tokens import Boundaries
from headrace.chunking.units import Limits, Units, cut

ROOT = 0
"""The section that holds the whole text; section k + 1 begins with heading k."""


class Outline:
    """The tree of sections. A section reaches from its heading to the next one of the same or a higher rank."""

    def __init__(self, headings: Headings, length: int) -> None:
        self._titles = headings.titles
        self._levels = array("B", [0, *headings.levels])
        self._starts = array("I", [0, *headings.starts, length])
        count = len(self._levels)
        self._parents = array("I", bytes(4 * count))
        self._after = array("I", [count]) * count
        path = [ROOT]
        for section in range(1, count):
            while self._levels[path[-1]] >= self._levels[section]:
                self._after[path.pop()] = section
            self._parents[section] = path[-1]
            path.append(section)

    def start(self, section: int) -> int:
        """Where a section begins; for the number after the last section, where the text ends."""
        return self._starts[section]

    def parts(self, section: int) -> Iterator[tuple[int, int]]:
        """A section's own text, then each section right below it: as ranges of sections, together the whole section."""
        yield section, section + 1
        part, after = section + 1, self._after[section]
        while part < after:
            yield part, self._after[part]
            part = self._after[part]

    def after(self, section: int) -> int:
        """The first section behind a section and all below it."""
        return self._after[section]

    def path(self, section: int) -> list[str]:
        """The titles of the headings that a section stands under, its own last."""
        titles: list[str] = []
        while section != ROOT:
            titles.append(self._titles[section - 1])
            section = self._parents[section]
        return titles[::-1]


def without_orphans(paragraphs: Boundaries, headings: Headings) -> Boundaries:
    """Paragraph starts without those right behind a heading, so that no heading is cut off from its text."""
    starts = np.frombuffer(headings.starts, dtype=np.uint32)
    first_behind = np.searchsorted(paragraphs, starts, side="right")
    first_behind = first_behind[first_behind < len(paragraphs)]
    kept = np.ones(len(paragraphs), dtype=np.bool_)
    kept[first_behind] = False
    return np.union1d(paragraphs[kept], starts)


def cut_sections(outline: Outline, levels: Sequence[Units], limits: Limits) -> Iterator[tuple[int, int, int]]:
    """Windows (start, end, section) in order, `section` being the deepest one that holds the window.

    A section that fits, all below it included, stays whole; neighbours that fit together are joined; what does not fit
    is cut at the first of `levels` that helps.
    """
    yield from _cut_section(ROOT, outline, levels, limits)


def _cut_section(
    section: int, outline: Outline, levels: Sequence[Units], limits: Limits
) -> Iterator[tuple[int, int, int]]:
    words = levels[-1]
    waiting: tuple[int, int, int] | None = None
    for first, after in outline.parts(section):
        start, end = outline.start(first), outline.start(after)
        low, high = words.index_at(start), words.index_at(end)
        if low == high:
            continue
        if waiting and words.fits(words.index_at(waiting[0]), high, limits):
            waiting = (waiting[0], words.ends[high - 1], section)
            continue
        if waiting:
            yield waiting
            waiting = None
        if words.fits(low, high, limits):
            waiting = (words.starts[low], words.ends[high - 1], first)
        elif first == section:
            yield from ((*window, section) for window in cut(levels, start, end, limits))
        else:
            yield from _cut_section(first, outline, levels, limits)
    if waiting:
        yield waiting
