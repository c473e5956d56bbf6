"""Measuring a deployment: its documents published, its questions asked, over the topics that apps use."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from math import isfinite
from typing import Protocol

from headrace.cli.publishing import Outgoing, deletion, outgoing
from headrace.cli.sources import Found, Problem, Skipped
from headrace.errors import HeadraceError, Transient
from headrace.evaluation import (
    Dataset,
    Question,
    RetrievalSetting,
    Seen,
    SettingReport,
    document_values,
    evidence_values,
    measured,
    nearest,
)
from headrace.evaluation.measures import EVIDENCE_AT, RANKED
from schemas import Answer, Chunking, Document, Fusion, Hit, Key, Query

PASSAGES = 50
"""Asked for where evidence is looked for: 1,000 words are 50 passages of 20 words."""
STALLED_ROUNDS = 3
"""A question is asked again as long as others are answered, and then so many times."""
LONGEST_WAIT_S = 10.0
AGAIN = frozenset({"rate_limited", "unavailable", "deadline_exceeded"})
"""Errors that pass."""

ALPHAS = tuple(round(0.1 * tenths, 1) for tenths in range(2, 9))
CHUNK_TOKENS = (128, 192, 256)
DEEPEST = 20
ENOUGH = 0.95
"""Of the answers that the first 20 passages have, the first k that are chosen have so many."""


def scratch_tenant(dataset: Dataset, chunking: Chunking, encoder: str) -> str:
    """Where a data set's documents go: the same for the same documents, cut and embedded in the same way."""
    slug = re.sub(r"[^a-z0-9]+", "-", dataset.name.lower()).strip("-")[:20]
    described = "\0".join([dataset.digest, describe(chunking), encoder])
    return f"eval-{slug or 'set'}-{blake2b(described.encode(), digest_size=5).hexdigest()}"


def describe(chunking: Chunking) -> str:
    return f"{chunking.strategy} {chunking.max_tokens}/{chunking.overlap_tokens}"


def documents(dataset: Dataset, tenant: str, chunking: Chunking) -> Iterator[Outgoing | Problem | Skipped]:
    """To be published. What is live already comes back as `unchanged`."""
    for passage in dataset.documents():
        document = Document(text=passage.text, title=passage.title, chunking=chunking)
        key = Key(tenant, passage.doc_id)
        yield outgoing(Found(where=f"{dataset.name} {passage.doc_id}", key=key, document=document))


def deletions(dataset: Dataset, tenant: str) -> Iterator[Outgoing]:
    return (deletion(Key(tenant, passage.doc_id), None) for passage in dataset.documents())


class Show(Protocol):
    """Whoever shows how it goes: `of` questions are being asked, so many are answered."""

    def __call__(self, what: str, answered: int, of: int) -> None: ...


class Asks(Protocol):
    """Whoever can be asked many questions at a time."""

    def ask_many(
        self,
        queries: Sequence[Query],
        *,
        timeout_s: float,
        in_flight: int = 16,
        answered: Callable[[int], None] = lambda _: None,
    ) -> list[Answer | None]:
        """In the order of the queries; None where no answer came in time."""


@dataclass(frozen=True, kw_only=True)
class Interview:
    """Asks a tenant's documents, many questions at a time."""

    asker: Asks
    tenant: str
    in_flight: int
    timeout_s: float
    show: Show

    def measure(
        self, setting: RetrievalSetting, questions: Sequence[Question], *, at: Sequence[int] = EVIDENCE_AT
    ) -> SettingReport:
        """Raises HeadraceError when a question was not answered, or without a part that the setting needs: such an
        answer would lower the measures and say nothing of the setting.
        """
        started = time.monotonic()
        values: dict[str, dict[str, float]] = {}
        if judged := [question for question in questions if question.relevant]:
            hits = self._hits(setting, judged, RANKED, max_per_document=1)
            values |= document_values(judged, {name: [hit.doc_id for hit in found] for name, found in hits.items()})
        if located := [question for question in questions if question.evidence]:
            hits = self._hits(setting, located, PASSAGES, max_per_document=None)
            values |= evidence_values(located, {name: _seen(found) for name, found in hits.items()}, at=at)
        return SettingReport(
            setting=setting,
            measures={name: measured(by_question) for name, by_question in values.items()},
            seconds=round(time.monotonic() - started, 1),
        )

    def nearest(self, questions: Sequence[Question]) -> list[float]:
        """The cosine of each and its nearest hit, asked as by an app that says nothing of how to search.

        Raises HeadraceError as `measure` does, and where no hit at all has a cosine.
        """
        answers = self._answers("relevance", [Query(query=question.text, tenant=self.tenant) for question in questions])
        cosines = [nearest(answer.hits) for answer in answers]
        if not any(isfinite(cosine) for cosine in cosines):
            raise HeadraceError(f"no hit of tenant {self.tenant} has a cosine that a threshold could be tuned on")
        return cosines

    def _hits(
        self, setting: RetrievalSetting, questions: Sequence[Question], top_k: int, *, max_per_document: int | None
    ) -> dict[str, list[Hit]]:
        queries = [
            Query(
                query=question.text,
                tenant=self.tenant,
                top_k=top_k,
                fusion=setting.fusion,
                rerank=setting.rerank,
                max_per_document=max_per_document,
            )
            for question in questions
        ]
        answers = self._answers(setting.name, queries)
        return {question.id: answer.hits for question, answer in zip(questions, answers, strict=True)}

    def _answers(self, what: str, queries: Sequence[Query]) -> list[Answer]:
        good: dict[int, Answer] = {}
        stalled = 0
        while left := [place for place in range(len(queries)) if place not in good]:
            before = len(good)
            came = self.asker.ask_many(
                [queries[place] for place in left],
                timeout_s=self.timeout_s,
                in_flight=self.in_flight,
                answered=lambda count: self.show(what, len(good) + count, len(queries)),  # noqa: B023 - called at once
            )
            good |= {place: answer for place, answer in zip(left, came, strict=True) if answer and not wrong(answer)}
            bad = [answer for answer in came if answer is None or wrong(answer)]
            if not bad:
                break
            stalled = 0 if len(good) > before else stalled + 1
            # Where every answer lacks the reranker there is none; now and then one may have come too late.
            none_reranked = not good and all(answer is not None and "rerank" in answer.degraded for answer in bad)
            if none_reranked or stalled == STALLED_ROUNDS or not all(passes(answer) for answer in bad):
                raise _unanswered(what, bad, len(queries))
            time.sleep(_wait_s(bad))
        return [good[place] for place in range(len(queries))]


def wrong(answer: Answer) -> str | None:
    """Why an answer says nothing of the setting that was asked for."""
    if answer.error is not None:
        return f"{answer.error.code}: {answer.error.message}"
    if answer.degraded:
        return f"answered without {', '.join(answer.degraded)}"
    return None


def passes(answer: Answer | None) -> bool:
    """Whether the same question may be answered when it is asked again."""
    return answer is None or answer.error is None or answer.error.code in AGAIN


def _unanswered(what: str, bad: Sequence[Answer | None], asked: int) -> HeadraceError:
    if all(answer is None for answer in bad) and len(bad) == asked:
        return Transient(
            "query",
            f"no question of {asked:,} was answered; `headrace status` says whether the query worker is running",
        )
    reasons = Counter("no reply in time" if answer is None else wrong(answer) or "" for answer in bad)
    told = "; ".join(f"{count:,} x {reason}" for reason, count in reasons.most_common(3))
    hint = ""
    if any(answer is not None and "rerank" in answer.degraded for answer in bad):
        hint = " (HEADRACE_RERANK__ENABLED=true gives the query worker a reranker)"
    return HeadraceError(
        f"{what}: {len(bad):,} of {asked:,} questions were not answered as they should be: {told}{hint}"
    )


def _wait_s(bad: Sequence[Answer | None]) -> float:
    asked_for = [answer.error.retry_after_ms or 0 for answer in bad if answer is not None and answer.error is not None]
    return min(max([1000, *asked_for]) / 1000, LONGEST_WAIT_S)


def _seen(hits: Sequence[Hit]) -> list[Seen]:
    return [Seen(doc_id=hit.doc_id, start=hit.start, end=hit.end, text=hit.text) for hit in hits]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A way of searching on the questions to tune on."""

    chunking: str
    setting: str
    value: float


@dataclass(kw_only=True)
class Tuned:
    """What was best on the questions to tune on, by `measure`. `passages` is None where no evidence is given."""

    measure: str
    chunking: Chunking
    setting: RetrievalSetting
    passages: int | None
    trials: list[Trial] = field(default_factory=list)


def tune(
    interview: Callable[[Chunking], Interview],
    questions: Sequence[Question],
    chunkings: Sequence[Chunking],
    *,
    tried: Callable[[Trial], None] = lambda _: None,
) -> Tuned:
    """Chunks first, then the weights of the fusions, then how many passages are read; the earlier of equals wins.

    By evidence in the first ten passages where evidence is given, else by nDCG@10.
    """
    measure = "evidence@10" if any(question.evidence for question in questions) else "nDCG@10"
    depths = tuple(range(1, DEEPEST + 1))
    trials: list[Trial] = []
    best: tuple[float, Chunking, RetrievalSetting, SettingReport] | None = None

    def attempt(chunking: Chunking, setting: RetrievalSetting) -> None:
        nonlocal best
        report = interview(chunking).measure(setting, questions, at=depths)
        value = report.measures[measure].interval.mean
        trials.append(Trial(chunking=describe(chunking), setting=setting.name, value=value))
        tried(trials[-1])
        if best is None or value > best[0]:
            best = (value, chunking, setting, report)

    middle = _weighted("convex", 0.5), _weighted("zscore", 0.5)
    for chunking in chunkings:
        for setting in middle:
            attempt(chunking, setting)
    chosen = best[1] if best is not None else chunkings[0]
    for setting in (_weighted(method, alpha) for method in ("convex", "zscore") for alpha in ALPHAS):
        if setting not in middle:
            attempt(chosen, setting)
    attempt(chosen, RetrievalSetting(name="rrf", fusion=Fusion(method="rrf")))
    _, chunking, setting, report = best or _nothing()
    return Tuned(measure=measure, chunking=chunking, setting=setting, passages=_passages(report, depths), trials=trials)


def chunkings_to_try(default: Chunking, most_tokens: int) -> list[Chunking]:
    """The deployment's first, then other sizes with a quarter of overlap."""
    others = [
        Chunking(strategy=default.strategy, max_tokens=tokens, overlap_tokens=tokens // 4)
        for tokens in CHUNK_TOKENS
        if tokens <= most_tokens
    ]
    return [default, *(chunking for chunking in others if chunking.max_tokens != default.max_tokens)]


def _weighted(method: str, alpha: float) -> RetrievalSetting:
    fusion = Fusion(method="zscore" if method == "zscore" else "convex", alpha=alpha)
    return RetrievalSetting(name=f"{method} {alpha:g}", fusion=fusion)


def _passages(report: SettingReport, depths: Sequence[int]) -> int | None:
    means = {k: report.measures[f"evidence@{k}"].interval.mean for k in depths if f"evidence@{k}" in report.measures}
    if not means:
        return None
    return min(k for k, mean in means.items() if mean >= ENOUGH * means[DEEPEST])


def _nothing() -> tuple[float, Chunking, RetrievalSetting, SettingReport]:
    raise AssertionError("at least one chunking is tried")
