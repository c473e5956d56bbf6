"""What `chunk` promises for any text, of whatever type, by whatever strategy."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.chunking import Chunks, Reading, Tokenizer, chunk
from headrace.errors import Poison
from schemas import Chunk, Chunking, Strategy
from schemas.document import ContentType

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
CONTENT_TYPES: tuple[ContentType, ...] = get_args(ContentType)

PROSE = "The quick brown fox, e.g. Mr. Fox, jumped over 3.14 lazy dogs. Did it? It did! "
ODD_PIECES = [
    *PROSE.split(" "),
    *("\n", "\n\n", "\r\n\r\n", "\r", "\t", " ", "   \n \n", "\u2028", "\x85", "\x1c", "\u3000", "\u00a0"),
    *("\x00", "\x01", "\x7f", "\u200b", "\u200d", "\ufeff", "\u202e", "\u0301", "e\u0301\u0323", "\ue000", "\ufffe"),
    *("😀", "👩\u200d👩\u200d👧", "𠀀𠀁", "你好。世界！", "ภาษาไทย", "한국어", "שלום עולם.", "مرحبا؟", "ﷺ", "ﬁ", "İ", "\U0010ffff"),
    *("[CLS]", "[UNK]", "##ing", "a" * 99, "b" * 300, "é" * 60, "http://example.org/a?b=c&d=e#f", "don't", "...", "“He said (so)”."),
    *("# A\n", "\n## B *c*\n\n", "Title\n---\n", "```\n", "~~~\n", "> # q\n", "- # i\n", "    # code\n", "#no\n", "###### F ######\n"),
    *("<h1>", "</h1>", "<h2>T</h2>", "<p>", "</p>", "<br>", "<pre>", "</pre>", "<script>x<y</script>", "<td>", "<b", "<!--", "-->"),
    *("&amp;", "&lt", "&#x1F600;", "&#0;", "&#99999999999;", "&nbsp;", "&notit;", "&", "<", ">", "'", '"', "<![", "</", "<a b='c>d'>"),
]  # fmt: skip
odd_text = st.lists(st.sampled_from(ODD_PIECES) | st.text(max_size=5), max_size=60).map("".join)


@st.composite
def chunkings(draw: st.DrawFn) -> Chunking:
    max_tokens = draw(st.integers(8, 40))
    overlap = draw(st.integers(0, max_tokens - 3))
    return Chunking(strategy=draw(st.sampled_from(STRATEGIES)), max_tokens=max_tokens, overlap_tokens=overlap)


def check(chunks: Chunks, chunking: Chunking, tokenizer: Tokenizer) -> None:
    assert [c.ordinal for c in chunks] == list(range(len(chunks)))
    assert all(c.text.strip() == c.text != "" for c in chunks)
    assert [c.tokens for c in chunks] == tokenizer.count([c.text for c in chunks])
    assert all(c.tokens <= chunking.max_tokens for c in chunks)
    assert all(len(c.text) <= 16 * chunking.max_tokens for c in chunks)
    assert all(a.start < b.start and a.end < b.end for a, b in pairwise(chunks))


def uncovered(text: str, chunks: Chunks) -> str:
    """What is in no chunk."""
    parts, at = [], 0
    for c in chunks:
        parts.append(text[at : c.start])
        at = max(at, c.end)
    return "".join([*parts, text[at:]])


@settings(max_examples=150, deadline=None)
@given(text=odd_text, chunking=chunkings(), content_type=st.sampled_from(["text/plain", "text/markdown"]))
def test_chunks_of_any_text_are_slices_that_fit_and_cover_it(
    tokenizer: Tokenizer, text: str, chunking: Chunking, content_type: ContentType
) -> None:
    chunks = chunk(text, content_type, chunking, tokenizer)
    check(chunks, chunking, tokenizer)
    assert all(c.text == text[c.start : c.end] for c in chunks)
    assert not uncovered(text, chunks).strip()


@settings(max_examples=150, deadline=None)
@given(
    words=st.lists(st.sampled_from([*ODD_PIECES, "</s>", "<unk>", "\u2581"]) | st.text(max_size=5), max_size=60),
    gap=st.sampled_from([" ", "  ", "\n", ""]),
    chunking=chunkings(),
)
def test_chunks_by_a_tokenizer_without_words_have_the_tokens_that_it_counts(
    tokenizer_without_words: Tokenizer, words: list[str], gap: str, chunking: Chunking
) -> None:
    chunking = msgspec.structs.replace(chunking, max_tokens=chunking.max_tokens + 6)  # A family of emojis takes 13.
    text = gap.join(words)
    chunks = chunk(text, "text/plain", chunking, tokenizer_without_words)
    assert [c.tokens for c in chunks] == tokenizer_without_words.count([c.text for c in chunks])
    assert all(c.tokens <= chunking.max_tokens for c in chunks)
    assert not uncovered(text, chunks).strip()


@settings(max_examples=150, deadline=None)
@given(source=odd_text, chunking=chunkings())
def test_chunks_of_any_html_fit_and_lie_in_order_in_the_source(
    tokenizer: Tokenizer, source: str, chunking: Chunking
) -> None:
    chunks = chunk(source, "text/html", chunking, tokenizer)
    assert [c.tokens for c in chunks] == tokenizer.count([c.text for c in chunks])
    assert all(c.tokens <= chunking.max_tokens and c.text.strip() == c.text != "" for c in chunks)
    assert all(0 <= c.start < c.end <= len(source) for c in chunks)
    # Two characters of one reference may be cut apart, hence `<=`.
    assert all(a.start <= b.start and a.end <= b.end for a, b in pairwise(chunks))
    for c in chunks:
        assert c.text[0] == source[c.start] or source[c.start] == "&"


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.sampled_from("ab \n.。😀\u0301"), max_size=300), max_tokens=st.integers(3, 8))
def test_windows_of_a_few_tokens_hold_any_script(tokenizer: Tokenizer, text: str, max_tokens: int) -> None:
    chunking = Chunking(max_tokens=max_tokens, overlap_tokens=0)
    check(chunks := chunk(text, "text/plain", chunking, tokenizer), chunking, tokenizer)
    assert not uncovered(text, chunks).strip()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_paragraphs_of_prose_fill_chunks_of_256_tokens(tokenizer: Tokenizer, strategy: Strategy) -> None:
    text = "\n\n".join(PROSE * n for n in range(1, 60))
    chunking = Chunking(strategy=strategy)
    chunks = chunk(text, "text/plain", chunking, tokenizer)
    check(chunks, chunking, tokenizer)
    assert not uncovered(text, chunks).strip()
    assert sum(c.tokens for c in chunks) / len(chunks) > 150


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@pytest.mark.parametrize(
    "text", ["", " ", "\n\n\t \u3000\x85\x1c", " " * 100_000], ids=["empty", "space", "odd", "long"]
)
def test_a_text_of_only_whitespace_has_no_chunks(
    tokenizer: Tokenizer, strategy: Strategy, content_type: ContentType, text: str
) -> None:
    chunks = chunk(text, content_type, Chunking(strategy=strategy), tokenizer)
    assert (len(chunks), list(chunks)) == (0, [])


def test_the_same_input_gives_the_same_chunks(tokenizer: Tokenizer) -> None:
    text = PROSE * 100
    assert list(chunk(text, "text/plain", Chunking(), tokenizer)) == list(
        chunk(text, "text/plain", Chunking(), tokenizer)
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("unit", ["a", "😀", "\x01", "\u200b", "é", "한", "-", "\u0301"], ids=ascii)
def test_an_endless_word_becomes_chunks_of_bounded_size(tokenizer: Tokenizer, strategy: Strategy, unit: str) -> None:
    text = unit * 100_000
    chunks = chunk(text, "text/plain", Chunking(strategy=strategy), tokenizer)
    assert max(len(c.text) for c in chunks) <= 4096
    assert len(chunks) <= 1 + 100_000 // 180
    assert not uncovered(text, chunks)


def test_a_cut_inside_a_word_keeps_combining_marks_with_their_letter(tokenizer: Tokenizer) -> None:
    text = "e\u0301" * 40
    chunks = chunk(text, "text/plain", Chunking(max_tokens=10, overlap_tokens=0), tokenizer)
    assert len(chunks) > 1
    assert all(c.text[0] == "e" for c in chunks)


def test_short_words_are_not_cut_at_their_punctuation(tokenizer: Tokenizer) -> None:
    text = "don't 3.14 e.g. " * 50
    chunks = chunk(text, "text/plain", Chunking(max_tokens=9, overlap_tokens=0), tokenizer)
    assert {word for c in chunks for word in c.text.split()} == {"don't", "3.14", "e.g."}


def test_a_character_that_takes_more_than_the_window_is_refused_with_a_clear_text(tokenizer: Tokenizer) -> None:
    with pytest.raises(Poison, match="'한' takes 5 tokens, more than max_tokens, 3; set max_tokens to 8 or more"):
        chunk("한", "text/plain", Chunking(max_tokens=3, overlap_tokens=0), tokenizer)


def test_fixed_windows_are_full_and_overlap_by_what_was_asked(tokenizer: Tokenizer) -> None:
    text = " ".join(f"{word}" for word in ["tree", "house", "river", "stone"] * 200)
    chunks = chunk(text, "text/plain", Chunking(max_tokens=102, overlap_tokens=20), tokenizer)
    assert [c.tokens for c in chunks[:-1]] == [102] * (len(chunks) - 1)
    for a, b in pairwise(chunks):
        assert len(text[b.start : a.end].split()) == 20


def test_much_overlap_still_moves_on_where_nothing_has_tokens(tokenizer: Tokenizer) -> None:
    text = "\u200b " * 20_000
    chunks = chunk(text, "text/plain", Chunking(max_tokens=256, overlap_tokens=253), tokenizer)
    assert len(chunks) < 1000
    assert not uncovered(text, chunks).strip()


def test_whole_sentences_are_packed_and_the_last_ones_come_again(tokenizer: Tokenizer) -> None:
    sentence = "Dr. Smith saw 😀 the river. "
    text = sentence * 40
    chunks = chunk(text, "text/plain", Chunking(strategy="sentence", max_tokens=40, overlap_tokens=10), tokenizer)
    assert all(set(c.text.split(". Dr")) for c in chunks)
    assert all(c.text.startswith("Dr. Smith") and c.text.endswith("the river.") for c in chunks)
    assert all(b.start < a.end for a, b in pairwise(chunks))


def test_a_sentence_without_end_is_cut_at_words(tokenizer: Tokenizer) -> None:
    text = "Short one. " + "word " * 5000 + "end. Short two."
    chunking = Chunking(strategy="sentence", max_tokens=64, overlap_tokens=0)
    chunks = chunk(text, "text/plain", chunking, tokenizer)
    check(chunks, chunking, tokenizer)
    assert chunks[0].text == "Short one."
    assert chunks[-1].text.endswith("Short two.")
    assert {word for c in chunks[1:-1] for word in c.text.split()} <= {"word", "end."}


def test_more_chunks_than_a_document_may_have_are_refused_before_they_are_all_cut(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.chunking.cutting.MOST_CHUNKS", 10)
    chunking = Chunking(max_tokens=8, overlap_tokens=0)
    assert len(chunk("a " * 60, "text/plain", chunking, tokenizer)) == 10
    with pytest.raises(Poison, match="more than 10 chunks; set a larger max_tokens"):
        chunk("a " * 61, "text/plain", chunking, tokenizer)


def test_chunks_are_a_sequence(tokenizer: Tokenizer) -> None:
    chunks = chunk(PROSE * 300, "text/plain", Chunking(max_tokens=32, overlap_tokens=0), tokenizer)
    assert chunks[-1] == list(chunks)[-1]
    assert chunks[2:4] == [chunks[2], chunks[3]]
    with pytest.raises(IndexError):
        chunks[len(chunks)]


def test_a_chunk_is_the_schema_of_the_wire(tokenizer: Tokenizer) -> None:
    (only,) = chunk("  Hello.\n", "text/plain", Chunking(), tokenizer)
    assert only == Chunk(ordinal=0, text="Hello.", start=2, end=8, tokens=4)


class Underestimating:
    """A tokenizer that counts twice the tokens in a whole text that it showed before."""

    special_tokens = 0

    def read(self, text: str) -> Reading:
        words = list(re.finditer(r"\S+", text))
        return Reading(np.array([w.end() for w in words]), np.array([w.start() for w in words]))

    def count(self, texts: Sequence[str]) -> list[int]:
        return [2 * len(text.split()) for text in texts]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("overlap", [0, 3, 9])
def test_what_a_tokenizer_reads_as_more_than_its_words_is_halved_until_it_fits(
    strategy: Strategy, overlap: int
) -> None:
    text = "One two three. Four five six seven eight nine ten eleven twelve. " * 20
    chunking = Chunking(strategy=strategy, max_tokens=10, overlap_tokens=overlap)
    chunks = chunk(text, "text/plain", chunking, Underestimating())
    assert all(c.tokens == 2 * len(c.text.split()) <= 10 for c in chunks)
    assert all(a.start < b.start and a.end < b.end for a, b in pairwise(chunks))
    assert not uncovered(text, chunks).strip()
