"""One question, two stores, one list of hits. `Found.degraded` says what a query did without;
without the rest it raises.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from headrace.encoders import Encoder
from headrace.errors import Transient
from headrace.retrieval.fusion import fuse
from headrace.retrieval.live import keep_live, live_revisions
from headrace.retrieval.settings import RetrievalSettings
from headrace.stores.filters import Filters, parse_filters
from headrace.stores.ports import Candidate, TextRow, TextStore, VectorStore
from schemas import Hit, HitScores, Query

T = TypeVar("T")
Vector: TypeAlias = npt.NDArray[np.float32]

WIDER = 4
"""How much more is asked for the second time.
With rows of three dead versions before each live one, the second page is enough."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """Hits, best first; what they were found without (`milvus`, `opensearch`, `rerank`); milliseconds by step."""

    hits: list[Hit] = []
    degraded: list[str] = []
    timings_ms: dict[str, float] = {}


class Retriever:
    """Searches the live documents of one tenant at a time.
    Holds no state, so any number of searches may run at once.
    """

    def __init__(self, vectors: VectorStore, texts: TextStore, encoder: Encoder, settings: RetrievalSettings) -> None:
        self._vectors = vectors
        self._texts = texts
        self._encoder = encoder
        self._settings = settings

    async def search(self, query: Query) -> Found:
        """The best `top_k` live chunks.

        Raises ValueError when a filter is not of the contract's form, and Transient when neither store answered or
        nothing could be checked for being live: a chunk that may be of a superseded version is never shown.
        """
        [found] = await self.search_many([query])
        if isinstance(found, Exception):
            raise found
        return found

    async def search_many(self, queries: Sequence[Query]) -> list[Found | Exception]:
        """Every query's hits, or what `search` would have raised, in the order given; all are embedded in one call.

        One query's failure is its own. Only when the encoder fails, which no query is to blame for, does this raise.
        """
        started = time.perf_counter()
        filters = [_parsed(query) for query in queries]
        askable = [place for place, parsed in enumerate(filters) if isinstance(parsed, Filters)]
        embedded = await asyncio.to_thread(self._encoder.encode_queries, [queries[place].query for place in askable])
        embed_ms = _since(started)
        vectors = dict(zip(askable, embedded, strict=True))
        away: _Away = {}

        async def one(place: int) -> Found:
            parsed = filters[place]
            if isinstance(parsed, ValueError):
                raise parsed
            search = _Search(queries[place], parsed, vectors[place], self._vectors, self._texts, away)
            found = await search.run(max(self._settings.candidates, queries[place].top_k))
            return msgspec.structs.replace(
                found, timings_ms={"embed": embed_ms, **found.timings_ms, "total": _since(started)}
            )

        results = await asyncio.gather(*(one(place) for place in range(len(queries))), return_exceptions=True)
        return [_not_cancelled(result) for result in results]


_Away: TypeAlias = dict[tuple[str, str], Transient]
"""What a step of a tenant's search has failed of."""


class _Page(NamedTuple):
    """What one round brought: live candidates with their texts, None for a store that could not answer."""

    dense: list[Candidate] | None
    bm25: list[Candidate] | None
    rows: dict[str, TextRow]
    incomplete: bool
    """Asking again may bring more live chunks."""


class _Search:
    """One query on its way. `away` is shared by those that came together."""

    def __init__(
        self,
        query: Query,
        filters: Filters,
        vector: Vector,
        vectors: VectorStore,
        texts: TextStore,
        away: "_Away",
    ) -> None:
        self._query = query
        self._filters = filters
        self._vector = vector
        self._vectors = vectors
        self._texts = texts
        self._away = away
        self._ms: defaultdict[str, float] = defaultdict(float)

    async def run(self, limit: int) -> Found:
        page = await self._page(limit)
        if page.incomplete and len(page.rows) < self._query.top_k:
            # Rows of dead versions, or of a document that was replaced between the search and the read, stood where
            # live ones belong. Once more and no oftener: a store full of dead rows must not make one query as dear as a
            # hundred.
            page = await self._page(limit * WIDER)
        started = time.perf_counter()
        hits = _hits(page, self._query)
        self._ms["fuse"] += _since(started)
        return Found(hits=hits, degraded=self._degraded(page), timings_ms=dict(self._ms))

    async def _page(self, limit: int) -> _Page:
        dense, bm25 = await self._ask(limit)
        candidates = [*(dense or ()), *(bm25 or ())]
        rows = {candidate.id: candidate.row for candidate in candidates if candidate.row is not None}
        lacking = {candidate.id for candidate in candidates} - rows.keys()
        doc_ids = {candidate.doc_id for candidate in candidates}
        revisions: dict[str, str] = {}
        if candidates:
            tenant = self._query.tenant
            read, manifests = await self._timed(
                "read", lambda: self._texts.read(tenant, sorted(lacking), sorted(doc_ids))
            )
            rows |= read
            revisions = live_revisions(manifests)
        live = {candidate.id for candidate in keep_live(candidates, revisions)} & rows.keys()
        seen = {candidate.doc_id for candidate in candidates if candidate.id in live}
        full = any(len(found) >= limit for found in (dense, bm25) if found is not None)
        return _Page(
            dense=_only(dense, live),
            bm25=_only(bm25, live),
            rows={chunk: rows[chunk] for chunk in live},
            incomplete=full or not revisions.keys() <= seen,
        )

    async def _ask(self, limit: int) -> tuple[list[Candidate] | None, list[Candidate] | None]:
        """Both stores at once; None for one that is away, Transient when both are."""
        query, filters, vector = self._query, self._filters, self._vector
        dense, bm25 = await asyncio.gather(
            self._timed("milvus", lambda: self._vectors.search(query.tenant, vector, limit=limit, filters=filters)),
            self._timed(
                "opensearch", lambda: self._texts.search(query.tenant, query.query, limit=limit, filters=filters)
            ),
            return_exceptions=True,
        )
        if isinstance(dense, Transient) and isinstance(bm25, Transient):
            raise dense
        return _unless_away(dense), _unless_away(bm25)

    def _degraded(self, page: _Page) -> list[str]:
        missing = {
            "milvus": page.dense is None,
            "opensearch": page.bm25 is None,
            "rerank": self._query.rerank is True,  # there is no reranker yet
        }
        return [name for name, is_missing in missing.items() if is_missing]

    async def _timed(self, step: str, call: Callable[[], T]) -> T:
        started = time.perf_counter()
        try:
            return await asyncio.to_thread(self._unless_known_away, step, call)
        finally:
            self._ms[step] += _since(started)

    def _unless_known_away(self, step: str, call: Callable[[], T]) -> T:
        """Of queries that came together, the later ones don't wait for a time-out that others have run into."""
        place = (self._query.tenant, step)
        if place in self._away:
            raise self._away[place]
        try:
            return call()
        except Transient as exc:
            self._away[place] = exc
            raise


def _hits(page: _Page, query: Query) -> list[Hit]:
    dense = {candidate.id: candidate.score for candidate in page.dense or ()}
    bm25 = {candidate.id: candidate.score for candidate in page.bm25 or ()}
    fused = fuse(
        None if page.dense is None else list(dense.items()),
        None if page.bm25 is None else list(bm25.items()),
        query.fusion,
    )
    return [
        _hit(page.rows[chunk], rank, score, HitScores(dense=dense.get(chunk), bm25=bm25.get(chunk)))
        for rank, (chunk, score) in enumerate(fused[: query.top_k], start=1)
    ]


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


def _parsed(query: Query) -> Filters | ValueError:
    try:
        return parse_filters(query.filters)
    except ValueError as exc:
        return exc


def _only(candidates: list[Candidate] | None, ids: set[str]) -> list[Candidate] | None:
    return None if candidates is None else [candidate for candidate in candidates if candidate.id in ids]


def _unless_away(answer: list[Candidate] | BaseException) -> list[Candidate] | None:
    if isinstance(answer, Transient):
        return None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _not_cancelled(result: Found | BaseException) -> Found | Exception:
    if isinstance(result, Found | Exception):
        return result
    raise result


def _since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
