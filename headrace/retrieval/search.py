"""One question, two stores, one list of hits. `Found.degraded` says what a query did without;
without the rest it raises.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from headrace import tracing
from headrace.errors import Transient
from headrace.retrieval.fusion import Ranked, blend, fuse
from headrace.retrieval.hits import Ranking, chosen, explanations, make_hits
from headrace.retrieval.live import live_chunks
from headrace.retrieval.passages import neighbours, passage
from headrace.retrieval.reranking import Reranking
from headrace.retrieval.service import Service
from headrace.stores.filters import Filters
from headrace.stores.ports import Candidate, LiveRead, TextRow, TextStore, VectorStore
from schemas import Fusion, Highlight, Hit, Manifest, Passage, Query

T = TypeVar("T")
Vector: TypeAlias = npt.NDArray[np.float32]

WIDER = 4
"""How much more is asked for the second time.
With rows of three dead versions before each live one, the second page is enough."""


_OPENSEARCH = {"db.system.name": "opensearch"}
STEPS_OF_SERVERS = {
    "milvus": {"db.system.name": "milvus"},
    **dict.fromkeys(("opensearch", "read", "expand", "highlight"), _OPENSEARCH),
}


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """Hits, best first; what they were found without (`milvus`, `opensearch`, `rerank`); milliseconds by step."""

    hits: list[Hit] = []
    degraded: list[str] = []
    timings_ms: dict[str, float] = {}


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What a search asks, shared by all searches. `live` is OpenSearch's too, read by id."""

    vectors: VectorStore
    texts: TextStore
    milvus: Service
    opensearch: Service
    live: Service
    reranking: Reranking


class _Page:
    """What one round brought: the candidates that are live as far as is known, fused, and what was read of them.

    `dense` and `bm25` are None for a store that could not answer.
    """

    def __init__(self, dense: list[Candidate] | None, bm25: list[Candidate] | None, fusion: Fusion) -> None:
        self.dense, self.bm25 = dense, bm25
        self.documents = {candidate.id: candidate.doc_id for candidate in (*(dense or ()), *(bm25 or ()))}
        """The doc_id of each candidate that isn't known to be dead."""
        self.rows: dict[str, TextRow] = {}
        self.manifests: dict[str, Manifest] = {}
        self.revisions: dict[str, str] = {}
        self.checked: set[str] = set()
        """Documents of which it is known whether, and in which revision, they are live."""
        self._fusion = fusion
        self._fuse()

    def take(self, chunks: Sequence[str], doc_ids: Sequence[str], read: LiveRead) -> None:
        """What was read of these chunks and documents. A chunk that is of no live version, or without a text, leaves
        the lists; the others' scores are then worth what they are without it.
        """
        self.rows |= read.rows
        self.manifests |= read.manifests
        for doc_id in doc_ids:
            self.revisions.pop(doc_id, None)
        self.revisions |= read.revisions
        self.checked.update(doc_ids)
        live = live_chunks(self.documents, self.revisions).difference(set(chunks) - read.rows.keys())
        if len(live) < len(self.documents):
            self.documents = {chunk: doc_id for chunk, doc_id in self.documents.items() if chunk in live}
            self.dense, self.bm25 = _only(self.dense, live), _only(self.bm25, live)
            self._fuse()

    def lacks_a_live_document(self) -> bool:
        """Whether one is live of which only dead chunks were found."""
        return not self.revisions.keys() <= set(self.documents.values())

    def room(self, max_per_document: int | None) -> int:
        """How many of its chunks may be shown."""
        if max_per_document is None:
            return len(self.documents)
        return sum(min(count, max_per_document) for count in Counter(self.documents.values()).values())

    def _fuse(self) -> None:
        self.fused = fuse(_scores(self.dense), _scores(self.bm25), self._fusion)


class Search:
    """One query on its way."""

    def __init__(self, query: Query, filters: Filters, vector: Vector, sources: Sources, fusion: Fusion) -> None:
        """`fusion` is the deployment's."""
        self._query = query
        self._filters = filters
        self._vector = vector
        self._sources = sources
        self._fusion = query.fusion or fusion
        self._reranks = sources.reranking.is_wanted(query.rerank)
        self._ms: defaultdict[str, float] = defaultdict(float)
        self._lacks: set[str] = set()

    async def run(self, candidates: int) -> Found:
        """`candidates` are asked of each store, or more where the query needs more."""
        query = self._query
        reranked = self._sources.reranking.candidates if self._reranks else 0
        limit = max(candidates, query.top_k, reranked)
        page, full = await self._page(limit)
        if (full or page.lacks_a_live_document()) and page.room(query.max_per_document) < query.top_k:
            # Rows of dead versions, of a document that was replaced between the search and the read, or more of one
            # document than may be shown, stood where others belong. Once more and no oftener: a store full of dead rows
            # must not make one query as dear as a hundred.
            page, _ = await self._page(limit * WIDER)
        self._lacks |= {name for name, found in (("milvus", page.dense), ("opensearch", page.bm25)) if found is None}
        ranking = await self._ranked(page)
        order = ranking.order
        while await self._read(page, best := self._chosen(order, page)):
            # The reranker and `max_per_document` together choose others than were read.
            order = [(chunk, score) for chunk, score in order if chunk in page.documents]
        hits = make_hits(best, page.rows, ranking)
        if query.explain:
            explained = explanations(ranking)
            hits = [msgspec.structs.replace(hit, explanation=explained[hit.chunk_id]) for hit in hits]
        hits = await self._surrounded(hits, page)
        degraded: list[str] = [name for name in ("milvus", "opensearch", "rerank") if name in self._lacks]
        return Found(hits=hits, degraded=degraded, timings_ms=dict(self._ms))

    async def _page(self, limit: int) -> tuple[_Page, bool]:
        """A page whose best are read, and all checked for being live; and whether there may be more to find."""
        dense, bm25 = await self._ask(limit)
        full = any(len(found) >= limit for found in (dense, bm25) if found is not None)
        with self._fusing():
            page = _Page(dense, bm25, self._fusion)
        # Most are live. So what would be shown if all were is read together with what says which are.
        while await self._read(page, self._wanted(page)):
            pass
        return page, full

    def _wanted(self, page: _Page) -> Ranked:
        """Those whose texts are needed: to be shown, or to be reranked."""
        ranked = page.fused.ranked
        reranked = ranked[: self._sources.reranking.candidates] if self._reranks else []
        return [*reranked, *self._chosen(ranked, page)]

    def _chosen(self, order: Ranked, page: _Page) -> Ranked:
        query = self._query
        return chosen(order, page.documents, top_k=query.top_k, max_per_document=query.max_per_document)

    async def _read(self, page: _Page, wanted: Ranked) -> bool:
        """Read what of these was not read yet, and check what was not checked; False when there is nothing to do."""
        chunks = sorted({chunk for chunk, _ in wanted} - page.rows.keys())
        if not chunks:
            return False
        sources, tenant = self._sources, self._query.tenant
        doc_ids = sorted({page.documents[chunk] for chunk in chunks})
        others = sorted(set(page.documents.values()) - page.checked.union(doc_ids))
        read = await self._timed(
            "read", sources.live.ask(lambda: sources.texts.read_live(tenant, chunks, doc_ids, others))
        )
        with self._fusing():
            page.take(chunks, [*doc_ids, *others], read)
        return True

    async def _ask(self, limit: int) -> tuple[list[Candidate] | None, list[Candidate] | None]:
        """Both stores at once; None for one that is away, Transient when both are."""
        sources, query, filters, vector = self._sources, self._query, self._filters, self._vector
        dense, bm25 = await asyncio.gather(
            self._timed(
                "milvus",
                sources.milvus.ask(lambda: sources.vectors.search(query.tenant, vector, limit=limit, filters=filters)),
            ),
            self._timed(
                "opensearch",
                sources.opensearch.ask(
                    lambda: sources.texts.search(query.tenant, query.query, limit=limit, filters=filters)
                ),
            ),
            return_exceptions=True,
        )
        if isinstance(dense, Transient) and isinstance(bm25, Transient):
            raise dense
        return _unless_away(dense), _unless_away(bm25)

    async def _ranked(self, page: _Page) -> Ranking:
        fused = page.fused
        ranking = Ranking(order=fused.ranked, dense=page.dense, bm25=page.bm25, fused=fused)
        if not self._reranks:
            return ranking
        reranking = self._sources.reranking
        rows = [page.rows[chunk] for chunk, _ in fused.ranked[: reranking.candidates]]
        try:
            reranked = await self._timed("rerank", reranking.scores(self._query.query, rows))
        except Transient:
            self._lacks.add("rerank")
            return ranking
        order = blend(fused.ranked, reranked, weight=reranking.weight)
        return msgspec.structs.replace(ranking, order=order, reranked=reranked)

    async def _surrounded(self, hits: list[Hit], page: _Page) -> list[Hit]:
        """With passages and highlights, as the query asks for them.

        Hits are worth having without them, so OpenSearch failing here is only told of.
        """
        passages, highlights = await asyncio.gather(
            self._unless_lacking(self._passages(hits, page)) if self._query.expand and hits else _nothing(),
            self._unless_lacking(self._highlights(hits)) if self._query.highlight and hits else _nothing(),
        )
        return [
            msgspec.structs.replace(
                hit,
                passage=passages.get(hit.chunk_id),
                highlights=[Highlight(start=start, end=end) for start, end in highlights.get(hit.chunk_id, [])],
            )
            for hit in hits
        ]

    async def _passages(self, hits: list[Hit], page: _Page) -> dict[str, Passage]:
        sources, tenant = self._sources, self._query.tenant
        around = {
            hit.chunk_id: neighbours(
                hit.chunk_id, hit.ordinal, reach=self._query.expand, chunks=_chunks(page.manifests[hit.doc_id])
            )
            for hit in hits
        }
        rows = page.rows
        lacking = {chunk for chunks in around.values() for chunk in chunks} - rows.keys()
        if lacking:
            read, _ = await self._timed(
                "expand", sources.live.ask(lambda: sources.texts.read(tenant, sorted(lacking), []))
            )
            rows = rows | read
        return {chunk: passage(chunk, chunks, rows) for chunk, chunks in around.items()}

    async def _highlights(self, hits: list[Hit]) -> dict[str, list[tuple[int, int]]]:
        sources, query = self._sources, self._query
        chunks = [hit.chunk_id for hit in hits]
        return await self._timed(
            "highlight", sources.opensearch.ask(lambda: sources.texts.highlight(query.tenant, query.query, chunks))
        )

    async def _unless_lacking(self, step: Awaitable[dict[str, T]]) -> dict[str, T]:
        try:
            return await step
        except Transient as exc:
            self._lacks.add(exc.service)
            return {}

    async def _timed(self, step: str, answer: Awaitable[T]) -> T:
        server = STEPS_OF_SERVERS.get(step)
        started = time.perf_counter()
        try:
            with tracing.span(step, server, "internal" if server is None else "client"):
                return await answer
        finally:
            self._ms[step] += _since(started)

    @contextmanager
    def _fusing(self) -> Iterator[None]:
        started = time.perf_counter()
        with tracing.span("fuse"):
            yield
        self._ms["fuse"] += _since(started)


async def _nothing() -> dict[str, T]:
    return {}


def _chunks(manifest: Manifest) -> int:
    return manifest.live.chunks if manifest.live is not None else 0


def _scores(candidates: list[Candidate] | None) -> list[tuple[str, float]] | None:
    return None if candidates is None else [(candidate.id, candidate.score) for candidate in candidates]


def _only(candidates: list[Candidate] | None, ids: set[str]) -> list[Candidate] | None:
    return None if candidates is None else [candidate for candidate in candidates if candidate.id in ids]


def _unless_away(answer: list[Candidate] | BaseException) -> list[Candidate] | None:
    if isinstance(answer, Transient):
        return None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
