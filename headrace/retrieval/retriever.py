"""Many questions, each on its way by itself: embedding them, searching for each, and giving up on time."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import msgspec
import numpy as np

from headrace.encoders import Encoder, Vectors
from headrace.rerank import Reranker, RerankSettings
from headrace.retrieval.breakers import Breaker
from headrace.retrieval.reranking import Reranking
from headrace.retrieval.search import Found, Search, Sources, Vector
from headrace.retrieval.service import Service
from headrace.retrieval.settings import RetrievalSettings
from headrace.stores.filters import parse_filters
from headrace.stores.ports import TextStore, VectorStore
from schemas import Query

EMBED_THREADS = 2
"""The model takes one call at a time, while another is tokenised."""


class DeadlineExceeded(Exception):
    """A query's time passed before its hits were found."""


class StoreTimeouts(NamedTuple):
    """Seconds that a query waits for each store, waiting for a thread and connecting included."""

    milvus: float = 5.0
    opensearch: float = 5.0


class Retriever:
    """Searches the live documents of one tenant at a time; any number of searches may run at once, in one event loop.

    What it remembers is which servers failed lately, and what waits for the reranker.
    """

    def __init__(
        self,
        vectors: VectorStore,
        texts: TextStore,
        encoder: Encoder,
        settings: RetrievalSettings,
        *,
        reranker: Reranker | None = None,
        rerank: RerankSettings | None = None,
        timeouts: StoreTimeouts = StoreTimeouts(),  # noqa: B008  a constant
    ) -> None:
        def service(name: str, server: str, timeout_s: float) -> Service:
            breaker = Breaker(name, server, failures=settings.breaker_failures, reset_s=settings.breaker_reset_s)
            return Service(name, server, threads=settings.threads, timeout_s=timeout_s, breaker=breaker)

        self._encoder = encoder
        self._settings = settings
        self._embedding = ThreadPoolExecutor(EMBED_THREADS, thread_name_prefix="embed")
        self._sources = Sources(
            vectors=vectors,
            texts=texts,
            milvus=service("milvus", "milvus", timeouts.milvus),
            opensearch=service("opensearch", "opensearch", timeouts.opensearch),
            live=service("opensearch-live", "opensearch", timeouts.opensearch),
            reranking=Reranking(reranker, rerank or RerankSettings(), settings),
        )

    async def embed(self, queries: Sequence[str]) -> Vectors:
        """The questions' vectors, one row each, in the order given."""
        return await self._encoded(lambda: queries)

    async def search(self, query: Query, vector: Vector) -> Found:
        """The best `top_k` live chunks. May be cancelled at any time: what has not begun by then never does.

        Raises ValueError when a filter is not of the contract's form, and Transient when neither store answered or
        nothing could be checked for being live: a chunk that may be of a superseded version is never shown.
        """
        search = Search(query, parse_filters(query.filters), vector, self._sources, self._settings.default_fusion)
        return await search.run(self._settings.candidates)

    async def search_many(
        self, queries: Sequence[Query], timeouts_s: Sequence[float | None] | None = None
    ) -> list[Found | Exception]:
        """Every query's hits, or what `search` would have raised, in the order given; all are embedded in one call.

        A query whose time-out passes gets DeadlineExceeded, and from then on costs nothing more. One query's failure is
        its own. Only when the encoder fails, which no query is to blame for, does this raise.
        """
        started = time.perf_counter()
        deadlines = [None if seconds is None else started + seconds for seconds in timeouts_s or [None] * len(queries)]
        results: dict[int, Found | Exception] = {}
        for place, query in enumerate(queries):
            try:
                parse_filters(query.filters)
            except ValueError as exc:
                results[place] = exc
        embeddable = [place for place in range(len(queries)) if place not in results]
        embedded: list[int] = []

        def in_time() -> list[str]:
            # Called when the encoder is free: what is too late by then isn't embedded.
            embedded.extend(place for place in embeddable if not _is_past(deadlines[place]))
            return [queries[place].query for place in embedded]

        vectors = await self._encoded(in_time)
        embed_ms = _since(started)

        async def one(place: int, vector: Vector) -> Found:
            deadline = deadlines[place]
            if _is_past(deadline):
                raise DeadlineExceeded
            try:
                async with asyncio.timeout(None if deadline is None else deadline - time.perf_counter()):
                    found = await self.search(queries[place], vector)
            except TimeoutError as exc:
                raise DeadlineExceeded from exc
            timings = {"embed": embed_ms, **found.timings_ms, "total": _since(started)}
            return msgspec.structs.replace(found, timings_ms=timings)

        results |= {place: DeadlineExceeded() for place in embeddable if place not in embedded}
        searched = await asyncio.gather(*map(one, embedded, vectors), return_exceptions=True)
        results |= {place: _not_cancelled(result) for place, result in zip(embedded, searched, strict=True)}
        return [results[place] for place in range(len(queries))]

    def close(self) -> None:
        """Takes no more; what is under way is not waited for. The stores and the encoder stay open."""
        sources = self._sources
        self._embedding.shutdown(wait=False, cancel_futures=True)
        for part in (sources.milvus, sources.opensearch, sources.live, sources.reranking):
            part.close()

    async def _encoded(self, questions: Callable[[], Sequence[str]]) -> Vectors:
        """Vectors of what `questions` gives when it is their turn; the encoder isn't asked for none."""

        def encode() -> Vectors:
            texts = questions()
            if not texts:
                return np.empty((0, self._encoder.identity.dimension), dtype=np.float32)
            return self._encoder.encode_queries(texts)

        return await asyncio.get_running_loop().run_in_executor(self._embedding, encode)


def _is_past(deadline: float | None) -> bool:
    return deadline is not None and time.perf_counter() >= deadline


def _not_cancelled(result: Found | BaseException) -> Found | Exception:
    if isinstance(result, Found | Exception):
        return result
    raise result


def _since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
