import asyncio
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from headrace.errors import Misconfigured, Transient
from headrace.rerank import RerankSettings
from headrace.retrieval import Found, Retriever
from headrace.retrieval.settings import RetrievalSettings
from headrace.stores.filters import Filters
from headrace.stores.ports import Candidate, LiveRead, StoreCount, TextRow, VectorRow
from schemas import (
    Attributes,
    Explanation,
    Fusion,
    Highlight,
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
VECTOR = np.array([1, 0], dtype=np.float32)


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


def live(doc_id: str, version: int = 1, *, deleted: bool = False, chunks: int = 1) -> Manifest:
    return Manifest(
        tenant=TENANT, doc_id=doc_id, live=Live(revision=revision(version), chunks=chunks, at=NOW, deleted=deleted)
    )


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

    def found(self, tenant: str, limit: int) -> list[Candidate]:
        self.limits.append(limit)
        if self.away:
            raise self.away
        if tenant != TENANT:
            return []
        return [
            Candidate(id=one.id, doc_id=one.doc_id, score=1 - place / 100)
            for place, one in enumerate(self.ranked[:limit])
        ]


class FakeVectorStore(FakeStore):
    def upsert(self, tenant: str, rows: Sequence[VectorRow]) -> None: ...

    def search(self, tenant: str, vector: npt.NDArray[np.float32], *, limit: int, filters: Filters) -> list[Candidate]:
        assert vector is VECTOR
        return self.found(tenant, limit)


class FakeTextStore(FakeStore):
    def __init__(self, *ranked: TextRow) -> None:
        super().__init__(*ranked)
        self.manifests: dict[str, Manifest] = {}
        self.rows: dict[str, TextRow] = {}
        self.reads: list[tuple[list[str], list[str], list[str]]] = []
        self.read_away: Exception | None = None
        self.highlighted: list[tuple[str, list[str]]] = []
        self.highlight_away: Exception | None = None

    def upsert(self, tenant: str, rows: Sequence[TextRow]) -> None: ...

    def search(self, tenant: str, text: str, *, limit: int, filters: Filters) -> list[Candidate]:
        return self.found(tenant, limit)

    def highlight(self, tenant: str, text: str, chunk_ids: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
        self.highlighted.append((text, list(chunk_ids)))
        if self.highlight_away:
            raise self.highlight_away
        return {chunk: [(0, 1)] for chunk in chunk_ids[:1]}

    def read(
        self, tenant: str, chunk_ids: Sequence[str], doc_ids: Sequence[str]
    ) -> tuple[dict[str, TextRow], dict[str, Manifest]]:
        read = self.read_live(tenant, chunk_ids, doc_ids, [])
        return read.rows, read.manifests

    def read_live(
        self, tenant: str, chunk_ids: Sequence[str], doc_ids: Sequence[str], others: Sequence[str]
    ) -> LiveRead:
        self.reads.append((list(chunk_ids), list(doc_ids), list(others)))
        if self.read_away:
            raise self.read_away
        manifests = {one: self.manifests[one] for one in (*doc_ids, *others) if one in self.manifests}
        return LiveRead(
            rows={one: self.rows[one] for one in chunk_ids if one in self.rows},
            manifests={one: manifest for one, manifest in manifests.items() if one in doc_ids},
            revisions={one: manifest.live_revision for one, manifest in manifests.items() if manifest.live_revision},
        )


class FakeReranker:
    """Likes what `liked` says, and the others not. `away` is raised instead."""

    def __init__(self) -> None:
        self.liked: dict[str, float] = {}
        self.pairs: list[tuple[str, str]] = []
        self.away: Exception | None = None
        self.hang: threading.Event | None = None

    def score(self, pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.float32]:
        self.pairs += pairs
        if self.hang is not None:
            self.hang.wait(10)
        if self.away:
            raise self.away
        return np.array([self.liked.get(passage, 0.0) for _, passage in pairs], dtype=np.float32)


class Hang:
    """Calls that have to go past it wait until they are let go."""

    def __init__(self) -> None:
        self.begun, self.let_go = threading.Event(), threading.Event()

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def waiting(*args: Any, **named: Any) -> Any:
            self.begun.set()
            self.let_go.wait(30)
            return call(*args, **named)

        return waiting


RERANK = RerankSettings(enabled=True, candidates=2, weight=0.6)


class World:
    """Two stores that hold these rows, and the manifests of their documents."""

    def __init__(self, dense: Sequence[TextRow], bm25: Sequence[TextRow], manifests: Sequence[Manifest]) -> None:
        self.milvus = FakeVectorStore(*dense)
        self.opensearch = FakeTextStore(*bm25)
        self.opensearch.rows = {one.id: one for one in [*dense, *bm25]}
        self.opensearch.manifests = {one.doc_id: one for one in manifests}
        self.reranker = FakeReranker()
        self.retriever = self.made()

    def made(self, *, reranker: bool = False, rerank: RerankSettings = RERANK, **settings: Any) -> Retriever:
        return Retriever(
            self.milvus,
            self.opensearch,
            RetrievalSettings(**{"candidates": 4, "breaker_reset_s": 0.05} | settings),
            reranker=self.reranker if reranker else None,
            rerank=rerank,
        )

    async def search(self, **query: Any) -> Found:
        return await self.retriever.search(Query(**{"query": "?", "tenant": TENANT, "top_k": 2, **query}), VECTOR)

    async def order(self, **query: Any) -> list[tuple[str, int]]:
        return [(hit.doc_id, hit.ordinal) for hit in (await self.search(**query)).hits]

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


async def test_one_read_brings_the_texts_that_are_shown_and_what_of_all_is_live() -> None:
    here = world()
    await here.search(fusion=Fusion(method="rrf"))
    assert here.opensearch.reads == [(sorted([A.id, B.id]), ["a", "b"], ["c"])]


async def test_what_stands_in_for_a_dead_chunk_is_read_too_and_its_document_once_more() -> None:
    here = World(dense=[row("a", 1), B, C], bm25=[], manifests=[live("a", 2), live("b"), live("c")])
    assert await here.documents() == [("b", 1), ("c", 1)]
    assert here.opensearch.reads == [(sorted([row("a", 1).id, B.id]), ["a", "b"], ["c"]), ([C.id], ["c"], [])]


async def test_a_document_replaced_between_two_reads_is_not_shown_in_its_old_version() -> None:
    here = World(dense=[row("a", 1), B, C], bm25=[], manifests=[live("a", 2), live("b"), live("c")])
    read = here.opensearch.read_live

    def replaced(*asked: Any) -> LiveRead:
        answer = read(*asked)
        here.opensearch.manifests["c"] = live("c", 2)
        return answer

    here.opensearch.read_live = replaced  # type: ignore[method-assign]
    assert await here.documents() == [("b", 1)]


async def test_a_chunk_of_a_superseded_version_is_never_shown() -> None:
    here = World(dense=[row("a", 1), row("a", 2)], bm25=[row("a", 1)], manifests=[live("a", 2)])
    assert await here.documents() == [("a", 2)]


async def test_a_version_that_is_not_yet_whole_is_never_shown() -> None:
    here = World(dense=[row("a", 3), row("b", 1)], bm25=[row("a", 2)], manifests=[live("a", 2)])
    assert await here.documents() == [("a", 2)]


async def test_a_deleted_document_is_never_shown() -> None:
    here = World(dense=[A, B], bm25=[A], manifests=[live("a", deleted=True), live("b")])
    assert await here.documents() == [("b", 1)]


async def test_hits_are_live_until_their_documents_are_replaced_or_deleted() -> None:
    here = World(dense=[A, B], bm25=[], manifests=[live("a"), live("b")])
    hits = (await here.search()).hits
    assert await here.retriever.are_live(TENANT, hits)
    for later in (live("b", 2), live("b", deleted=True)):
        here.opensearch.manifests["b"] = later
        assert not await here.retriever.are_live(TENANT, hits)
        assert await here.retriever.are_live(TENANT, [hit for hit in hits if hit.doc_id == "a"])
    reads = len(here.opensearch.reads)
    assert await here.retriever.are_live(TENANT, [])
    assert len(here.opensearch.reads) == reads


async def test_dead_chunks_do_not_move_the_scores_of_live_ones() -> None:
    here = World(dense=[row("a", 1), B, C], bm25=[], manifests=[live("a", 2), live("b"), live("c")])
    found = await here.search(fusion=Fusion(alpha=0.5))
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
    read = here.opensearch.read_live

    def replaced(*asked: Any) -> LiveRead:
        here.milvus.ranked = [row("a", 2)]
        return read(*asked)

    here.opensearch.read_live = replaced  # type: ignore[method-assign]
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

        def meeting(tenant: str, limit: int, found: Any = found) -> list[Candidate]:
            both.wait()
            result: list[Candidate] = found(tenant, limit)
            return result

        store.found = meeting  # type: ignore[method-assign]
    assert len((await here.search()).hits) == 2


async def test_a_bad_filter_is_refused_before_anything_is_asked() -> None:
    here = world()
    with pytest.raises(ValueError, match="colour"):
        await here.search(filters={"colour": "blue"})
    assert here.milvus.limits == []


async def test_the_time_of_every_step_is_told() -> None:
    timings = (await world().search()).timings_ms
    assert list(timings) == ["milvus", "opensearch", "fuse", "read"]


@pytest.mark.parametrize("at", ["search", "live check"])
async def test_a_search_that_is_given_up_asks_for_nothing_more(at: str) -> None:
    here, hang = world(), Hang()
    here.retriever = here.made(reranker=True, threads=1)
    if at == "search":
        here.milvus.search = hang.before(here.milvus.search)  # type: ignore[method-assign]
    else:
        here.opensearch.read_live = hang.before(here.opensearch.read_live)  # type: ignore[method-assign]
    given_up = asyncio.ensure_future(here.search(highlight=True))
    assert await asyncio.to_thread(hang.begun.wait, 10)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    hang.let_go.set()
    await here.search(highlight=True)
    reads = {"search": 1, "live check": 2}[at]
    asked = (len(here.opensearch.reads), len(here.reranker.pairs), len(here.opensearch.highlighted))
    assert asked == (reads, RERANK.candidates, 1), "all but the read that hung are the second search's"


async def test_a_search_that_is_given_up_while_others_hold_all_threads_never_takes_one() -> None:
    here, hang = world(), Hang()
    here.retriever = here.made(threads=1)
    here.milvus.search = hang.before(here.milvus.search)  # type: ignore[method-assign]
    patient = asyncio.ensure_future(here.search())
    assert await asyncio.to_thread(hang.begun.wait, 10)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await here.search()
    assert not patient.done()
    hang.let_go.set()
    assert (await patient).degraded == []
    await here.search()
    assert len(here.milvus.limits) == 2, "the only thread went from the first search to the last"


async def test_of_queries_that_come_together_the_later_ones_do_not_wait_for_a_store_that_was_away() -> None:
    here = world()
    here.milvus.away = away("milvus")
    found = await asyncio.gather(*(here.search() for _ in range(200)))
    assert [one.degraded for one in found] == [["milvus"]] * 200
    assert len(here.milvus.limits) < 100
    here.milvus.away = None
    await asyncio.sleep(0.06)
    assert (await here.search()).degraded == []


@pytest.mark.parametrize("service", ["milvus", "opensearch"])
async def test_a_store_that_is_not_asked_any_more_is_missing_like_one_that_is_away(service: str) -> None:
    here = world()
    here.retriever = here.made(breaker_failures=2, breaker_reset_s=3600)
    store = here.milvus if service == "milvus" else here.opensearch
    store.away = away(service)
    before = [await here.search() for _ in range(2)]
    asked = len(store.limits)
    after = await here.search()
    assert len(store.limits) == asked
    assert [one.degraded for one in [*before, after]] == [[service]] * 3
    assert after.hits == before[0].hits


async def test_when_neither_store_nor_the_live_check_is_asked_any_more_there_is_no_answer() -> None:
    for part in ("stores", "check"):
        here = world()
        here.retriever = here.made(breaker_failures=1, breaker_reset_s=3600)
        if part == "stores":
            here.milvus.away, here.opensearch.away = away("milvus"), away("opensearch")
        else:
            here.opensearch.read_away = away("opensearch")
        for _ in range(2):
            with pytest.raises(Transient) as raised:
                await here.search()
            assert raised.value.service in {"milvus", "opensearch"}
        assert (len(here.milvus.limits), len(here.opensearch.reads)) in {(1, 0), (2, 1)}


async def test_the_deployment_chooses_the_fusion_for_queries_that_do_not_say() -> None:
    here = world()
    here.retriever = here.made(fusion="rrf")
    assert (await here.search()).hits[0].score == 1 / 61 + 1 / 62
    assert (await here.search(fusion=Fusion(method="convex"))).hits[0].score == 0.5
    here.retriever = here.made(alpha=1.0)
    assert (await here.search()).hits[0].doc_id == "a"


async def test_a_reranker_moves_what_it_likes_and_does_not_replace_the_first_stage() -> None:
    here = world()
    here.retriever = here.made(reranker=True)
    first = await here.search(top_k=2, rerank=False, fusion=Fusion(alpha=0.6))
    here.reranker.liked = {first.hits[1].text: 5.0}
    found = await here.search(top_k=2, fusion=Fusion(alpha=0.6))
    assert [hit.doc_id for hit in found.hits] == [hit.doc_id for hit in first.hits][::-1]
    assert [hit.scores.rerank for hit in found.hits] == [5.0, 0.0]
    assert [hit.score for hit in found.hits] == [pytest.approx(0.6), pytest.approx(0.4)]
    assert "rerank" in found.timings_ms


async def test_the_reranker_reads_the_question_and_the_title_with_the_passage() -> None:
    here = world()
    here.retriever = here.made(reranker=True)
    await here.search(query="why?", top_k=3)
    assert ("why?", f"A title\n{A.text}") in here.reranker.pairs
    assert ("why?", B.text) in here.reranker.pairs


@pytest.mark.parametrize(("asked", "by_default", "reranked"), [(None, True, True), (None, False, False), (True, False, True), (False, True, False)])  # fmt: skip
async def test_the_query_decides_on_reranking_and_else_the_deployment(
    asked: bool | None, by_default: bool, reranked: bool
) -> None:
    here = world()
    here.retriever = here.made(reranker=True, rerank=RERANK.model_copy(update={"by_default": by_default}))
    found = await here.search(rerank=asked)
    assert (bool(here.reranker.pairs), found.degraded) == (reranked, [])


async def test_hits_come_without_a_reranker_that_fails_and_say_so() -> None:
    here = world()
    here.retriever = here.made(reranker=True, breaker_failures=2, breaker_reset_s=3600)
    expected = (await here.search(rerank=False)).hits
    here.reranker.away = away("rerank")
    for _ in range(4):
        found = await here.search()
        assert (found.hits, found.degraded) == (expected, ["rerank"])
    assert len(here.reranker.pairs) == 2 * 2, "it was asked after it had failed twice"


async def test_hits_come_without_a_reranker_that_is_too_slow_and_say_so() -> None:
    here = world()
    here.reranker.hang = threading.Event()
    here.retriever = here.made(reranker=True, rerank=RERANK.model_copy(update={"timeout_s": 0.05}))
    assert (await here.search()).degraded == ["rerank"]
    here.reranker.hang.set()


async def test_a_reranker_that_is_back_is_asked_by_everybody_after_the_first_that_tried() -> None:
    here = world()
    here.retriever = here.made(reranker=True, breaker_failures=1, breaker_reset_s=0.2)
    here.reranker.away = away("rerank")
    assert (await here.search()).degraded == ["rerank"]
    here.reranker.away = None
    async with asyncio.timeout(30):
        while (await here.search()).degraded:  # noqa: ASYNC110  the next trial is when its time has come
            await asyncio.sleep(0.01)
    assert (await here.search()).degraded == []


async def test_a_reranker_with_a_bug_is_not_taken_for_one_that_is_away() -> None:
    here = world()
    here.retriever = here.made(reranker=True)
    here.reranker.away = KeyError("a bug")
    with pytest.raises(KeyError):
        await here.search()


async def test_no_more_hits_of_one_document_than_asked_for() -> None:
    rows = [row("a", ordinal=n) for n in range(3)] + [row("b"), row("c")]
    here = World(dense=rows, bm25=[], manifests=[live("a", chunks=3), live("b"), live("c")])
    here.retriever = here.made(candidates=10)
    assert await here.order(top_k=3) == [("a", 0), ("a", 1), ("a", 2)]
    assert await here.order(top_k=3, max_per_document=1) == [("a", 0), ("b", 0), ("c", 0)]
    assert await here.order(top_k=3, max_per_document=2) == [("a", 0), ("a", 1), ("b", 0)]


async def test_when_one_document_fills_the_page_a_wider_one_is_asked_for() -> None:
    rows = [row("a", ordinal=n) for n in range(5)] + [row("b")]
    here = World(dense=rows, bm25=[], manifests=[live("a", chunks=5), live("b")])
    assert await here.order(max_per_document=1) == [("a", 0), ("b", 0)]
    assert here.milvus.limits == [4, 16]


async def test_the_explanation_says_how_a_hit_came_to_its_place() -> None:
    here = world()
    here.retriever = here.made(reranker=True)
    here.reranker.liked = {B.text: 2.0, f"A title\n{A.text}": 1.0}
    found = await here.search(top_k=3, explain=True, fusion=Fusion(alpha=0.5), rerank=True)
    assert {hit.doc_id: hit.explanation for hit in found.hits} == {
        "a": Explanation(dense_rank=1, dense=1.0, bm25=0.0, fused=0.5, fused_rank=1, rerank=0.0, rerank_rank=2),
        "b": Explanation(
            dense_rank=2, bm25_rank=1, dense=0.0, bm25=1.0, fused=0.5, fused_rank=2, rerank=1.0, rerank_rank=1
        ),
        "c": Explanation(bm25_rank=2, dense=0.0, bm25=0.0, fused=0.0, fused_rank=3),
    }
    assert [hit.explanation for hit in (await here.search()).hits] == [None, None]


async def test_the_explanation_of_an_answer_without_a_store_has_nothing_of_that_store() -> None:
    here = world()
    here.milvus.away = away("milvus")
    first, *_ = (await here.search(explain=True)).hits
    assert first.explanation == Explanation(bm25_rank=1, bm25=1.0, fused=1.0, fused_rank=1)


def chunked(doc_id: str, count: int, version: int = 1) -> list[TextRow]:
    """Passages that overlap in one word of a text."""
    text = " ".join(f"{doc_id}{n}" for n in range(count + 1))
    width = len(doc_id) + 2
    spans = [(n * width, (n + 2) * width - 1) for n in range(count)]
    return [
        msgspec.structs.replace(row(doc_id, version, n), text=text[start:end], start=start, end=end)
        for n, (start, end) in enumerate(spans)
    ]


async def test_neighbours_come_in_one_read_and_make_one_passage_with_the_hit() -> None:
    a, b = chunked("a", 4), chunked("b", 3)
    here = World(dense=[a[1], b[2]], bm25=[a[2]], manifests=[live("a", chunks=4), live("b", chunks=3)])
    here.opensearch.rows = {one.id: one for one in [*a, *b]}
    found = await here.search(top_k=3, expand=1)
    passages = {(hit.doc_id, hit.ordinal): hit.passage for hit in found.hits}
    assert {place: one and one.text for place, one in passages.items()} == {
        ("a", 1): "a0 a1 a2 a3",
        ("a", 2): "a1 a2 a3 a4",
        ("b", 2): "b1 b2 b3",
    }
    assert passages["b", 2].chunk_ids == [b[1].id, b[2].id]
    _, neighbours = here.opensearch.reads
    assert neighbours == (sorted([a[0].id, a[3].id, b[1].id]), [], [])


async def test_who_asks_for_no_neighbours_gets_no_passage_and_costs_no_read() -> None:
    here = world()
    assert [hit.passage for hit in (await here.search()).hits] == [None, None]
    assert len(here.opensearch.reads) == 1


async def test_hits_come_without_neighbours_and_highlights_that_cannot_be_had() -> None:
    here = World(dense=[chunked("a", 3)[1]], bm25=[], manifests=[live("a", chunks=3)])
    here.opensearch.highlight_away = away("opensearch")
    found = await here.search(highlight=True, expand=1)
    assert (found.hits[0].highlights, found.degraded) == ([], ["opensearch"])
    assert found.hits[0].passage is not None
    assert found.hits[0].passage.text == found.hits[0].text, "its neighbours are gone"


async def test_highlights_of_all_hits_come_with_one_question() -> None:
    here = world()
    first, second = (await here.search(query="words", highlight=True)).hits
    assert (first.highlights, second.highlights) == ([Highlight(start=0, end=1)], [])
    assert here.opensearch.highlighted == [("words", [first.chunk_id, second.chunk_id])]


async def test_a_store_that_hangs_holds_up_neither_the_other_nor_the_live_check() -> None:
    here = world()
    here.retriever = here.made(threads=2, breaker_failures=1000)
    search, hang = here.milvus.search, Hang()
    here.milvus.search = hang.before(search)  # type: ignore[method-assign]
    fifty = asyncio.gather(*(here.search() for _ in range(50)))
    while len(here.opensearch.limits) < 50:  # noqa: ASYNC110  threads count there
        await asyncio.sleep(0.01)
    here.milvus.search = search  # type: ignore[method-assign]
    assert not fifty.done()
    rows, _ = await here.retriever._sources.live.ask(lambda: here.opensearch.read(TENANT, [A.id], []))
    assert list(rows) == [A.id]
    hang.let_go.set()
    assert [found.degraded for found in await fifty] == [[]] * 50
