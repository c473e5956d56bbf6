"""A document to its chunks."""

import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

from headrace.chunking.boundaries import paragraph_starts, sentence_starts
from headrace.chunking.markdown import read_markdown
from headrace.chunking.readable import Headings, Readable
from headrace.chunking.sections import ROOT, Outline, cut_sections, without_orphans
from headrace.chunking.tokens import Boundaries, TokenCounter
from headrace.chunking.units import CHARACTERS_PER_TOKEN, Limits, Units, cut, words
from headrace.chunking.webpage import read_html
from headrace.errors import Poison
from schemas import Chunk, Chunking
from schemas.document import ContentType

LARGEST_CHUNK_CHARACTERS = 65_536
"""However many tokens an encoder reads, a chunk's text stays below 6 bytes a character of JSON times this: 400 kB."""
MOST_CHUNKS = 100_000
"""Of one document. Small chunks can make millions of ten megabytes, and each is a row in two stores."""
COUNTED_CHARACTERS = 32_768
"""Candidates are counted together up to this many characters, which bounds what their Encodings take."""
LONGEST_MARKS = 32
"""How far a cut inside a word moves to keep combining marks with their letter;
what has more of them is cut anywhere."""

_no_boundaries: Boundaries = np.empty(0, dtype=np.uint32)


class Chunks(Sequence[Chunk]):
    """The chunks of one document, in order: `len` is their total, each Chunk is made when it is asked for.

    Holds the readable text and 16 bytes a chunk.
    """

    def __init__(self, readable: Readable, outline: Outline, spans: Iterable[tuple[int, int, int, int]]) -> None:
        self._readable = readable
        self._outline = outline
        self._starts, self._ends, self._tokens, self._sections = array("I"), array("I"), array("I"), array("I")
        for start, end, tokens, section in spans:
            if len(self._starts) == MOST_CHUNKS:
                raise Poison(
                    "bad_chunking",
                    f"the document is cut into more than {MOST_CHUNKS:,} chunks; set a larger max_tokens, or split it",
                )
            self._starts.append(start)
            self._ends.append(end)
            self._tokens.append(tokens)
            self._sections.append(section)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, ordinal: int) -> Chunk: ...
    @overload
    def __getitem__(self, ordinal: slice) -> list[Chunk]: ...
    def __getitem__(self, ordinal: int | slice) -> Chunk | list[Chunk]:
        if isinstance(ordinal, slice):
            return [self[k] for k in range(*ordinal.indices(len(self)))]
        ordinal = range(len(self))[ordinal]
        start, end = self._starts[ordinal], self._ends[ordinal]
        source_start, source_end = self._readable.source_span(start, end)
        return Chunk(
            ordinal=ordinal,
            text=self._readable.text[start:end],
            start=source_start,
            end=source_end,
            tokens=self._tokens[ordinal],
            headings=self._outline.path(self._sections[ordinal]),
        )


def chunk(text: str, content_type: ContentType, chunking: Chunking, tokenizer: TokenCounter) -> Chunks:
    """Cut a document. The same input gives the same chunks, on every worker.

    - Together the chunks cover every character that a reader sees and that is not whitespace; none is empty or only
      whitespace. A text without such characters has no chunks.
    - `start` and `end` are character offsets into `text`, and for plain text and Markdown `text[start:end]` is the
      chunk's text. For HTML they enclose the source of it.
    - `tokens` is what the tokenizer counts for the chunk's text, special tokens included, and never more than
      `max_tokens`.
    - A chunk has at most 16 characters for each of `max_tokens`, and at most 65,536.
    - `headings` is the path of headings that the whole chunk stands under (`hierarchical` only).

    `chunking` must have passed `check_chunking`. Raises Poison when a single character takes more than
    `max_tokens`, which can happen below 8, and when there are more than `MOST_CHUNKS`; text must not hold lone
    surrogates. The time is linear in the text and the chunks: half a second a million characters or so, all of it on
    the calling thread. Beside the text it takes 13 bytes a word, some 100 bytes for each sentence and paragraph, 16 a
    chunk, and about 15 MB for the tokenizer.
    """
    readable = _read(text, content_type, with_headings=chunking.strategy == "hierarchical")
    limits = Limits(
        tokens=chunking.max_tokens - tokenizer.special_tokens,
        characters=min(chunking.max_tokens * CHARACTERS_PER_TOKEN, LARGEST_CHUNK_CHARACTERS),
    )
    outline = Outline(readable.headings, len(readable.text))
    finest, windows = _windows(readable, outline, chunking, limits, tokenizer)
    return Chunks(readable, outline, _fitted(readable.text, windows, finest, limits, tokenizer))


def _read(text: str, content_type: ContentType, *, with_headings: bool) -> Readable:
    if content_type == "text/html":
        return read_html(text)
    if content_type == "text/markdown" and with_headings:
        return read_markdown(text)
    return Readable(text, Headings())


def _windows(
    readable: Readable, outline: Outline, chunking: Chunking, limits: Limits, tokenizer: TokenCounter
) -> tuple[Units, Iterator[tuple[int, int, int]]]:
    """The words, and the candidates for chunks by the strategy: (start, end, section)."""
    text, overlap = readable.text, chunking.overlap_tokens
    if chunking.strategy == "fixed":
        finest = words(text, _no_boundaries, tokenizer, limits)
        return finest, ((*window, ROOT) for window in cut([finest], 0, len(text), limits, overlap))
    paragraphs = paragraph_starts(text)
    sentences = np.union1d(sentence_starts(text), paragraphs)
    if chunking.strategy == "sentence":
        finest = words(text, sentences, tokenizer, limits)
        levels = [finest.grouped(sentences), finest]
        return finest, ((*window, ROOT) for window in cut(levels, 0, len(text), limits, overlap))
    paragraphs = without_orphans(paragraphs, readable.headings)
    sentences = np.union1d(sentences, paragraphs)
    finest = words(text, sentences, tokenizer, limits)
    return finest, cut_sections(outline, [finest.grouped(paragraphs), finest.grouped(sentences), finest], limits)


def _fitted(
    text: str, windows: Iterable[tuple[int, int, int]], finest: Units, limits: Limits, tokenizer: TokenCounter
) -> Iterator[tuple[int, int, int, int]]:
    """The candidates as (start, end, tokens, section), each counted as the encoder will read it,
    and halved until it fits.
    """
    last_start, last_end = -1, 0
    for batch in _batches(windows, limits):
        counts = _counted(text, [(start, end) for start, end, _ in batch], finest, tokenizer)
        for (start, end, section), tokens in zip(batch, counts, strict=True):
            first, counted = start, tokens
            if start <= last_start:
                # The window before was halved: this one's overlap must not reach behind its last part.
                first = finest.starts[finest.index_at(last_start + 1)]
                [counted] = _counted(text, [(first, end)], finest, tokenizer)
            for fitted in _halved(text, first, end, counted, finest, limits, tokenizer):
                if fitted[1] > last_end:  # Else this half is nothing but overlap.
                    yield *fitted, section
                    last_start, last_end, _ = fitted


def _counted(text: str, spans: Sequence[tuple[int, int]], finest: Units, tokenizer: TokenCounter) -> list[int]:
    """The tokens of each span as the encoder will read it alone. What was read once isn't read again where the words
    know it.
    """
    of_words = [finest.tokens_between(*span) for span in spans]
    read = iter(
        tokenizer.count([text[start:end] for (start, end), known in zip(spans, of_words, strict=True) if known is None])
    )
    return [next(read) if known is None else known + tokenizer.special_tokens for known in of_words]


def _batches(windows: Iterable[tuple[int, int, int]], limits: Limits) -> Iterator[list[tuple[int, int, int]]]:
    """Candidates to be counted at once. A word of too many characters comes in several."""
    batch: list[tuple[int, int, int]] = []
    size = 0
    for start, end, section in windows:
        for at in range(start, end, limits.characters):
            stop = min(at + limits.characters, end)
            if batch and size + stop - at > COUNTED_CHARACTERS:
                yield batch
                batch, size = [], 0
            batch.append((at, stop, section))
            size += stop - at
    if batch:
        yield batch


def _halved(
    text: str, start: int, end: int, tokens: int, finest: Units, limits: Limits, tokenizer: TokenCounter
) -> Iterator[tuple[int, int, int]]:
    if tokens - tokenizer.special_tokens <= limits.tokens:
        yield start, end, tokens
        return
    if end - start == 1:
        raise Poison(
            "bad_chunking",
            f"the character {text[start]!r} takes {tokens} tokens, more than max_tokens, "
            f"{limits.tokens + tokenizer.special_tokens}; set max_tokens to 8 or more",
        )
    halves = _halves(text, start, end, finest)
    for (half_start, half_end), count in zip(halves, _counted(text, halves, finest, tokenizer), strict=True):
        yield from _halved(text, half_start, half_end, count, finest, limits, tokenizer)


def _halves(text: str, start: int, end: int, finest: Units) -> list[tuple[int, int]]:
    """Two parts, cut at the word nearest to the middle, or else inside the word but not before a combining mark."""
    middle = (start + end) // 2
    following = finest.index_at(middle)
    near = [k for k in (following - 1, following) if 0 < k < len(finest) and start < finest.starts[k] < end]
    if near:
        k = min(near, key=lambda k: abs(finest.starts[k] - middle))
        return [(start, finest.ends[k - 1]), (finest.starts[k], end)]
    at = next((at for at in range(middle, max(middle - LONGEST_MARKS, start), -1) if _begins_letter(text[at])), middle)
    return [(start, at), (at, end)]


def _begins_letter(character: str) -> bool:
    return unicodedata.category(character) not in ("Mn", "Mc", "Me", "Cf")
