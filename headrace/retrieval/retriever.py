"""Many questions, each on its way by itself, and what all of them share."""

from collections.abc import Sequence
from typing import NamedTuple

from headrace.rerank import Reranker, RerankSettings
from headrace.retrieval.breakers import Breaker
from headrace.retrieval.reranking import Reranking
from headrace.retrieval.search import Found, Search, Sources, Vector
from headrace.retrieval.service import Service
from headrace.retrieval.settings import RetrievalSettings
from headrace.stores.filters import parse_filters
from headrace.stores.ports import TextStore, VectorStore
from schemas import Hit, Query
from schemas.revision import revision_of


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
        settings: RetrievalSettings,
        *,
        reranker: Reranker | None = None,
        rerank: RerankSettings | None = None,
        timeouts: StoreTimeouts = StoreTimeouts(),  # noqa: B008  a constant
    ) -> None:
        def service(name: str, server: str, timeout_s: float) -> Service:
            breaker = Breaker(name, server, failures=settings.breaker_failures, reset_s=settings.breaker_reset_s)
            return Service(name, server, threads=settings.threads, timeout_s=timeout_s, breaker=breaker)

        self._settings = settings
        self._sources = Sources(
            vectors=vectors,
            texts=texts,
            milvus=service("milvus", "milvus", timeouts.milvus),
            opensearch=service("opensearch", "opensearch", timeouts.opensearch),
            live=service("opensearch-live", "opensearch", timeouts.opensearch),
            reranking=Reranking(reranker, rerank or RerankSettings(), settings),
        )

    async def search(self, query: Query, vector: Vector) -> Found:
        """The best `top_k` live chunks. May be cancelled at any time: what has not begun by then never does.

        Raises ValueError when a filter is not of the contract's form, and Transient when neither store answered or
        nothing could be checked for being live: a chunk that may be of a superseded version is never shown.
        """
        search = Search(query, parse_filters(query.filters), vector, self._sources, self._settings.default_fusion)
        return await search.run(self._settings.candidates)

    async def are_live(self, tenant: str, hits: Sequence[Hit]) -> bool:
        """Whether all of them are still of their documents' live versions. Raises Transient when nobody can say."""
        if not hits:
            return True
        doc_ids = sorted({hit.doc_id for hit in hits})
        sources = self._sources
        revisions = (await sources.live.ask(lambda: sources.texts.read_live(tenant, [], doc_ids, []))).revisions
        return all(revisions.get(hit.doc_id) == revision_of(hit.chunk_id) for hit in hits)

    def close(self) -> None:
        """Takes no more; what is under way is not waited for. The stores stay open."""
        sources = self._sources
        for part in (sources.milvus, sources.opensearch, sources.live, sources.reranking):
            part.close()
