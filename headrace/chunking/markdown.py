"""The headings of a Markdown text, as CommonMark defines them."""

import re
from itertools import pairwise

from markdown_it import MarkdownIt
from markdown_it.token import Token

from headrace.chunking.readable import TITLE_CHARACTERS, Headings, Readable

WINDOW_CHARACTERS = 65_536
"""What is parsed at once, because the parser takes some 200 bytes a line and more for every block: up to 50 MB.

A list, quote or HTML block that is larger counts as ended, and begins anew on its next line. A code fence may have any
size.
"""

_newline = re.compile(r"\r\n?|\n")  # as the parser counts lines; str.splitlines knows others
_markup = re.compile(r"[*_`\[\]<>&\\!]")


def read_markdown(source: str) -> Readable:
    """The source, with its headings. A heading in a list, a quote,
    a code fence or HTML divides nothing, and is not one here.
    """
    headings = Headings()
    blocks = MarkdownIt("commonmark")
    blocks.core.ruler.enableOnly(["normalize", "block"])
    inline = MarkdownIt("commonmark")
    at = 0
    while at < len(source):
        end = _line_end(source, at + WINDOW_CHARACTERS)
        window = source[at:end]
        lines = [0, *(match.end() for match in _newline.finditer(window))]
        tokens = blocks.parse(window)
        # The last block may go on behind the window, so it is left to the next one, which begins with it.
        last = next((token for token in reversed(tokens) if token.level == 0 and token.map), None)
        if end == len(source) or last is None:
            done, following = len(lines), end
        elif last.map and lines[last.map[0]]:
            done, following = last.map[0], at + lines[last.map[0]]
        elif last.type == "fence":
            done, following = 0, _after_fence(source, at + lines[1], last.markup)
        else:
            done, following = len(lines), end
        _add_headings(headings, tokens, at, lines, done, inline)
        at = following
    return Readable(source, headings)


def _add_headings(
    headings: Headings, tokens: list[Token], at: int, lines: list[int], done: int, inline: MarkdownIt
) -> None:
    for opening, content in pairwise(tokens):
        if opening.type == "heading_open" and opening.level == 0 and opening.map and opening.map[0] < done:
            title = content.content[: 2 * TITLE_CHARACTERS]
            headings.add(at + lines[opening.map[0]], int(opening.tag[1]), _plain(title, inline))


def _plain(title: str, inline: MarkdownIt) -> str:
    """A title without its emphasis, links and the like."""
    if not _markup.search(title):
        return title
    children = (child for token in inline.parseInline(title) for child in token.children or [])
    return "".join(" " if child.type in ("softbreak", "hardbreak") else child.content for child in children)


def _line_end(source: str, at: int) -> int:
    return source.find("\n", at - 1) + 1 or len(source) if at < len(source) else len(source)


def _after_fence(source: str, at: int, markup: str) -> int:
    """Where the text goes on behind the fence that was opened with `markup` on the line before `at`."""
    closing = re.compile(rf"^ {{0,3}}{re.escape(markup[0])}{{{len(markup)},}}[ \t]*$", re.MULTILINE)
    match = closing.search(source, at)
    return _line_end(source, match.end() + 1) if match else len(source)
