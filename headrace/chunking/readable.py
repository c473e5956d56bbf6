"""What a reader sees of a document: its text, its headings, and where each character stood in the source."""

from array import array
from bisect import bisect_right

TITLE_CHARACTERS = 200
"""What is kept of a heading. Chunks carry their headings, so without a bound one heading could outweigh all text."""


class Headings:
    """Headings in the order of the text; of each its offset in the readable text, its level (1 to 6) and its title."""

    def __init__(self) -> None:
        self.starts = array("I")
        self.levels = array("B")
        self.titles: list[str] = []

    def __len__(self) -> int:
        return len(self.starts)

    def add(self, start: int, level: int, title: str) -> None:
        self.starts.append(start)
        self.levels.append(level)
        self.titles.append(" ".join(title.split())[:TITLE_CHARACTERS].rstrip())


class SourceMap:
    """From a readable text back to its source.

    The readable text is made of stretches that were copied, and of character references, such as `&amp;`, that were
    decoded. What lies between them (whitespace that stands for markup) has no place in the source.
    """

    def __init__(self) -> None:
        self._readable = array("I")
        self._source = array("I")
        self._widths = array("B")
        """How many characters of the source a decoded stretch stands for; 0 marks a copied one."""

    def copied(self, readable: int, source: int) -> None:
        """From offset `readable` on, the text is that from offset `source` on."""
        if self._widths and not self._widths[-1] and self._source[-1] - self._readable[-1] == source - readable:
            return
        self._add(readable, source, 0)

    def decoded(self, readable: int, source: int, width: int) -> None:
        """What begins at `readable` stands for the `width` characters at `source`."""
        self._add(readable, source, width)

    def _add(self, readable: int, source: int, width: int) -> None:
        self._readable.append(readable)
        self._source.append(source)
        self._widths.append(width)

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The span of the source that a span of the readable text stands for; both end in non-whitespace characters."""
        return self._at(start)[0], self._at(end - 1)[1]

    def _at(self, readable: int) -> tuple[int, int]:
        k = bisect_right(self._readable, readable) - 1
        source, width = self._source[k], self._widths[k]
        if width:
            return source, source + width
        source += readable - self._readable[k]
        return source, source + 1


class Readable:
    """A document as it is cut. Without `source`, the readable text is the source."""

    def __init__(self, text: str, headings: Headings, source: SourceMap | None = None) -> None:
        self.text = text
        self.headings = headings
        self._source = source

    def source_span(self, start: int, end: int) -> tuple[int, int]:
        """Where `text[start:end]` stands in the document as it was sent."""
        return self._source.span(start, end) if self._source else (start, end)
