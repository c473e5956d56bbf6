"""Two ranked lists become one. Pure.

A list is (chunk id, score) pairs, best first, each id once. What comes out is sorted by the fused score, highest first;
equal scores are ordered by id, so the same lists always give the same order. A chunk that is missing from a list gets 0
from it.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from schemas import Fusion

Ranked: TypeAlias = Sequence[tuple[str, float]]

RRF_K = 60
"""Of Cormack, Clarke and Büttcher, who found results to change little around it."""


def fuse(dense: Ranked | None, bm25: Ranked | None, fusion: Fusion) -> list[tuple[str, float]]:
    """As the query asks for it. None is a searcher that could not answer: the other one then has all the weight.

    Without that, a query with `alpha` 0 would get the dense list in the order of its ids while OpenSearch is away.
    """
    if fusion.method == "rrf":
        return reciprocal_rank(dense or (), bm25 or ())
    alpha = 1.0 if bm25 is None else 0.0 if dense is None else fusion.alpha
    return convex(dense or (), bm25 or (), alpha=alpha)


def convex(dense: Ranked, bm25: Ranked, *, alpha: float = 0.5) -> list[tuple[str, float]]:
    """`alpha * minmax(dense) + (1 - alpha) * minmax(bm25)`, in 0..1.

    Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval" (ACM TOIS 2023), which finds it ahead
    of RRF.
    """
    dense_share, bm25_share = min_max(dense), min_max(bm25)
    return _ordered(
        {
            chunk: alpha * dense_share.get(chunk, 0.0) + (1 - alpha) * bm25_share.get(chunk, 0.0)
            for chunk in dense_share | bm25_share
        }
    )


def reciprocal_rank(dense: Ranked, bm25: Ranked, *, k: int = RRF_K) -> list[tuple[str, float]]:
    """The sum of `1 / (k + rank)` over the lists, ranks from 1.

    Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods"
    (SIGIR 2009).
    """
    fused: dict[str, float] = {}
    for ranked in (dense, bm25):
        for rank, (chunk, _) in enumerate(ranked, start=1):
            fused[chunk] = fused.get(chunk, 0.0) + 1 / (k + rank)
    return _ordered(fused)


def min_max(ranked: Ranked) -> dict[str, float]:
    """Scores stretched to 0..1. Where all are equal, or there is only one, each is 1:
    a chunk that was not found has the 0.
    """
    if not ranked:
        return {}
    scores = [score for _, score in ranked]
    low, high = min(scores), max(scores)
    if high == low:
        return dict.fromkeys((chunk for chunk, _ in ranked), 1.0)
    return {chunk: (score - low) / (high - low) for chunk, score in ranked}


def _ordered(fused: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(fused.items(), key=lambda item: (-item[1], item[0]))
