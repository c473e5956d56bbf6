import sys
from types import FrameType

import pytest

from headrace.chunking import Chunks, Tokenizer, chunk
from headrace.chunking.markdown import read_markdown
from schemas import Chunking
from schemas.document import ContentType

WORDS = "river stone house tree "


def cut(tokenizer: Tokenizer, text: str, max_tokens: int = 32, content_type: ContentType = "text/markdown") -> Chunks:
    return chunk(text, content_type, Chunking(strategy="hierarchical", max_tokens=max_tokens), tokenizer)


def headings(text: str) -> list[tuple[int, str, str]]:
    """Level, title, and the line it begins with."""
    found = read_markdown(text).headings
    lines = [text[start:].split("\n", 1)[0] for start in found.starts]
    return list(zip(found.levels, found.titles, lines, strict=True))


def test_a_document_that_fits_is_one_chunk_under_its_title(tokenizer: Tokenizer) -> None:
    (only,) = cut(tokenizer, "# Title\n\nIntro.\n\n## A\n\nText.\n")
    assert (only.headings, only.text) == (["Title"], "# Title\n\nIntro.\n\n## A\n\nText.")


def test_small_neighbours_are_merged_under_their_parent_and_large_ones_stand_alone(tokenizer: Tokenizer) -> None:
    text = f"# T\n\n{WORDS * 6}\n\n## A\n\nOne.\n\n## B\n\nTwo.\n\n## C\n\n{WORDS * 6}\n\n### D\n\n{WORDS * 6}\n\n# U\n\nEnd.\n"
    chunks = cut(tokenizer, text)
    assert [(c.headings, c.text.split("\n")[0]) for c in chunks] == [
        (["T"], "# T"),
        (["T"], "## A"),
        (["T", "C"], "## C"),
        (["T", "C", "D"], "### D"),
        (["U"], "# U"),
    ]
    assert chunks[1].text == "## A\n\nOne.\n\n## B\n\nTwo."


def test_text_before_the_first_heading_has_no_headings(tokenizer: Tokenizer) -> None:
    chunks = cut(tokenizer, f"{WORDS * 6}\n\n# A\n\n{WORDS * 6}")
    assert [c.headings for c in chunks] == [[], ["A"]]


def test_sections_of_different_parents_are_not_merged(tokenizer: Tokenizer) -> None:
    text = f"# A\n\n{WORDS * 7}\n\n## A1\n\nx\n\n# B\n\n{WORDS * 7}\n\n## B1\n\ny\n"
    assert [c.headings for c in cut(tokenizer, text)] == [["A"], ["A", "A1"], ["B"], ["B", "B1"]]


def test_a_large_section_is_split_at_paragraphs_then_sentences_then_words(tokenizer: Tokenizer) -> None:
    sentence = "The river is long. "
    text = f"# A\n\n{WORDS * 5}\n\n{WORDS * 6}\n\n{sentence * 10}\n\n{WORDS * 20}"
    chunks = cut(tokenizer, text)
    assert [c.headings for c in chunks] == [["A"]] * len(chunks)
    assert chunks[0].text == f"# A\n\n{WORDS * 5}".strip()
    assert chunks[1].text == (WORDS * 6).strip()
    assert chunks[2].text == (sentence * 6).strip()
    assert chunks[3].text == (sentence * 4).strip()
    assert [len(c.text.split()) for c in chunks[4:]] == [30, 30, 20]


def test_a_heading_is_not_cut_off_from_the_paragraph_below_it(tokenizer: Tokenizer) -> None:
    chunks = cut(tokenizer, f"# A\n\n{'The river is long. ' * 20}")
    assert chunks[0].text.startswith("# A\n\nThe river is long.")


def test_plain_text_is_cut_at_paragraphs_and_knows_no_headings(tokenizer: Tokenizer) -> None:
    chunks = cut(tokenizer, f"# no heading\n\n{WORDS * 6}\n\n{WORDS * 7}", content_type="text/plain")
    assert [c.headings for c in chunks] == [[], []]
    assert chunks[1].text == (WORDS * 7).strip()


def test_html_headings_make_sections(tokenizer: Tokenizer) -> None:
    source = f"<title>x</title><h1>T &amp; <i>U</i></h1><p>{WORDS * 6}<h2 class=a>A</h2><div>{WORDS * 6}</div>"
    chunks = cut(tokenizer, source, content_type="text/html")
    assert [c.headings for c in chunks] == [["T & U"], ["T & U", "A"]]
    assert chunks[0].text == f"T & U\n\n{WORDS * 6}".strip()
    assert source[chunks[1].start : chunks[1].end] == f"A</h2><div>{WORDS * 6}".strip()


def test_an_endless_heading_is_cut_short_in_the_path(tokenizer: Tokenizer) -> None:
    chunks = cut(tokenizer, f"# {'long ' * 50_000}\n\nText.")
    assert {len(title) for c in chunks for title in c.headings} == {199}


def test_a_heading_inside_a_code_fence_is_no_heading() -> None:
    assert headings("# A\n```\n# B\n```\n~~~sh\n# C\n") == [(1, "A", "# A")]


def test_what_stands_in_lists_quotes_indented_code_and_html_is_no_heading() -> None:
    assert headings("- # A\n\n> # B\n\n    # C\n\n<pre>\n# D\n</pre>\n\n#E\n\n####### F\n") == []


def test_both_kinds_of_headings_are_found_and_their_markup_is_dropped() -> None:
    text = "A *b* `c`\n====\n\n## [d](e) &amp; f ##\n\ng\nh\n---\n\n#\n"
    assert headings(text) == [
        (1, "A b c", "A *b* `c`"),
        (2, "d & f", "## [d](e) &amp; f ##"),
        (2, "g h", "g"),
        (1, "", "#"),
    ]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"], ids=ascii)
def test_only_what_markdown_calls_a_line_end_ends_a_line(newline: str) -> None:
    text = newline.join(["x\x0by\u2028z\x85\x00", "", "😀", "", "# A"])
    found = read_markdown(text).headings
    assert [text[start:] for start in found.starts] == ["# A"]


def test_a_code_fence_larger_than_the_parsing_window_hides_its_headings() -> None:
    text = "# A\n\n````\n" + "# no\n```\n" * 30_000 + "````\n# B\n" + "text\n\n" * 20_000 + "# C\n"
    assert [title for _, title, _ in headings(text)] == ["A", "B", "C"]


def test_headings_are_the_same_wherever_the_parsing_window_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    block = "# A\n\ntext\nmore\n\nB\n===\n\n```\n# no\n\n# no\n```\n\n- i\n\n  # no\n\n> # no\n\n    # no\n"
    text = block * 20
    expected = headings(text)
    assert len(expected) == 40
    for size in range(60, 160, 7):
        monkeypatch.setattr("headrace.chunking.markdown.WINDOW_CHARACTERS", size)
        assert headings(text) == expected


def test_many_sections_take_work_in_proportion(tokenizer: Tokenizer) -> None:
    def calls(sections: int) -> int:
        counted = 0

        def count(_frame: FrameType, event: str, _argument: object) -> None:
            nonlocal counted
            counted += event in {"call", "c_call"}

        text = "# A\n\nx\n\n" * sections
        sys.setprofile(count)
        try:
            cut(tokenizer, text, max_tokens=256)
        finally:
            sys.setprofile(None)
        return counted

    assert calls(4_000) < 5 * calls(1_000)
