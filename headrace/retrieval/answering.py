"""An answer without a language model: the sentences of the best hits that are nearest to the question,
each with its citation.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import sentencex  # type: ignore[import-untyped]

from headrace.encoders import Encoder
from headrace.retrieval.settings import RetrievalSettings
from schemas import AnswerText, Citation, Hit

MODEL = "extractive"
NOTHING_FOUND = "Nothing relevant was found."

RANK_WEIGHT = 0.1
"""What a first hit's sentence has ahead of the others: it decides between sentences that are about as near to the
question.

On 107 questions of COVID-QA the best cosine and the third best lie 0.09 apart; with a weight of 0 to 0.2, 31 to 33
answers held the evidence, too few to tell these weights apart; with 1 there were 25.
"""
MIN_WORDS = 4
"""Less is a heading, a label or a leftover."""

_WORD = re.compile(r"\w+")
# Written without spaces between words: there, one character says about what half a word does.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")
_HEADING = re.compile(r"#{1,6}\s")
_ENDED = re.compile(r"[.!?…。！？।؟][\"'”’»)\]*_]*$")


class Sentence(NamedTuple):
    """`start` and `end` are character offsets into the hit's text, white space at its ends left out."""

    hit: Hit
    start: int
    end: int

    @property
    def text(self) -> str:
        return self.hit.text[self.start : self.end]

    @property
    def place(self) -> tuple[int, int]:
        """Character offsets into the document's text as it was sent;
        the whole hit's where its text is not that slice (HTML).
        """
        hit = self.hit
        if len(hit.text) != hit.end - hit.start:
            return hit.start, hit.end
        return hit.start + self.start, hit.start + self.end


def extractive_answer(question: str, hits: Sequence[Hit], encoder: Encoder, settings: RetrievalSettings) -> AnswerText:
    """At most `answer_sentences` sentences of the first `answer_passages` hits, quoted as they stand; blocks while it
    encodes them.

    A sentence's score is its cosine to the question and a little for its hit's rank. Each is followed by a marker of
    its own (`[1]`), and the citation of that marker locates the sentence itself. Documents come in the order of their
    best sentences, the sentences of a document in the order of its text.
    """
    candidates = worth_saying([sentence for hit in hits[: settings.answer_passages] for sentence in sentences(hit)])
    if not candidates:
        return AnswerText(text=NOTHING_FOUND, citations=[], model=MODEL, known=False)
    [asked] = encoder.encode_queries([question])
    cosines = encoder.encode([sentence.text for sentence in candidates], truncate=True) @ asked
    scored = [
        (float(cosine) + RANK_WEIGHT / sentence.hit.rank, sentence)
        for cosine, sentence in zip(cosines, candidates, strict=True)
    ]
    # The sort is stable, so equal scores keep the hits' order.
    best = [sentence for _, sentence in sorted(scored, key=lambda item: -item[0])][: settings.answer_sentences]
    return _quoted(_readable(best))


def sentences(hit: Hit) -> list[Sentence]:
    """The hit's text, sentence by sentence, empty ones left out."""
    found = []
    # Its English rules are also the ones that sentencex falls back on; they know the full stops of most scripts.
    for boundary in sentencex.get_sentence_boundaries("en", hit.text):
        start, end = boundary["start_index"], boundary["end_index"]
        text = hit.text[start:end]
        start, end = start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())
        if start < end:
            found.append(Sentence(hit, start, end))
    return found


def worth_saying(found: Sequence[Sentence]) -> list[Sentence]:
    """Each thing once, and whole sentences only;
    fragments are better than nothing where there is no whole sentence at all.
    """
    distinct = list(_distinct(found))
    return [sentence for sentence in distinct if _is_whole(sentence)] or distinct


def _distinct(found: Iterable[Sentence]) -> Iterable[Sentence]:
    """Overlapping chunks give a sentence twice, and copied documents repeat each other: the better hit's stays."""
    said = set()
    for sentence in found:
        words = " ".join(_WORD.findall(sentence.text.casefold()))
        if words and words not in said:
            said.add(words)
            yield sentence


def _is_whole(sentence: Sentence) -> bool:
    text = sentence.text
    words = len(_WORD.findall(text)) + len(_UNSPACED.findall(text)) // 2
    # A chunk may begin within a sentence; the chunk before it, which overlaps, has it whole.
    cut_off = sentence.start == 0 and sentence.hit.ordinal > 0 and text[0].islower()
    return words >= MIN_WORDS and not cut_off and not _HEADING.match(text) and _ENDED.search(text) is not None


def _readable(best: Sequence[Sentence]) -> list[Sentence]:
    documents = list(dict.fromkeys(sentence.hit.doc_id for sentence in best))
    return sorted(
        best,
        key=lambda sentence: (documents.index(sentence.hit.doc_id), sentence.hit.start, sentence.start),
    )


def _quoted(chosen: Sequence[Sentence]) -> AnswerText:
    # Papers cite with the same brackets: a marker that a sentence brings along itself would point to the wrong place.
    written = " ".join(sentence.text for sentence in chosen)
    markers = (marker for number in itertools.count(1) if (marker := f"[{number}]") not in written)
    parts, citations = [], []
    for sentence, marker in zip(chosen, markers, strict=False):
        start, end = sentence.place
        parts.append(f"{' '.join(sentence.text.split())} {marker}")
        citations.append(
            Citation(marker=marker, chunk_id=sentence.hit.chunk_id, doc_id=sentence.hit.doc_id, start=start, end=end)
        )
    return AnswerText(text=" ".join(parts), citations=citations, model=MODEL)
