"""Ranked chunks to the hits of an answer. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from headrace.retrieval.fusion import Fused, Ranked, min_max
from headrace.stores.ports import Candidate, TextRow
from schemas import Explanation, Hit, HitScores


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """How live chunks came to their order, best first. `dense` and `bm25` are None for a searcher that was away,
    `reranked` has the reranker's scores.
    """

    order: Ranked
    dense: Sequence[Candidate] | None
    bm25: Sequence[Candidate] | None
    fused: Fused
    reranked: Mapping[str, float] = {}


def chosen(order: Ranked, documents: Mapping[str, str], *, top_k: int, max_per_document: int | None) -> Ranked:
    """The best `top_k`, with at most so many of one document. `documents` has the doc_id of each chunk."""
    if max_per_document is None:
        return order[:top_k]
    kept: list[tuple[str, float]] = []
    of_document: Counter[str] = Counter()
    for chunk, score in order:
        if len(kept) == top_k:
            break
        doc_id = documents[chunk]
        if of_document[doc_id] < max_per_document:
            of_document[doc_id] += 1
            kept.append((chunk, score))
    return kept


def make_hits(best: Ranked, rows: Mapping[str, TextRow], ranking: Ranking) -> list[Hit]:
    dense = {candidate.id: candidate.score for candidate in ranking.dense or ()}
    bm25 = {candidate.id: candidate.score for candidate in ranking.bm25 or ()}
    return [
        _hit(
            rows[chunk],
            rank,
            score,
            HitScores(dense=dense.get(chunk), bm25=bm25.get(chunk), rerank=ranking.reranked.get(chunk)),
        )
        for rank, (chunk, score) in enumerate(best, start=1)
    ]


def explanations(ranking: Ranking) -> dict[str, Explanation]:
    """How each chunk came to its place, by its id."""
    dense, bm25 = (_places(found or ()) for found in (ranking.dense, ranking.bm25))
    fused = {chunk: (place, score) for place, (chunk, score) in enumerate(ranking.fused.ranked, start=1)}
    by_reranker = sorted(ranking.reranked.items(), key=lambda item: (-item[1], item[0]))
    reranked = {chunk: place for place, (chunk, _) in enumerate(by_reranker, start=1)}
    blended = min_max(by_reranker).found
    return {
        chunk: Explanation(
            dense_rank=dense.get(chunk),
            bm25_rank=bm25.get(chunk),
            dense=None if ranking.dense is None else ranking.fused.dense.of(chunk),
            bm25=None if ranking.bm25 is None else ranking.fused.bm25.of(chunk),
            fused=score,
            fused_rank=place,
            rerank=blended.get(chunk),
            rerank_rank=reranked.get(chunk),
        )
        for chunk, (place, score) in fused.items()
    }


def _places(found: Sequence[Candidate]) -> dict[str, int]:
    return {candidate.id: place for place, candidate in enumerate(found, start=1)}


def _hit(row: TextRow, rank: int, score: float, scores: HitScores) -> Hit:
    return Hit(
        rank=rank,
        score=score,
        doc_id=row.doc_id,
        chunk_id=row.id,
        ordinal=row.ordinal,
        version=row.version,
        text=row.text,
        start=row.start,
        end=row.end,
        title=row.attributes.title,
        source=row.attributes.source,
        source_confidence=row.attributes.source_confidence,
        tags=row.attributes.tags,
        metadata=row.attributes.metadata,
        scores=scores,
    )
