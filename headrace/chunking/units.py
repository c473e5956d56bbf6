"""Stretches of a text that are cut between, never inside: words, sentences, paragraphs."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.chunking.tokens import Boundaries, Offsets, TokenCounter

CHARACTERS_PER_TOKEN = 16
"""A chunk has at most this many characters for each of its tokens.

Wordpiece reads a word of over 100 characters as one [UNK], so tokens alone bound nothing. Prose has 4 to 5 characters a
token and hardly ever more than 10, so this touches only what an encoder can't read anyway.
"""
PIECE_CHARACTERS = 8_192
"""What is tokenised at once. An Encoding takes up to 1.5 kB a token,
and Chinese has a token a character: about 12 MB."""
WHOLE_WORD_TOKENS = 8
"""What stands between whitespace is kept whole up to this size, so that `3.14` and `don't` are not cut; larger is a
URL, or a script without spaces, which may be cut where the tokenizer sees words."""

_LAST_WHITESPACE = 0x3000
_whitespace = np.array([chr(code).isspace() for code in range(_LAST_WHITESPACE + 2)])


class Limits(NamedTuple):
    """The most that a chunk may hold."""

    tokens: int
    """Without the encoder's special tokens."""
    characters: int


class Units:
    """Consecutive stretches of one text, in order and disjoint; each begins and ends in a non-whitespace character.

    Thirteen bytes a unit, because a document can hold millions of words.
    """

    def __init__(self, starts: "array[int]", ends: "array[int]", before: "array[int]", cut_here: "array[int]") -> None:
        self.starts = starts
        self.ends = ends
        self.before = before
        """How many tokens come before each unit, and at last how many there are: one longer than `starts`."""
        self.cut_here = cut_here
        """Whether the text can be cut before each unit (`Reading.cuts`), and at last behind all of them."""

    def __len__(self) -> int:
        return len(self.starts)

    def index_at(self, character: int) -> int:
        """The first unit that begins at or after a character."""
        return bisect_left(self.starts, character)

    def tokens_between(self, start: int, end: int) -> int | None:
        """The tokens of what stands between two characters, read alone; None where it must be counted."""
        first, stop = self.index_at(start), self.index_at(end)
        if not (first < stop and self.starts[first] == start and self.ends[stop - 1] == end):
            return None
        if not (self.cut_here[first] and self.cut_here[stop]):
            return None
        return self.before[stop] - self.before[first]

    def fits(self, first: int, last: int, limits: Limits) -> bool:
        """Whether the units from `first` up to, not including, `last` (at least one) are within the limits together."""
        return (
            self.before[last] - self.before[first] <= limits.tokens
            and self.ends[last - 1] - self.starts[first] <= limits.characters
        )

    def windows(self, start: int, end: int, limits: Limits, overlap: int) -> Iterator[tuple[int, int, bool]]:
        """Cover the units between two characters with windows of whole units, as few as possible.

        Each is (start, end, fits) in characters; only a window of a single unit may not fit. A window repeats the last
        whole units of the one before, up to `overlap` tokens, and always holds a unit that no earlier one held.
        """
        first, last = self.index_at(start), self.index_at(end)
        while first < last:
            stop = max(self._reach(first, last, limits), first + 1)
            yield self.starts[first], self.ends[stop - 1], self.fits(first, stop, limits)
            if stop == last:
                return
            first = self._step_back(first, stop, limits, overlap)

    def _reach(self, first: int, last: int, limits: Limits) -> int:
        """The last unit, exclusive, of the longest window from `first` that fits."""
        by_tokens = bisect_right(self.before, self.before[first] + limits.tokens, first, last + 1) - 1
        return min(by_tokens, bisect_right(self.ends, self.starts[first] + limits.characters, first, last))

    def _step_back(self, first: int, stop: int, limits: Limits, overlap: int) -> int:
        """Where the window after `first` to `stop` begins:
        it overlaps that one, and has room for the unit at `stop`.
        """
        low, characters = first + 1, overlap * CHARACTERS_PER_TOKEN
        return max(
            bisect_left(self.before, self.before[stop] - overlap, low, stop),
            bisect_left(self.starts, self.ends[stop - 1] - characters, low, stop),
            bisect_left(self.before, self.before[stop + 1] - limits.tokens, low, stop),
            bisect_left(self.starts, self.ends[stop] - limits.characters, low, stop),
        )

    def grouped(self, boundaries: Boundaries) -> "Units":
        """Coarser units, which begin at the first unit and at each boundary (ascending characters)."""
        if not self.starts:
            return self
        starts, ends, before = (_view(values) for values in (self.starts, self.ends, self.before))
        firsts = np.unique(np.append(np.searchsorted(starts, boundaries), 0))
        firsts = firsts[firsts < len(starts)]
        stops = np.append(firsts[1:], len(starts))
        return Units(
            _compact(starts[firsts]),
            _compact(ends[stops - 1]),
            _compact(before[np.append(firsts, len(starts))]),
            _flags(np.frombuffer(self.cut_here, dtype=np.bool_)[np.append(firsts, len(starts))]),
        )


def cut(levels: Sequence[Units], start: int, end: int, limits: Limits, overlap: int = 0) -> Iterator[tuple[int, int]]:
    """Windows of whole units of the first level; a unit that is too large is cut at the next level, and so on.

    What is too large on the last level is given as it is.
    """
    units, *finer = levels
    for window_start, window_end, fits in units.windows(start, end, limits, overlap):
        if fits or not finer:
            yield window_start, window_end
        else:
            yield from cut(finer, window_start, window_end, limits, overlap)


def words(text: str, boundaries: Boundaries, tokenizer: TokenCounter, limits: Limits) -> Units:
    """The words of a text. No word reaches over one of `boundaries` (ascending characters), whatever the tokenizer
    sees.

    Every non-whitespace character is in a word. Token counts add up to the tokenizer's, or nearly so: what is cut at
    words must be counted again.
    """
    whole = min(WHOLE_WORD_TOKENS, limits.tokens)
    starts, ends, before, cut_here = array("I"), array("I"), array("I", [0]), array("B", [1])
    at = 0
    while at < len(text):
        piece = text[at : at + PIECE_CHARACTERS]
        space = _spaces(piece)
        if at + len(piece) < len(text) and space.any():
            length = int(np.flatnonzero(space)[-1]) + 1
            piece, space = piece[:length], space[:length]
        # Both of one type: numpy would copy all boundaries for each piece otherwise.
        within = slice(*np.searchsorted(boundaries, np.array([at, at + len(piece)], dtype=np.uint32)))
        inner = boundaries[within].astype(np.int64) - at
        piece_starts, piece_ends, tokens, cuts = _words_of_piece(piece, space, inner, tokenizer, whole)
        starts.extend(_compact(piece_starts + at))
        ends.extend(_compact(piece_ends + at))
        before.extend(_compact(np.cumsum(tokens) + before[-1]))
        # Between two pieces, both must allow it.
        cut_here[-1] &= int(cuts[0])
        cut_here.extend(_flags(cuts[1:]))
        at += len(piece)
    return Units(starts, ends, before, cut_here)


def _words_of_piece(
    piece: str, space: npt.NDArray[np.bool_], boundaries: Offsets, tokenizer: TokenCounter, whole: int
) -> tuple[Offsets, Offsets, Offsets, npt.NDArray[np.bool_]]:
    """Starts, ends and tokens of each word, and whether the tokenizer lets the text be cut before each and behind all;
    what has up to `whole` tokens is cut at whitespace and boundaries only.
    """
    begins = ~space
    begins[1:] &= space[:-1]
    runs = np.flatnonzero(begins)
    if not runs.size:
        return runs, runs, runs, np.zeros(1, dtype=np.bool_)
    reading = tokenizer.read(piece)
    # By its last character, because a tokenizer may count the space before a word as part of it.
    token_at = np.maximum(reading.token_ends - 1, 0)
    too_large = _counts(runs, token_at, space) > whole
    inner = reading.word_starts
    inner = inner[too_large[np.maximum(np.searchsorted(runs, inner, side="right") - 1, 0)]]
    for more in (inner, boundaries):
        begins[more] = ~space[more]
    starts = np.flatnonzero(begins)
    finishes = ~space
    finishes[:-1] &= space[1:] | begins[1:]
    cuts = np.zeros(len(piece) + 1, dtype=np.bool_)
    cuts[reading.cuts] = True
    return starts, np.flatnonzero(finishes) + 1, _counts(starts, token_at, space), cuts[np.append(starts, len(piece))]


def _counts(starts: Offsets, token_at: Offsets, space: npt.NDArray[np.bool_]) -> Offsets:
    """Of each unit. What stands for whitespace counts for the unit behind it, which has it alone as well."""
    unit_of_token = np.searchsorted(starts, token_at, side="right") - 1 + space[token_at]
    unit_of_token = np.clip(unit_of_token, 0, len(starts) - 1)
    return np.bincount(unit_of_token, minlength=len(starts))


def _spaces(piece: str) -> npt.NDArray[np.bool_]:
    codes = np.frombuffer(piece.encode("utf-32-le"), dtype="<u4")
    spaces: npt.NDArray[np.bool_] = _whitespace[np.minimum(codes, _LAST_WHITESPACE + 1)]
    return spaces


def _view(values: "array[int]") -> npt.NDArray[np.uint32]:
    return np.frombuffer(values, dtype=np.uint32)


def _flags(values: npt.NDArray[np.bool_]) -> "array[int]":
    flags = array("B")
    flags.frombytes(values.tobytes())
    return flags


def _compact(values: npt.NDArray[np.integer]) -> "array[int]":
    compact = array("I")
    compact.frombytes(values.astype(np.uint32).tobytes())
    return compact
