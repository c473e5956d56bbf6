"""Which `llm.min_relevance` tells questions that the documents answer from others, by the cosine of the nearest hit."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from headrace.evaluation.intervals import Interval, mean_interval
from schemas import Hit

SHOWN = tuple(hundredths / 100 for hundredths in range(10, 51, 5))
_TRIED = np.arange(-100, 101) / 100
"""A hundredth apart: more digits would be chance."""


class Cosines(NamedTuple):
    """Of each question and its nearest hit, as `nearest` has them."""

    answerable: Sequence[float]
    unanswerable: Sequence[float]


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    answerable: int
    unanswerable: int


class Threshold(msgspec.Struct, frozen=True, kw_only=True):
    """What it would do: of answerable questions the share that is `answered`, of the others that which is `unknown`."""

    threshold: float
    answered: Interval
    unknown: Interval


class Relevance(msgspec.Struct, frozen=True, kw_only=True):
    """`thresholds` rise, and tell of the questions that were not tuned on. `recommended` is one of them, or None where
    none is better than doing without.
    """

    recommended: float | None
    tuned_on: Counts
    reported_on: Counts
    thresholds: list[Threshold]


def nearest(hits: Sequence[Hit]) -> float:
    """The cosine that the threshold is held against. Without hits nothing is known at any threshold, and with hits that
    have no cosine, as BM25 alone finds them, everything passes: minus and plus infinity.
    """
    cosines = [hit.scores.dense for hit in hits if hit.scores.dense is not None]
    return max(cosines, default=np.inf if hits else -np.inf)


def tune_relevance(tune_on: Cosines, report_on: Cosines) -> Relevance:
    """Tuned on the first, reported on the second; raises ValueError where a kind of question is missing in either."""
    recommended = best_threshold(tune_on)
    shown = sorted({*SHOWN, *([] if recommended is None else [recommended])})
    return Relevance(
        recommended=recommended,
        tuned_on=_counts(tune_on),
        reported_on=_counts(report_on),
        thresholds=[
            Threshold(
                threshold=threshold,
                answered=mean_interval([float(cosine >= threshold) for cosine in report_on.answerable]),
                unknown=mean_interval([float(cosine < threshold) for cosine in report_on.unanswerable]),
            )
            for threshold in shown
        ],
    )


def best_threshold(cosines: Cosines) -> float | None:
    """Where the sum of both shares is greatest, the lowest of equals; None where that is not above 1, as without any.

    Youden, "Index for rating diagnostic tests", Cancer 3 (1950).
    """
    counts = _counts(cosines)
    if not counts.answerable or not counts.unanswerable:
        raise ValueError("a threshold is tuned on questions of both kinds")
    answered = (np.asarray(cosines.answerable)[:, None] >= _TRIED).sum(axis=0)
    unknown = (np.asarray(cosines.unanswerable)[:, None] < _TRIED).sum(axis=0)
    # Both shares times both counts: of whole numbers, equals are equal.
    sums = answered * counts.unanswerable + unknown * counts.answerable
    best = int(sums.argmax())
    return float(_TRIED[best]) if sums[best] > counts.answerable * counts.unanswerable else None


def _counts(cosines: Cosines) -> Counts:
    return Counts(answerable=len(cosines.answerable), unanswerable=len(cosines.unanswerable))
