import asyncio
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from headrace.encoders import Vectors
from headrace.errors import Misconfigured, Transient
from headrace.retrieval import Found, Retriever
from headrace.retrieval.settings import RetrievalSettings
from headrace.stores.filters import Filters
from headrace.stores.ports import Candidate, StoreCount, TextRow, VectorRow
from schemas import (
    Attributes,
    EncoderIdentity,
    Fusion,
    HitScores,
    Key,
    Live,
    Manifest,
    Query,
    Revision,
    chunk_id,
    revision_id,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TENANT = "acme"


def revision(version: int) -> Revision:
    return Revision(version=version, timestamp=version, offset=version, fingerprint="f")


def row(doc_id: str, version: int = 1, ordinal: int = 0, **attributes: Any) -> TextRow:
    text = f"{doc_id} version {version} passage {ordinal}"
    return TextRow(
        id=chunk_id(revision_id(Key(TENANT, doc_id), revision(version)), ordinal),
        doc_id=doc_id,
        version=version,
        ordinal=ordinal,
        content_hash="h",
        attributes=Attributes(created_at=NOW, **attributes),
        text=text,
        start=100 * ordinal,
        end=100 * ordinal + len(text),
    )


def live(doc_id: str, version: int = 1, *, deleted: bool = False) -> Manifest:
    return Manifest(
        tenant=TENANT, doc_id=doc_id, live=Live(revision=revision(version), chunks=1, at=NOW, deleted=deleted)
    )


class FakeEncoder:
    identity = EncoderIdentity(name="fake", dimension=2, normalised=True)
    max_tokens = 8

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def encode(self, texts: Sequence[str], *, truncate: bool = False) -> Vectors:
        raise AssertionError("a search encodes questions only")

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        self.calls.append(list(texts))
        return np.tile(np.array([[1, 0]], dtype=np.float32), (len(texts), 1))


class FakeStore:
    """What both searchers share: a ranked list, the limits they were asked for, and a server that may be away."""

    def __init__(self, *ranked: TextRow) -> None:
        self.ranked = list(ranked)
        self.limits: list[int] = []
        self.away: Exception | None = None

    def check(self) -> None: ...

    def delete(self, tenant: str, ids: Sequence[str]) -> None: ...

    def count(self, tenant: str) -> StoreCount:
        return StoreCount(documents=0, chunks=len(self.ranked))

    def tenants(self) -> list[str]:
        return [TENANT]

    def found(self, tenant: str, limit: int, *, with_row: bool) -> list[Candidate]:
        self.limits.append(limit)
        if self.away:
            raise self.away
        if tenant != TENANT:
            return []
        return [
            Candidate(id=one.id, doc_id=one.doc_id, score=1 - place / 100, row=one if with_row else None)
            for place, one in enumerate(self.ranked[:limit])
        ]


class FakeVectorStore(FakeStore):
    def upsert(self, tenant: str, rows: Sequence[VectorRow]) -> None: ...

    def search(self, tenant: str, vector: npt.NDArray[np.float32], *, limit: int, filters: Filters) -> list[Candidate]:
        assert vector.shape == (2,)
        return self.found(tenant, limit, with_row=False)


class FakeTextStore(FakeStore):
    def __init__(self, *ranked: TextRow) -> None:
        super().__init__(*ranked)
        self.manifests: dict[str, Manifest] = {}
        self.rows: dict[str, TextRow] = {}
        self.reads: list[tuple[list[str], list[str]]] = []
        self.read_away: Exception | None = None

    def upsert(self, tenant: str, rows: Sequence[TextRow]) -> None: ...

    def search(self, tenant: str, text: str, *, limit: int, filters: Filters) -> list[Candidate]:
        return self.found(tenant, limit, with_row=True)

    def read(
        self, tenant: str, chunk_ids: Sequence[str], doc_ids: Sequence[str]
    ) -> tuple[dict[str, TextRow], dict[str, Manifest]]:
        self.reads.append((list(chunk_ids), list(doc_ids)))
        if self.read_away:
            raise self.read_away
        return (
            {one: self.rows[one] for one in chunk_ids if one in self.rows},
            {one: self.manifests[one] for one in doc_ids if one in self.manifests},
        )


class World:
    """Two stores that hold these rows, and the manifests of their documents."""

    def __init__(self, dense: Sequence[TextRow], bm25: Sequence[TextRow], manifests: Sequence[Manifest]) -> None:
        self.milvus = FakeVectorStore(*dense)
        self.opensearch = FakeTextStore(*bm25)
        self.opensearch.rows = {one.id: one for one in [*dense, *bm25]}
        self.opensearch.manifests = {one.doc_id: one for one in manifests}
        self.encoder = FakeEncoder()
        self.retriever = Retriever(self.milvus, self.opensearch, self.encoder, RetrievalSettings(candidates=4))

    async def search(self, **query: Any) -> Found:
        return await self.retriever.search(Query(**{"query": "?", "tenant": TENANT, "top_k": 2, **query}))

    async def documents(self, **query: Any) -> list[tuple[str, int]]:
        return [(hit.doc_id, hit.version) for hit in (await self.search(**query)).hits]


A, B, C = (
    row("a", title="A title", source="s3://a", source_confidence=0.5, tags=["t"], metadata={"n": 1}),
    row("b"),
    row("c"),
)


def world() -> World:
    return World(dense=[A, B], bm25=[B, C], manifests=[live("a"), live("b"), live("c")])


def away(service: str) -> Transient:
    return Transient(service, "connection refused")


async def test_both_lists_make_one_with_the_scores_each_gave() -> None:
    found = await world().search(top_k=3, fusion=Fusion(method="rrf"))
    assert [(hit.rank, hit.doc_id) for hit in found.hits] == [(1, "b"), (2, "a"), (3, "c")]
    assert [hit.scores for hit in found.hits] == [
        HitScores(dense=0.99, bm25=1.0),
        HitScores(dense=1.0),
        HitScores(bm25=0.99),
    ]
    assert found.hits[0].score == 1 / 61 + 1 / 62
    assert found.degraded == []


async def test_a_hit_carries_what_the_document_said_of_itself() -> None:
    [hit] = (await world().search(top_k=1, fusion=Fusion(alpha=1.0))).hits
    assert (hit.chunk_id, hit.text, hit.start, hit.end) == (A.id, A.text, A.start, A.end)
    assert (hit.title, hit.source, hit.source_confidence, hit.tags, hit.metadata) == (
        "A title",
        "s3://a",
        0.5,
        ["t"],
        {"n": 1},
    )


async def test_texts_and_manifests_come_in_one_read_that_leaves_out_what_the_search_brought() -> None:
    here = world()
    await here.search()
    assert here.opensearch.reads == [([A.id], ["a", "b", "c"])]


async def test_a_chunk_of_a_superseded_version_is_never_shown() -> None:
    here = World(dense=[row("a", 1), row("a", 2)], bm25=[row("a", 1)], manifests=[live("a", 2)])
    assert await here.documents() == [("a", 2)]


async def test_a_version_that_is_not_yet_whole_is_never_shown() -> None:
    here = World(dense=[row("a", 3), row("b", 1)], bm25=[row("a", 2)], manifests=[live("a", 2)])
    assert await here.documents() == [("a", 2)]


async def test_a_deleted_document_is_never_shown() -> None:
    here = World(dense=[A, B], bm25=[A], manifests=[live("a", deleted=True), live("b")])
    assert await here.documents() == [("b", 1)]


async def test_dead_chunks_do_not_move_the_scores_of_live_ones() -> None:
    here = World(dense=[row("a", 1), B, C], bm25=[], manifests=[live("a", 2), live("b"), live("c")])
    found = await here.search()
    assert [(hit.doc_id, hit.score) for hit in found.hits] == [("b", 0.5), ("c", 0.0)]


async def test_a_live_chunk_without_a_text_is_left_out() -> None:
    here = world()
    del here.opensearch.rows[A.id]
    assert await here.documents() == [("b", 1), ("c", 1)]


async def test_a_tenant_without_documents_gets_no_hits_and_nothing_is_read() -> None:
    here = world()
    assert (await here.search(tenant="empty")).hits == []
    assert here.opensearch.reads == []


@pytest.mark.parametrize(("service", "left"), [("milvus", ["b", "c"]), ("opensearch", ["a", "b"])])
async def test_while_one_store_is_away_the_other_answers_and_the_reply_says_so(service: str, left: list[str]) -> None:
    here = world()
    (here.milvus if service == "milvus" else here.opensearch).away = away(service)
    found = await here.search()
    assert [hit.doc_id for hit in found.hits] == left
    assert found.degraded == [service]


async def test_while_both_stores_are_away_there_is_no_answer() -> None:
    here = world()
    here.milvus.away, here.opensearch.away = away("milvus"), away("opensearch")
    with pytest.raises(Transient):
        await here.search()


async def test_what_cannot_be_checked_for_being_live_is_not_shown() -> None:
    here = world()
    here.opensearch.read_away = away("opensearch")
    with pytest.raises(Transient, match="opensearch"):
        await here.search()


async def test_a_store_that_cannot_be_used_at_all_is_not_taken_for_one_that_is_away() -> None:
    here = world()
    here.milvus.away = Misconfigured("a collection of another encoder")
    with pytest.raises(Misconfigured):
        await here.search()


@pytest.mark.parametrize(("rerank", "degraded"), [(True, ["rerank"]), (False, []), (None, [])])
async def test_only_who_asks_for_reranking_hears_that_there_is_none(rerank: bool | None, degraded: list[str]) -> None:
    assert (await world().search(rerank=rerank)).degraded == degraded


async def test_when_dead_versions_fill_the_page_a_wider_one_is_asked_for() -> None:
    dead = [row("a", version) for version in range(1, 5)]
    here = World(dense=[*dead, row("a", 9), B], bm25=[], manifests=[live("a", 9), live("b")])
    assert await here.documents() == [("a", 9), ("b", 1)]
    assert here.milvus.limits == [4, 16]


async def test_it_is_asked_for_once_and_no_oftener() -> None:
    dead = [row("a", version) for version in range(1, 50)]
    here = World(dense=dead, bm25=[], manifests=[live("a", 99)])
    assert await here.documents() == []
    assert here.milvus.limits == [4, 16]


async def test_a_document_replaced_between_the_search_and_the_check_is_looked_for_again() -> None:
    here = World(dense=[row("a", 1)], bm25=[], manifests=[live("a", 2)])
    here.opensearch.rows |= {row("a", 2).id: row("a", 2)}
    read = here.opensearch.read

    def replaced(tenant: str, chunk_ids: Sequence[str], doc_ids: Sequence[str]) -> Any:
        here.milvus.ranked = [row("a", 2)]
        return read(tenant, chunk_ids, doc_ids)

    here.opensearch.read = replaced  # type: ignore[method-assign]
    assert await here.documents() == [("a", 2)]


async def test_a_short_page_of_live_chunks_is_all_there_is() -> None:
    here = World(dense=[A], bm25=[A], manifests=[live("a")])
    assert await here.documents(top_k=10) == [("a", 1)]
    assert here.milvus.limits == here.opensearch.limits == [10]


async def test_the_two_stores_are_asked_at_the_same_time() -> None:
    here = world()
    both = threading.Barrier(2, timeout=5)
    for store in (here.milvus, here.opensearch):
        found = store.found

        def meeting(tenant: str, limit: int, *, with_row: bool, found: Any = found) -> list[Candidate]:
            both.wait()
            result: list[Candidate] = found(tenant, limit, with_row=with_row)
            return result

        store.found = meeting  # type: ignore[method-assign]
    assert len((await here.search()).hits) == 2


async def test_a_bad_filter_is_refused_before_anything_is_asked() -> None:
    here = world()
    with pytest.raises(ValueError, match="colour"):
        await here.search(filters={"colour": "blue"})
    assert here.milvus.limits == []


async def test_a_batch_is_embedded_in_one_call_and_one_bad_query_is_its_own_failure() -> None:
    here = world()
    queries = [
        Query(query="one", tenant=TENANT),
        Query(query="two", tenant=TENANT, filters={"colour": "blue"}),
        Query(query="three", tenant="empty"),
    ]
    first, bad, third = await here.retriever.search_many(queries)
    assert isinstance(first, Found)
    assert isinstance(bad, ValueError)
    assert isinstance(third, Found)
    assert (len(first.hits), len(third.hits)) == (3, 0)
    assert here.encoder.calls == [["one", "three"]]


async def test_the_time_of_every_step_is_told() -> None:
    timings = (await world().search()).timings_ms
    assert list(timings) == ["embed", "milvus", "opensearch", "read", "fuse", "total"]
    assert timings["total"] >= max(timings.values())


async def test_a_search_that_is_given_up_ends() -> None:
    here = world()
    task = asyncio.ensure_future(here.search())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_of_queries_that_come_together_the_later_ones_do_not_wait_for_a_store_that_was_away() -> None:
    here = world()
    here.milvus.away = away("milvus")
    queries = [Query(query="words", tenant=TENANT) for _ in range(200)]
    found = await here.retriever.search_many(queries)
    assert [one.degraded for one in found if isinstance(one, Found)] == [["milvus"]] * 200
    assert len(here.milvus.limits) < 100
    here.milvus.away = None
    assert (await here.search()).degraded == []
