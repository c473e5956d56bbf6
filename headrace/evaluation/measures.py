"""Measures, one value a question."""

from collections.abc import Mapping, Sequence

import msgspec

from headrace.evaluation.questions import Question, Span

RANKED = 100
"""Documents of a ranking that are looked at."""
_NAMES = {"nDCG@10": "nDCG@10", "R@100": "recall@100", "RR@10": "MRR@10"}
DOCUMENT_MEASURES = tuple(_NAMES.values())
EVIDENCE_AT = (1, 3, 5, 10)
WORD_BUDGETS = (500, 1000)
EVIDENCE_MEASURES = (
    *(f"evidence@{k}" for k in EVIDENCE_AT),
    *(f"evidence in {budget:,} words" for budget in WORD_BUDGETS),
)


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A passage that came back."""

    doc_id: str
    start: int
    end: int
    text: str


def document_values(questions: Sequence[Question], ranked: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """By measure and question's id. `ranked` are doc_ids, best first; a document that comes again counts once."""
    import ir_measures

    judged = {question.id: question.relevant for question in questions if question.relevant}
    # Their order is what was answered; equal scores would be put in another one.
    run = {name: {doc: -float(rank) for rank, doc in enumerate(_distinct(ranked[name]))} for name in judged}
    values = {name: dict.fromkeys(judged, 0.0) for name in DOCUMENT_MEASURES}
    for metric in ir_measures.iter_calc([ir_measures.parse_measure(name) for name in _NAMES], judged, run):
        values[_NAMES[str(metric.measure)]][metric.query_id] = float(metric.value)
    return values


def evidence_values(
    questions: Sequence[Question], passages: Mapping[str, Sequence[Seen]], *, at: Sequence[int] = EVIDENCE_AT
) -> dict[str, dict[str, float]]:
    """By measure and the id of each question that has evidence: 1 where a passage among the first k is of the right
    document and covers at least half of an answer's span, else 0. Of a word budget, the passages are read in their
    order until so many words are read, the last one perhaps in part.
    """
    values: dict[str, dict[str, float]] = {}
    for question in questions:
        if not question.evidence:
            continue
        found = passages[question.id]
        first = _first_rank(question.evidence, found)
        for k in at:
            values.setdefault(f"evidence@{k}", {})[question.id] = float(first is not None and first <= k)
        for budget in WORD_BUDGETS:
            read = _first_rank(question.evidence, _read(found, budget))
            values.setdefault(f"evidence in {budget:,} words", {})[question.id] = float(read is not None)
    return values


def covers(passage: Seen, span: Span) -> bool:
    """At least half of it."""
    shared = min(passage.end, span.end) - max(passage.start, span.start)
    return passage.doc_id == span.doc_id and 2 * shared >= span.end - span.start


def _first_rank(evidence: Sequence[Span], passages: Sequence[Seen]) -> int | None:
    ranks = (rank for rank, seen in enumerate(passages, start=1) if any(covers(seen, span) for span in evidence))
    return next(ranks, None)


def _read(passages: Sequence[Seen], budget: int) -> list[Seen]:
    """What is read with so many words."""
    read: list[Seen] = []
    for passage in passages:
        words = passage.text.split()
        if len(words) > budget:
            # Where the text is a slice of the document, as it is but for HTML, this is just where reading ends.
            rest = passage.text.split(maxsplit=budget)[budget] if budget else passage.text
            read.append(msgspec.structs.replace(passage, end=min(passage.end, passage.end - len(rest))))
            return read
        read.append(passage)
        budget -= len(words)
    return read


def _distinct(ranked: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(ranked))[:RANKED]
