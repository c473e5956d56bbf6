"""Answers are shown as far as they are checked: each marker points to a passage that was given, and quoted text stands
in it. What doesn't is removed and counted.

A sentence, with the markers behind it, is checked as a whole and then shown, so a stream of any pieces is shown in
pieces of sentences, and how the text was cut changes nothing.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from headrace.llm.prompts import NO_ANSWER, Prompt, Source
from headrace.llm.quotations import NUMBERS, Span, Text, is_checked
from schemas import AnswerText, Citation

UNKNOWN_SOURCE = "unknown_source"
"""A marker's number is none of a source that was given."""
NOT_QUOTED = "not_quoted"
"""A quotation does not stand in the passages that its markers point to, or in any where it has none."""
UNCLOSED = "unclosed"
"""A quotation mark opens what nothing closes: the mark goes, so that what stands there claims less."""

QUOTATION_LIMIT = 2000
"""Characters: what opens and does not close within as many, or within its paragraph, is no quotation."""
SENTENCE_LIMIT = 4000
"""Characters: what is longer is shown in parts."""
MARKER_LIMIT = 80
"""Characters: an open bracket with so many digits, commas and spaces behind it is no marker."""

# By the mark that opens: what closes the quotation, or ends the paragraph before it is closed.
_CLOSING_OF = {
    opening: re.compile(rf"{closing}|\n\n")
    for opening, closing in (
        ('"', r'(?<!\s)"'), ("“", "”"), ("„", "[“”]"), ("«", "»"), ("「", "」"), ("『", "』"),
    )
}  # fmt: skip
_BEFORE_STRAIGHT = " \t\n([{—–-/:*_>“«"
_MARKER = re.compile(NUMBERS)
_MARKER_BEGUN = re.compile(r"[\[【][\d \t,;–-]*\Z")
_RANGE = re.compile(r"(\d+)[ \t]*[–-][ \t]*(\d+)|(\d+)")
_CLOSING = ")]}\"'”’»*_"
_SPACED_ENDS, _UNSPACED_ENDS = ".!?…", "。！？"
_ENDS = _SPACED_ENDS + _UNSPACED_ENDS


class CitationChecker:
    """Takes an answer piece by piece. All that `feed` and `finish` return, put together, is the answer's text."""

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self._passages = [_Passage(source) for source in prompt.sources]
        self._question = Text(prompt.question)
        self._held = ""
        self._looked = 0
        """How far `_held` is known to have no sentence's end."""
        self._shown: list[str] = []
        self._gap = ""
        self._citations: dict[Citation, None] = {}
        self._unknown = False
        self.removals: Counter[str] = Counter()
        """What was removed, by reason."""

    @property
    def removed(self) -> int:
        return self.removals.total()

    def feed(self, piece: str) -> str:
        """What may be shown now, which may be nothing."""
        self._held += piece
        return self._release(final=False)

    def finish(self) -> tuple[str, AnswerText]:
        """The rest, and the whole. An answer of which nothing is left is not known."""
        rest = self._release(final=True)
        if not self._shown:
            self._unknown = True
            self._citations.clear()
            self._shown.append(rest := self._prompt.unknown_text)
        known = not self._unknown or bool(self._citations)
        whole = AnswerText(
            text="".join(self._shown), citations=[*self._citations], model=self._prompt.model, known=known
        )
        return rest, whole

    def _release(self, *, final: bool) -> str:
        before = len(self._shown)
        while self._held:
            end, self._looked = _sentence_end(self._held, self._looked, final=final)
            if end is None:
                break
            sentence, self._held = self._held[:end], self._held[end:]
            if checked := self._check(sentence):
                self._shown.append(checked)
        return "".join(self._shown[before:])

    def _check(self, sentence: str) -> str:
        """The sentence without what is wrong, white space before it included."""
        if self._unknown:
            return ""
        if NO_ANSWER in sentence:
            # What came before was shown and stays. What follows would explain what nobody has asked.
            self._unknown = True
            return ""
        edits = _Edits(sentence)
        groups = [_Group(span, *self._numbers(sentence, span)) for span in _markers(sentence)]
        quotations = [_Quotation(span, sentence[span.start + 1 : span.end - 1]) for span in self._quoted(edits)]
        self._match(quotations, groups, edits)
        for group in groups:
            self._settle(group, edits)
        lead = sentence[: len(sentence) - len(sentence.lstrip())]
        # Where a sentence goes, the paragraphs around it stay apart.
        self._gap = max(self._gap, lead, key=lambda space: (space.count("\n"), len(space)))
        kept = edits.text().strip()
        if not kept or (edits and not any(character.isalnum() for character in kept)):
            return ""
        for group in groups:
            self._citations.update(dict.fromkeys(group.citations(self._passages, sentence)))
        gap, self._gap = self._gap, ""
        return (gap if self._shown else "") + kept

    def _numbers(self, sentence: str, span: Span) -> tuple[list[int], int]:
        """The sources that a marker names, and how many of its numbers are of none."""
        named: list[int] = []
        for first, last, single in _RANGE.findall(sentence[span.start : span.end]):
            # A range of more than was given is cut down; it is no reason to count to a million.
            stop = min(int(last), len(self._passages) + 1) if last else 0
            named += range(int(first), stop + 1) if last else [int(single)]
        given = [number for number in dict.fromkeys(named) if 1 <= number <= len(self._passages)]
        return given, len(set(named) - set(given)) if named else 1

    def _quoted(self, edits: "_Edits") -> Iterator[Span]:
        """Quotations to be checked; marks that open what doesn't close are taken away."""
        for span in _quotations(edits.original):
            if span.end == span.start + 1:
                edits.remove(span)
                self.removals[UNCLOSED] += 1
            elif is_checked(_MARKER.sub("", edits.original[span.start : span.end])):
                yield span

    def _match(self, quotations: "Sequence[_Quotation]", groups: "Sequence[_Group]", edits: "_Edits") -> None:
        for quotation in quotations:
            quotation.attribute(groups, edits.original)
            numbers = list(dict.fromkeys(number for group in quotation.run for number in group.numbers))
            for number in numbers or range(1, len(self._passages) + 1):
                if (place := self._passages[number - 1].find(quotation.text)) is not None:
                    quotation.places[number] = place
            # To quote the question is no claim about a source, unless a marker makes it one.
            quotation.found = bool(quotation.places) or (
                not quotation.marked and self._question.find(quotation.text) is not None
            )
        for quotation in quotations:
            if not quotation.found:
                self.removals[NOT_QUOTED] += 1
                edits.remove(quotation.span, tidy=True)
                for group in quotation.own:
                    group.failed = True
                    group.gone = group.gone or quotation.holds(group)
                continue
            for group in quotation.run:
                if quotation.holds(group):
                    group.keep_only(quotation.places)
                group.quoted.append(quotation)
        for group in groups:
            # A marker that points to nothing but quotations that aren't there goes with them.
            group.gone = group.gone or (group.failed and not group.quoted)

    def _settle(self, group: "_Group", edits: "_Edits") -> None:
        if group.foreign:
            self.removals[UNKNOWN_SOURCE] += group.foreign
        if group.gone or not group.numbers:
            group.gone = True
            edits.remove(group.span)
        elif group.foreign:
            opening, closing = edits.original[group.span.start], edits.original[group.span.end - 1]
            group.marker = opening + ", ".join(map(str, group.numbers)) + closing
            edits.replace(group.span, group.marker)


class _Passage:
    def __init__(self, source: Source) -> None:
        self._source = source
        self.whole = Span(source.start, source.end)
        self._text = Text(source.text)
        self._about = [Text(about) for about in (source.title, source.source) if about]

    def find(self, quotation: str) -> Span | None:
        """Where the document has it, in characters of the document as it was sent; the whole passage's place where that
        can't be said: of HTML, and of a title.
        """
        span = self._text.find(quotation)
        if span is None:
            return self.whole if any(about.find(quotation) for about in self._about) else None
        if not self._source.exact:
            return self.whole
        return Span(self._source.start + span.start, self._source.start + span.end)

    def citation(self, marker: str, place: Span) -> Citation:
        hit = self._source.hit
        return Citation(marker=marker, chunk_id=hit.chunk_id, doc_id=hit.doc_id, start=place.start, end=place.end)


class _Quotation:
    """`span` is in characters of the sentence, marks included; `places` by source, in those of the document."""

    def __init__(self, span: Span, text: str) -> None:
        self.span = span
        self.text = text
        self.run: list[_Group] = []
        """The markers that say where it is from."""
        self.own: list[_Group] = []
        """Those of them that are there for nothing else."""
        self.marked = False
        """Whether a marker is within it or directly behind it."""
        self.places: dict[int, Span] = {}
        self.found = False

    def holds(self, group: "_Group") -> bool:
        return self.span.start < group.span.start < self.span.end

    def attribute(self, groups: "Sequence[_Group]", sentence: str) -> None:
        """By the markers within it and the first behind it in the sentence, with all that follow that one directly;
        without any of these, by the last ones before it.
        """
        inside = [group for group in groups if self.holds(group)]
        behind = [*_adjacent([group for group in groups if group.span.start >= self.span.end], sentence)]
        directly = bool(behind) and not sentence[self.span.end : behind[0].span.start].strip(" \t.,;:")
        marked = any(group.numbers for group in inside)
        self.marked = marked or directly
        self.run = inside + behind
        self.own = inside if marked and not directly else self.run
        if not self.run:
            self.run = [*_adjacent([group for group in groups[::-1] if group.span.end <= self.span.start], sentence)]


class _Group:
    """One marker: `numbers` of sources that were given, and how many `foreign` ones."""

    def __init__(self, span: Span, numbers: list[int], foreign: int) -> None:
        self.span = span
        self.numbers = numbers
        self.foreign = foreign
        self.quoted: list[_Quotation] = []
        self.failed = False
        self.gone = False
        self.marker: str | None = None

    def keep_only(self, numbers: Collection[int]) -> None:
        """A number within a quotation that points elsewhere came with the text: papers cite in the same way."""
        kept = [number for number in self.numbers if number in numbers]
        self.foreign += len(self.numbers) - len(kept)
        self.numbers = kept

    def citations(self, passages: Sequence[_Passage], sentence: str) -> Iterator[Citation]:
        if self.gone:
            return
        marker = self.marker or sentence[self.span.start : self.span.end]
        for number in self.numbers:
            places = [one.places[number] for one in self.quoted if number in one.places]
            passage = passages[number - 1]
            for place in places or [passage.whole]:
                yield passage.citation(marker, place)


class _Edits:
    """Changes to a sentence, made all at once at the end."""

    def __init__(self, original: str) -> None:
        self.original = original
        self._changes: list[tuple[Span, str]] = []

    def __bool__(self) -> bool:
        return bool(self._changes)

    def replace(self, span: Span, text: str) -> None:
        self._changes.append((span, text))

    def remove(self, span: Span, *, tidy: bool = False) -> None:
        """With the white space before it, and with `tidy` also a comma or colon that led up to it."""
        start = span.start
        if span.end - span.start > 1:
            start = len(self.original[:start].rstrip(" \t"))
            if tidy and self.original[:start].endswith((",", ":", ";")):
                start -= 1
        end = span.end
        if self.original[:start].endswith((*_ENDS,)) and self.original[end:].startswith((*_ENDS,)):
            end += 1  # Of the two full stops around it, one stays.
        self._changes.append((Span(start, end), ""))

    def text(self) -> str:
        parts, at = [], 0
        for span, text in sorted(self._changes):
            if span.end > at:
                parts += [self.original[at : max(at, span.start)], text]
                at = span.end
        return "".join([*parts, self.original[at:]])


def _adjacent(groups: Sequence[_Group], sentence: str) -> Iterator[_Group]:
    last: Span | None = None
    for group in groups:
        if last is not None:
            left, right = sorted((last, group.span))
            if sentence[left.end : right.start].strip(" \t,;"):
                return
        last = group.span
        yield group


def _markers(sentence: str) -> list[Span]:
    return [Span(*found.span()) for found in _MARKER.finditer(sentence) if len(found[0]) <= MARKER_LIMIT]


def _marker_end(text: str, at: int, *, final: bool) -> int | None:
    """The character after the marker that begins at `at`: `at` itself where none does; None while more must come."""
    found = _MARKER.match(text, at)
    if found is not None and len(found[0]) <= MARKER_LIMIT:
        return found.end()
    if not final and len(text) - at <= MARKER_LIMIT and _MARKER_BEGUN.match(text, at):
        return None
    return at


def _quotations(sentence: str) -> Iterator[Span]:
    """Those that close, and as spans of one character the marks that open what doesn't."""
    at = 0
    while at < len(sentence):
        end = _quotation_end(sentence, at, final=True)
        if end is None or end == at:
            at += 1
        else:
            yield Span(at, end)
            at = end


def _sentence_end(text: str, since: int, *, final: bool) -> tuple[int | None, int]:
    """Where the first sentence of `text` ends, markers behind it included and white space not; None while that can't be
    told, and from where to look again then. It depends on no character that a longer text could have otherwise.
    """
    at, begun = since, bool(text[:since].strip())
    while at < len(text):
        character = text[at]
        if character.isspace():
            if begun and (character == "\n" or at >= SENTENCE_LIMIT):
                return at, 0
            at += 1
            continue
        begun = True
        if at >= 2 * SENTENCE_LIMIT:
            return at, 0
        if (past := _past_unit(text, at, final=final)) is None:
            return None, at
        # A quotation's own full stop, before its closing mark, may also be the sentence's.
        last = character if past == at + 1 else text[past - 2]
        if last in _ENDS:
            end = _past_ending(text, past, final=final, spaced=last in _SPACED_ENDS)
            if end is None:
                return None, at
            if end:
                return end, 0
        at = past
    return (len(text), 0) if final else (None, at)


def _past_unit(text: str, at: int, *, final: bool) -> int | None:
    """The character after the marker, the quotation or the single character at `at`; None while more must come."""
    end = _marker_end(text, at, final=final) if text[at] in "[【" else _quotation_end(text, at, final=final)
    return max(end, at + 1) if end is not None else None


def _quotation_end(text: str, at: int, *, final: bool) -> int | None:
    """The character after the quotation that opens at `at`: `at` itself where none does, `at + 1` where none closes;
    None while more must come.
    """
    closing = _CLOSING_OF.get(text[at])
    if closing is None:
        return at
    if text[at] == '"':
        if at > 0 and text[at - 1] not in _BEFORE_STRAIGHT:
            return at
        if at + 1 == len(text) and not final:
            return None
        if text[at + 1 : at + 2].strip() == "":
            return at
    limit = at + 1 + QUOTATION_LIMIT
    found = closing.search(text, at + 1, limit)
    if found is not None:
        # „“ is no quotation: the second mark may open one.
        return at + 1 if found[0] == "\n\n" or found.start() == at + 1 else found.end()
    return at + 1 if final or len(text) >= limit else None


def _past_ending(text: str, at: int, *, final: bool, spaced: bool) -> int | None:
    """Where a sentence ends whose full stop is before `at`: behind closing marks and markers. 0 where it goes on; None
    while more must come.
    """
    end = at
    while end < len(text) and text[end] in _CLOSING + _ENDS:
        end += 1
    closed = end
    while True:
        at = end
        while at < len(text) and text[at] in " \t":
            at += 1
        if at == len(text):
            return end if final else None
        if text[at] not in "[【":
            break
        marker = _marker_end(text, at, final=final)
        if marker is None:
            return None
        if marker == at:
            break
        end = marker
        # A full stop may also come behind the marker that follows one, as in `said." [1].`
        while end < len(text) and text[end] in _ENDS:
            end += 1
    if end == closed and spaced and (at == end or text[at].islower()):
        return 0
    return end
