import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.chunking.webpage import read_html


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<p>a<p>b", "a\n\nb"),
        ("<div> a \n\t b </div>c", "a b\n\nc"),
        ("a<b>b</b> <i> c</i>", "ab c"),
        ("a<br>b<br/>c<br><br>d", "a\nb\nc\n\nd"),
        ("<ul><li>a</li><li>b</ul>", "a\nb"),
        ("<table><tr><td>a<td>b</tr><tr><td>c</table>", "a\tb\nc"),
        ("<pre>  a\n\n b&lt; </pre> c  d", "  a\n\n b< \n\nc d"),
        ("<title>t</title><script>a<b</script>x<style>y</STYLE >z<template>n<template>m</template></template>!", "xz!"),
        ("a<!-- <p> -->b<!-->c<!--->d<!doctype x>e<?php f?>g<![CDATA[h]]>i</>j", "abcdegij"),
        ("&amp;&lt;&#65;&#x1F600;&eacute;&notit;&nbsp;x", "&<A😀é¬it;\u00a0x"),
        ("AT&T R&D &foo; & &#; &#x; 1 < 2 <3 a<", "AT&T R&D &foo; & &#; &#x; 1 < 2 <3 a<"),
        ("a&#32;&#10; b&#0;&#x80;&#1;c", "a b\ufffd€c"),
        ("<a href='>' title=\"'\" x=it's>b</a>", "b"),
        ("a<p title='never closed>b", "a"),
        ("a<!-- never closed", "a"),
        ("a<script>never closed", "a"),
        ("a</p", "a"),
        ("<![if x]>a", "a"),
        ("&#" + "9" * 999 + ";", "\ufffd"),
    ],
)
def test_html_reads_as_a_browser_shows_it(source: str, text: str) -> None:
    assert read_html(source).text == text


def test_every_character_leads_back_to_its_place_in_the_source() -> None:
    source = "<p>😀 a &amp;  b</p>\n<p>c&#x1F600;d &NotEqualTilde; <b>e</b>"
    page = read_html(source)
    assert page.text == "😀 a & b\n\nc😀d ≂̸ e"
    places = {c: source[slice(*page.source_span(k, k + 1))] for k, c in enumerate(page.text) if not c.isspace()}
    assert places == {
        **{c: c for c in "abcde"},
        "😀": "&#x1F600;",
        "&": "&amp;",
        "≂": "&NotEqualTilde;",
        "\u0338": "&NotEqualTilde;",
    }
    assert source[slice(*page.source_span(0, len(page.text)))] == source[3:-4]


pieces = st.sampled_from(
    [
        *("<", ">", "</", "<!--", "-->", "<!", "<![", "<a ", "b=", "'", '"', "&", "&#", "&#x", "&lt", ";"),
        *("<pre>", "</pre>", "<h1>", "</h2>", "<p>", "<br>", "<script>", "</script>", "<template>", "</template>"),
        *("<title>", "\x00", "\r\n", " "),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(pieces | st.text(max_size=3), max_size=40).map("".join))
def test_no_markup_raises_and_copied_characters_are_those_of_the_source(source: str) -> None:
    page = read_html(source)
    for k, character in enumerate(page.text):
        if not character.isspace():
            start, end = page.source_span(k, k + 1)
            assert source[start:end] == character or source[start] == "&"


@pytest.mark.parametrize(
    "unit",
    [
        "<a ",
        "<a b='",
        "<!--",
        "<![",
        "<?",
        "</",
        "</a ",
        "<template>",
        "<div>",
        "<script>",
        "&",
        "&#",
        "<",
        "=",
        "<a b=",
    ],
)
def test_broken_markup_of_any_length_is_read_through(unit: str) -> None:
    source = unit * (300_000 // len(unit))
    page = read_html(source)  # where this is quadratic, it does not come back: the standard library's takes hours
    assert len(page.text) <= len(source)


def test_headings_end_where_they_are_closed_or_their_paragraph_ends() -> None:
    page = read_html("<h1></h1>a<h1> <i>B</i> c</h1>d<h3>e<p>f</p><h2>g<h2>h</h4>i")
    assert list(zip(page.headings.levels, page.headings.titles, strict=True)) == [
        (1, "B c"),
        (3, "e"),
        (2, "g"),
        (2, "h"),
    ]
    assert [page.text[start] for start in page.headings.starts] == ["B", "e", "g", "h"]
