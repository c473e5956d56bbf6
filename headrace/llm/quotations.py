"""Whether, and where, a passage holds a quotation word for word.

White space, case, typographic quotation marks and dashes, Markdown's emphasis and numbers in square brackets, which
papers cite with and models add, make no difference.
"""

import re
import unicodedata
from functools import cached_property
from typing import NamedTuple

MIN_WORDS = 4
"""Of a quotation that is checked: less is a term, a title's part or irony."""
MIN_UNSPACED = 8
"""Characters of scripts without spaces between words that count as much."""
MIN_PART_WORDS = 3
"""Of each part of a quotation that leaves something out (…): with less, parts could be strung together to anything."""

NUMBERS = r"[\[【][ \t]*\d{1,4}(?:[ \t]*[,;–-][ \t]*\d{1,4})*[ \t]*[\]】]"

_WORD = re.compile(r"\w+")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")
_LEFT_OUT = re.compile(r"\[\s*(?:…|\.\.\.)\s*\]|…|\.{3,}")
_NUMBERS = re.compile(rf"\s*{NUMBERS}")
_DROPPED = frozenset("*`\u00ad\u200b\u200c\u200d\u2060\ufeff")
_SAME = {
    **dict.fromkeys("‘’‚‛′‹›", "'"),
    **dict.fromkeys("“”„‟«»″", '"'),
    **dict.fromkeys("‐‑‒–—―−", "-"),
}
_EDGES = " .,;:!?'\"-"


class Span(NamedTuple):
    start: int
    end: int


class Text:
    """A passage, made ready for many searches when it is first searched."""

    def __init__(self, text: str) -> None:
        self._text = text

    def find(self, quotation: str) -> Span | None:
        """The place, in characters of the text, of the first occurrence; from its first part to its last."""
        parts = [_folded(part)[0].strip(_EDGES) for part in _LEFT_OUT.split(quotation)]
        parts = [part for part in parts if part]
        if not parts or (len(parts) > 1 and any(_words(part) < MIN_PART_WORDS for part in parts)):
            return None
        places = self._ready[1]
        first = end = None
        for part in parts:
            at = self._find(part, end or 0)
            if at is None:
                return None
            first = at if first is None else first
            end = at + len(part)
        if first is None or end is None:
            return None
        return Span(places[first], places[end - 1] + 1)

    def _find(self, part: str, since: int) -> int | None:
        """Whole words only: "able to swim" is not in "unable to swim"."""
        folded = self._ready[0]
        at = folded.find(part, since)
        while at != -1:
            before, after = folded[at - 1 : at], folded[at + len(part) : at + len(part) + 1]
            if not (_joins(before, part[0]) or _joins(part[-1], after)):
                return at
            at = folded.find(part, at + 1)
        return None

    @cached_property
    def _ready(self) -> tuple[str, list[int]]:
        return _folded(self._text)


def is_checked(quotation: str) -> bool:
    """Whether it is long enough to claim that somebody wrote this."""
    return len(_WORD.findall(quotation)) >= MIN_WORDS or len(_UNSPACED.findall(quotation)) >= MIN_UNSPACED


def _words(part: str) -> float:
    return max(len(_WORD.findall(part)), len(_UNSPACED.findall(part)) / 2)


def _joins(left: str, right: str) -> bool:
    """Whether two characters side by side belong to one word."""
    return left.isalnum() and right.isalnum() and not _UNSPACED.match(left) and not _UNSPACED.match(right)


def _folded(text: str) -> tuple[str, list[int]]:
    """The text as it is compared, and for each character of that the place that it came from."""
    skipped = [False] * len(text)
    for found in _NUMBERS.finditer(text):
        skipped[found.start() : found.end()] = [True] * (found.end() - found.start())
    folded: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text):
        if skipped[place] or character in _DROPPED:
            continue
        if character.isspace():
            if folded and folded[-1] != " ":
                folded.append(" ")
                places.append(place)
            continue
        for one in unicodedata.normalize("NFKD", _SAME.get(character, character)).casefold():
            folded.append(one)
            places.append(place)
    return "".join(folded), places
