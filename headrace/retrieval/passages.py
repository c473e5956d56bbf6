"""A hit with its neighbours as one text. Pure."""

from collections.abc import Mapping, Sequence

from headrace.stores.ports import TextRow
from schemas import Passage, chunk_id
from schemas.revision import revision_of


def neighbours(chunk: str, ordinal: int, *, reach: int, chunks: int) -> list[str]:
    """The ids of the chunks around one, it included, in the document's order. `chunks` is how many its version has."""
    around = range(max(0, ordinal - reach), min(chunks, ordinal + reach + 1))
    return [chunk_id(revision_of(chunk), place) for place in around]


def passage(chunk: str, around: Sequence[str], rows: Mapping[str, TextRow]) -> Passage:
    """The unbroken run of these chunks that the hit's own is in; a sweep may have taken others away."""
    at = around.index(chunk)
    first = last = at
    while first > 0 and around[first - 1] in rows:
        first -= 1
    while last + 1 < len(around) and around[last + 1] in rows:
        last += 1
    return merged([rows[name] for name in around[first : last + 1]])


def merged(rows: Sequence[TextRow]) -> Passage:
    """Consecutive chunks of one document, without what they overlap in.

    Of chunks whose texts are slices of the document (plain text and Markdown) the text is the document's from `start`
    to `end`, where they touch or overlap. Between those that do neither there was white space alone: a space stands for
    one character of it, a blank line for more. Of other texts (HTML) offsets can't tell what is shared: it is the
    longest end of the one that the next begins with.
    """
    text, end = rows[0].text, rows[0].end
    is_slice = all(len(row.text) == row.end - row.start for row in rows)
    for row in rows[1:]:
        gap = row.start - end
        if is_slice and gap <= 0:
            text += row.text[-gap:]
        elif is_slice:
            text += (" " if gap == 1 else "\n\n") + row.text
        else:
            shared = _shared(text, row.text) if gap < 0 else 0
            text += row.text[shared:] if shared else f"\n{row.text}"
        end = max(end, row.end)
    return Passage(text=text, start=rows[0].start, end=end, chunk_ids=[row.id for row in rows])


def _shared(before: str, after: str) -> int:
    """Characters of the longest text that ends the one and begins the other."""
    return next(
        (size for size in range(min(len(before), len(after)), 0, -1) if before.endswith(after[:size])),
        0,
    )
