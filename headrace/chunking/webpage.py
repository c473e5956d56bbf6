"""HTML as a reader sees it.

A scanner of our own after the tokenizer of the HTML standard, because the standard library's takes quadratic time on
unclosed tags (9 MiB of `<a ` would take days), stops in the middle at `&#x;`, raises on `<![`, and does so differently
from one patch release to the next, while chunks must be the same on every worker.
"""

import re
from html import unescape
from io import StringIO

from headrace.chunking.readable import TITLE_CHARACTERS, Headings, Readable, SourceMap

# Possessive repeats (`*+`) never give back what they took, so no input makes these backtrack.
_text = re.compile(r"[^ \t\n\f\r<&]++(?:[ \t\n\f\r][^ \t\n\f\r<&]++)*+")
_preformatted = re.compile(r"[^<&]++")
_space = re.compile(r"[ \t\n\f\r]++")
# `html.unescape` takes names of up to 32 characters and, through `int`, numbers of up to 4,300 digits.
_reference = re.compile(r"&(?:#[0-9]{1,1000}+;?|#[xX][0-9a-fA-F]{1,1000}+;?|[a-zA-Z][a-zA-Z0-9]{0,31}+;?)")
# A quote encloses a value only after an `=`; elsewhere it is a character like any other.
_tag = re.compile(r"""<(/?)([a-zA-Z][^ \t\n\f\r/>]*+)(?:[^=>]++|=\s*+(?:"[^"]*+"|'[^']*+'|(?!["'])))*+>""")
_comment_end = re.compile(r"--!?>")

_SKIPPED_RAW = frozenset({"iframe", "noembed", "noframes", "script", "style", "title"})
"""Not text for a reader, and not markup either: everything up to the end tag. The title is no part of the body."""
_raw_ends = {name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in _SKIPPED_RAW}
_template = re.compile(r"<(/?)template(?=[\s/>])", re.IGNORECASE)

_PARAGRAPH, _LINE, _CELL, _WORD = "\n\n", "\n", "\t", " "
_STRENGTH = {"": 0, _WORD: 1, _CELL: 2, _LINE: 3, _PARAGRAPH: 4}
_BLOCKS = frozenset({
    "address", "article", "aside", "blockquote", "body", "caption", "center", "details", "dialog", "dir", "div", "dl",
    "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hgroup", "hr",
    "legend", "main", "menu", "nav", "ol", "p", "pre", "search", "section", "summary", "table", "ul",
})  # fmt: skip
_LINES = frozenset({"br", "dd", "dt", "li", "option", "tr"})
_CELLS = frozenset({"td", "th"})
_SEPARATORS = dict.fromkeys(_BLOCKS, _PARAGRAPH) | dict.fromkeys(_LINES, _LINE) | dict.fromkeys(_CELLS, _CELL)
_HEADING_LEVELS = {f"h{level}": level for level in range(1, 7)}
_to_spaces = str.maketrans("\t\n\f\r", "    ")


def read_html(source: str) -> Readable:
    """What a reader sees of a page, whatever the markup is worth: never raises, and takes linear time.

    Scripts, styles, templates, frames and the title element are left out; block elements make paragraphs, list items,
    rows and `br` make lines, cells are set apart by tabs; whitespace collapses except in `pre`. A tag or comment that
    never ends hides the rest, as it does in a browser.
    """
    return _Page(source).read()


class _Page:
    def __init__(self, source: str) -> None:
        self._source = source
        self._out = StringIO()
        self._length = 0
        self._map = SourceMap()
        self._separator = ""
        self._pre = 0
        self._awaited_level = 0
        """The level of a heading whose text has not begun yet."""
        self._headings: list[list[int]] = []
        """Of each heading its start, level, and end, which is its start as long as it is not known."""

    def read(self) -> Readable:
        at = 0
        while at < len(self._source):
            at = self._step(at)
        text = self._out.getvalue()
        headings = Headings()
        for start, level, end in self._headings:
            title = text[
                start : min(end, start + 2 * TITLE_CHARACTERS) if end > start else start + 2 * TITLE_CHARACTERS
            ]
            headings.add(start, level, title.partition(_PARAGRAPH)[0])
        return Readable(text, headings, self._map)

    def _step(self, at: int) -> int:
        """Read what begins at an offset; return where the next thing begins."""
        if match := (_preformatted if self._pre else _text).match(self._source, at):
            text = match.group()
            self._write(text if self._pre else text.translate(_to_spaces))
            self._map.copied(self._length - len(text), at)
            return match.end()
        if match := _space.match(self._source, at):
            self._separate(_WORD)
            return match.end()
        if self._source[at] == "&":
            return self._read_reference(at)
        return self._read_markup(at)

    def _read_reference(self, at: int) -> int:
        match = _reference.match(self._source, at)
        text = unescape(match.group()) if match else "&"
        if match is None or text == match.group():
            self._write("&")
            self._map.copied(self._length - 1, at)
            return at + 1
        if text.isspace() and text.isascii() and not self._pre:
            self._separate(_WORD)
        elif text:
            self._write(text)
            # The digits of a number may be many; only its first ones count as its place then.
            self._map.decoded(self._length - len(text), at, min(match.end() - at, 255))
        return match.end()

    def _read_markup(self, at: int) -> int:
        source = self._source
        following = source[at + 1 : at + 2]
        if following.isascii() and following.isalpha():
            return self._read_tag(at)
        if source.startswith("<!--", at):
            if source.startswith((">", "->"), at + 4):
                return source.index(">", at) + 1
            match = _comment_end.search(source, at + 4)
            return match.end() if match else len(source)
        if following in ("!", "?"):
            return _after(source.find(">", at), source)
        if following == "/":
            name = source[at + 2 : at + 3]
            return self._read_tag(at) if name.isascii() and name.isalpha() else _after(source.find(">", at), source)
        self._write("<")
        self._map.copied(self._length - 1, at)
        return at + 1

    def _read_tag(self, at: int) -> int:
        match = _tag.match(self._source, at)
        if not match:
            return len(self._source)
        name, closing = match.group(2).lower(), bool(match.group(1))
        if name == "br" and self._separator == _LINE:
            self._separate(_PARAGRAPH)
        elif separator := _SEPARATORS.get(name):
            self._separate(separator)
        if name == "pre":
            self._pre = max(self._pre + (-1 if closing else 1), 0)
        if level := _HEADING_LEVELS.get(name):
            self._end_heading()
            self._awaited_level = 0 if closing else level
        if not closing:
            if name in _SKIPPED_RAW:
                end = _raw_ends[name].search(self._source, match.end())
                return end.start() if end else len(self._source)
            if name == "template":
                return self._after_template(match.end())
        return match.end()

    def _after_template(self, at: int) -> int:
        depth = 1
        for match in _template.finditer(self._source, at):
            depth += -1 if match.group(1) else 1
            if not depth:
                return match.start()
        return len(self._source)

    def _end_heading(self) -> None:
        if self._headings and self._headings[-1][2] == self._headings[-1][0]:
            self._headings[-1][2] = self._length

    def _separate(self, separator: str) -> None:
        if _STRENGTH[separator] > _STRENGTH[self._separator]:
            self._separator = separator

    def _write(self, text: str) -> None:
        if self._separator:
            if self._length:
                self._out.write(self._separator)
                self._length += len(self._separator)
            self._separator = ""
        if self._awaited_level:
            self._headings.append([self._length, self._awaited_level, self._length])
            self._awaited_level = 0
        self._out.write(text)
        self._length += len(text)


def _after(found: int, source: str) -> int:
    return found + 1 if found >= 0 else len(source)
