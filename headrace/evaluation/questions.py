"""Questions, and what is known of their answers."""

from collections.abc import Sequence
from hashlib import blake2b

import msgspec


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """Where an answer stands: character offsets into the document's text as it was sent."""

    doc_id: str
    start: int
    end: int


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """`relevant` has a grade by doc_id, all above 0. Both it and `evidence` are empty where nothing answers it."""

    id: str
    text: str
    relevant: dict[str, int] = {}
    evidence: list[Span] = []


def halves(questions: Sequence[Question]) -> tuple[list[Question], list[Question]]:
    """To tune on, and to report on. A question's id decides, so it is always on the same side."""
    train: list[Question] = []
    test: list[Question] = []
    for question in questions:
        side = train if blake2b(question.id.encode(), digest_size=1).digest()[0] % 2 else test
        side.append(question)
    return train, test
