from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.retrieval.passages import merged, neighbours, passage
from headrace.stores.ports import TextRow
from schemas import Attributes, chunk_id

REVISION = "r" * 32
ATTRIBUTES = Attributes(created_at=datetime(2026, 1, 1, tzinfo=UTC))


def row(ordinal: int, text: str, start: int, end: int | None = None) -> TextRow:
    return TextRow(
        id=chunk_id(REVISION, ordinal),
        doc_id="d",
        version=1,
        ordinal=ordinal,
        content_hash="h",
        attributes=ATTRIBUTES,
        text=text,
        start=start,
        end=start + len(text) if end is None else end,
    )


def cut(document: str, *spans: tuple[int, int]) -> list[TextRow]:
    return [row(ordinal, document[start:end], start) for ordinal, (start, end) in enumerate(spans)]


DOCUMENT = "Water 😀 drives the wheel. The wheel turns.\n\n The mill grinds the corn."


@pytest.mark.parametrize(
    ("ordinal", "reach", "expected"), [(0, 1, [0, 1]), (2, 1, [1, 2, 3]), (4, 2, [2, 3, 4]), (1, 5, [0, 1, 2, 3, 4])]
)
def test_neighbours_end_where_the_document_does(ordinal: int, reach: int, expected: list[int]) -> None:
    chunk = chunk_id(REVISION, ordinal)
    assert neighbours(chunk, ordinal, reach=reach, chunks=5) == [chunk_id(REVISION, place) for place in expected]


def test_chunks_that_overlap_or_touch_are_the_documents_text_again() -> None:
    found = merged(cut(DOCUMENT, (0, 20), (14, 26), (26, 42)))
    assert (found.text, found.start, found.end) == (DOCUMENT[:42], 0, 42)
    assert found.chunk_ids == [chunk_id(REVISION, ordinal) for ordinal in range(3)]


@pytest.mark.parametrize(("second", "text"), [(26, "wheel. The"), (45, "wheel.\n\nThe")])
def test_white_space_that_no_chunk_has_is_a_space_or_a_blank_line(second: int, text: str) -> None:
    assert merged(cut(DOCUMENT, (19, 25), (second, second + 3))).text == text


def test_of_html_what_two_chunks_share_is_said_once() -> None:
    source = "<p>The <b>wheel</b> turns slowly.</p>"
    first, second = row(0, "The wheel turns", 3, 25), row(1, "wheel turns slowly.", 10, 33)
    assert merged([first, second]).text == "The wheel turns slowly."
    assert merged([first, second]).end == 33 < len(source)


def test_of_html_that_shares_nothing_chunks_stand_on_lines_of_their_own() -> None:
    assert merged([row(0, "Heading", 0, 20), row(1, "Text", 20, 40)]).text == "Heading\nText"


def test_a_neighbour_that_is_gone_ends_the_passage() -> None:
    rows = cut(DOCUMENT, (0, 6), (6, 15), (15, 26), (26, 42))
    around = [one.id for one in rows]
    left = {one.id: one for one in rows if one.ordinal != 1}
    found = passage(around[2], around, left)
    assert (found.text, found.chunk_ids) == (DOCUMENT[15:42], around[2:])


@given(st.text(min_size=1, max_size=60), st.data())
def test_whatever_chunks_of_a_plain_text_touch_or_overlap_make_exactly_its_slice(
    document: str, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(document) - 1))
    end = data.draw(st.integers(start + 1, len(document)))
    spans = [(start, end)]
    while end < len(document) and len(spans) < 6:
        start = data.draw(st.integers(start, end))
        end = data.draw(st.integers(max(start + 1, end), len(document)))
        spans.append((start, end))
    found = merged(cut(document, *spans))
    assert found.text == document[found.start : found.end]
    assert (found.start, found.end) == (spans[0][0], max(end for _, end in spans))
