"""Ranked lists become one: the two searchers' by fusion, and what a reranker says by a blend. Pure.

A list is (chunk id, score) pairs, best first, each id once. What comes out is sorted by the fused score, highest first;
equal scores are ordered by id, so the same lists always give the same order.
"""

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple, TypeAlias

from schemas import Fusion

Ranked: TypeAlias = Sequence[tuple[str, float]]

RRF_K = 60
"""Of Cormack, Clarke and Büttcher, who found results to change little around it."""


class Shares(NamedTuple):
    """What a list's scores are worth in a fusion, by chunk, and what it is worth to be missing from the list."""

    found: Mapping[str, float]
    missing: float = 0.0

    def of(self, chunk: str) -> float:
        return self.found.get(chunk, self.missing)


class Fused(NamedTuple):
    """Both lists as one, and the shares that it was made of."""

    ranked: list[tuple[str, float]]
    dense: Shares
    bm25: Shares


def fuse(dense: Ranked | None, bm25: Ranked | None, fusion: Fusion) -> Fused:
    """As the query asks for it. None is a searcher that could not answer: the other one then has all the weight.

    Without that, a query with `alpha` 0 would get the dense list in the order of its ids while OpenSearch is away.
    """
    if fusion.method == "rrf":
        shares = Shares(reciprocal_ranks(dense or ())), Shares(reciprocal_ranks(bm25 or ()))
        return _weighed(*shares, dense_weight=1.0, bm25_weight=1.0)
    normalise = z_score if fusion.method == "zscore" else min_max
    alpha = 1.0 if bm25 is None else 0.0 if dense is None else fusion.alpha
    return _weighed(normalise(dense or ()), normalise(bm25 or ()), dense_weight=alpha, bm25_weight=1 - alpha)


def min_max(ranked: Ranked) -> Shares:
    """Scores stretched to 0..1, as Bruch, Gai and Ingber do ("An Analysis of Fusion Functions for Hybrid Retrieval",
    ACM TOIS 2023), who find the convex combination of such scores ahead of RRF.

    Where all are equal, or there is only one, each is 1: a chunk that was not found has the 0.
    """
    if not ranked:
        return Shares({})
    low, high = _range(ranked)
    if high == low:
        return Shares(dict.fromkeys((chunk for chunk, _ in ranked), 1.0))
    return Shares({chunk: (score - low) / (high - low) for chunk, score in ranked})


def z_score(ranked: Ranked) -> Shares:
    """Scores moved to a mean of 0 and stretched to a standard deviation of 1: Montague and Aslam, "Relevance Score
    Normalization for Metasearch" (CIKM 2001), where it is called ZMUV.

    A chunk that is missing is worth what the list's last one is, as with `min_max`: 0 would be the mean, and put it
    before half of what was found. Where all scores are equal, or there is only one, each is 0 and a missing one -1.
    """
    if not ranked:
        return Shares({})
    low, high = _range(ranked)
    mean = math.fsum(score for _, score in ranked) / len(ranked)
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for _, score in ranked) / len(ranked))
    if high == low or deviation == 0:  # Squares of tiny distances can vanish.
        return Shares(dict.fromkeys((chunk for chunk, _ in ranked), 0.0), missing=-1.0)
    return Shares({chunk: (score - mean) / deviation for chunk, score in ranked}, missing=(low - mean) / deviation)


def reciprocal_ranks(ranked: Ranked, *, k: int = RRF_K) -> dict[str, float]:
    """`1 / (k + rank)`, ranks from 1; the sum over the lists is what counts.

    Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods"
    (SIGIR 2009).
    """
    return {chunk: 1 / (k + rank) for rank, (chunk, _) in enumerate(ranked, start=1)}


def blend(first: Ranked, reranked: Mapping[str, float], *, weight: float) -> list[tuple[str, float]]:
    """`weight * minmax(reranked) + (1 - weight) * minmax(first)` over the chunks that were reranked, which are the best
    of `first`; those behind them keep their order, with scores of at most 0.

    So a reranker that is wrong, or reads another language than the documents', moves hits and doesn't replace them.
    """
    candidates = [(chunk, score) for chunk, score in first if chunk in reranked]
    if not candidates:
        return list(first)
    by_first, by_reranker = min_max(candidates), min_max(list(reranked.items()))
    blended = _ordered(
        {chunk: weight * by_reranker.of(chunk) + (1 - weight) * by_first.of(chunk) for chunk, _ in candidates}
    )
    low, high = _range(candidates)
    stretch = (1 - weight) / (high - low if high > low else 1.0)
    return blended + [(chunk, stretch * (score - low)) for chunk, score in first if chunk not in reranked]


def _weighed(dense: Shares, bm25: Shares, *, dense_weight: float, bm25_weight: float) -> Fused:
    near, said = dense.found, bm25.found
    fused = {
        chunk: dense_weight * near.get(chunk, dense.missing) + bm25_weight * said.get(chunk, bm25.missing)
        for chunk in near.keys() | said.keys()
    }
    return Fused(_ordered(fused), dense, bm25)


def _range(ranked: Ranked) -> tuple[float, float]:
    scores = [score for _, score in ranked]
    return min(scores), max(scores)


def _ordered(fused: Mapping[str, float]) -> list[tuple[str, float]]:
    # A sort keeps what is equal in its order, reversed ones too.
    return sorted([(chunk, fused[chunk]) for chunk in sorted(fused)], key=itemgetter(1), reverse=True)
