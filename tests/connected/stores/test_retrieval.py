"""The retriever over the real stores: what stands around a hit, and a store that goes away and comes back."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import uuid4

import numpy as np
import pytest

from headrace.errors import Transient
from headrace.retrieval import Found, Retriever, StoreTimeouts
from headrace.retrieval.settings import RetrievalSettings
from headrace.stores import Stored, StoreSettings, TextRow, VectorRow
from headrace.stores.manifests import OpenSearchManifestStore
from headrace.stores.milvus import MilvusStore
from headrace.stores.opensearch import OpenSearchTextStore
from schemas import Attributes, Fusion, Hit, Key, Live, Manifest, Query, Revision, chunk_id, revision_id
from tests.connected.stores.proxy import Proxy
from tests.fakes.encoder import FakeEncoder

QUESTION = "which wheels turn"
TURNING = (
    "The mill's wheel 😀 is turned by water. It turns a stone.\n\nThe stone grinds the corn, and corn becomes flour."
)
SPANS = [(0, 24), (17, 41), (41, 60), (60, len(TURNING))]
OTHERS = ["Bread is baked in an oven.", "Wheels are turning.", "Wheels turn.", "The wheel turned."]
ASKED = FakeEncoder().vector(QUESTION)
QUICK_S = 1.0
REVISION = Revision(version=1, timestamp=1, offset=1, fingerprint="f")


@pytest.fixture(scope="module")
def tenant(settings: StoreSettings) -> str:
    """Five documents. The vector search likes the passages of the first best, in their order, and then the others."""
    name = f"r-{uuid4().hex[:12]}"
    cut = {"turning": [(TURNING[start:end], start) for start, end in SPANS]}
    cut |= {f"other-{place}": [(text, 0)] for place, text in enumerate(OTHERS)}
    vectors, texts = MilvusStore(settings, FakeEncoder.identity), OpenSearchTextStore(settings)
    manifests = OpenSearchManifestStore(settings)
    ids: list[str] = []
    for doc_id, passages in cut.items():
        key = Key(name, doc_id)
        for ordinal, (text, start) in enumerate(passages):
            shared = {
                "id": chunk_id(revision_id(key, REVISION), ordinal),
                "doc_id": doc_id,
                "version": 1,
                "ordinal": ordinal,
                "content_hash": "h",
                "attributes": Attributes(created_at=datetime(2026, 1, 1, tzinfo=UTC)),
            }
            far = np.roll(ASKED, 1) * len(ids)
            vectors.upsert(name, [VectorRow(**shared, vector=ASKED + far)])
            texts.upsert(name, [TextRow(**shared, text=text, start=start, end=start + len(text))])
            ids.append(shared["id"])
        live = Live(revision=REVISION, chunks=len(passages), at=datetime(2026, 1, 1, tzinfo=UTC))
        manifests.write({key: Stored(manifest=Manifest(tenant=name, doc_id=doc_id, live=live))})
    vectors.make_searchable(name, ids)
    texts.make_searchable(name)
    return name


@pytest.fixture
def milvus_proxy(settings: StoreSettings) -> Iterator[Proxy]:
    proxy = Proxy(settings.milvus.uri)
    yield proxy
    proxy.cut()


@pytest.fixture
def opensearch_proxy(settings: StoreSettings) -> Iterator[Proxy]:
    proxy = Proxy(settings.opensearch.url)
    yield proxy
    proxy.cut()


@asynccontextmanager
async def searching(
    stores: StoreSettings, *, milvus: str | None = None, opensearch: str | None = None, **settings: float
) -> AsyncIterator[Retriever]:
    """A retriever that reaches the stores at these addresses."""
    quick = {"timeout_s": QUICK_S, "search_timeout_s": QUICK_S}
    away = {
        "milvus": stores.milvus.model_copy(update={"uri": milvus, **quick} if milvus else {}),
        "opensearch": stores.opensearch.model_copy(update={"url": opensearch, **quick} if opensearch else {}),
    }
    at = stores.model_copy(update=away)
    vectors, texts = MilvusStore(at, FakeEncoder.identity), OpenSearchTextStore(at)
    retriever = Retriever(
        vectors,
        texts,
        RetrievalSettings(**{"breaker_failures": 3, "breaker_reset_s": 0.5} | settings),
        timeouts=StoreTimeouts(milvus=at.milvus.search_timeout_s, opensearch=at.opensearch.search_timeout_s),
    )
    try:
        yield retriever
    finally:
        retriever.close()
        vectors.close()
        texts.close()


async def ask(retriever: Retriever, tenant: str, **query: object) -> Found:
    return await retriever.search(Query(**{"query": QUESTION, "tenant": tenant, **query}), ASKED)


async def hits(settings: StoreSettings, tenant: str, **query: object) -> list[Hit]:
    async with searching(settings) as retriever:
        return (await ask(retriever, tenant, **query)).hits


async def test_a_passage_is_the_documents_text_around_the_hit(settings: StoreSettings, tenant: str) -> None:
    found = await hits(settings, tenant, expand=1, top_k=10)
    passages = {hit.ordinal: hit.passage for hit in found if hit.doc_id == "turning"}
    assert {ordinal: (one.start, one.end) for ordinal, one in passages.items() if one} == {
        0: (0, 41),
        1: (0, 60),
        2: (17, len(TURNING)),
        3: (41, len(TURNING)),
    }
    for one in passages.values():
        assert one is not None
        assert one.text == TURNING[one.start : one.end]


async def test_highlights_are_the_words_as_they_were_searched_for_also_where_vectors_alone_found_them(
    settings: StoreSettings, tenant: str
) -> None:
    async with searching(settings, candidates=1) as retriever:
        first, second, _ = (await ask(retriever, tenant, top_k=3, highlight=True, fusion=Fusion(alpha=1.0))).hits
    assert (first.scores.bm25, second.scores.bm25) == (None, None), "the word search found three others"
    marked = [[hit.text[one.start : one.end] for one in hit.highlights] for hit in (first, second)]
    assert marked == [["wheel"], ["turned"]]


async def test_one_document_does_not_fill_the_answer(settings: StoreSettings, tenant: str) -> None:
    everything = Fusion(alpha=1.0)
    assert [hit.doc_id for hit in await hits(settings, tenant, top_k=3, fusion=everything)] == ["turning"] * 3
    collapsed = await hits(settings, tenant, top_k=3, max_per_document=1, fusion=everything)
    assert [(hit.doc_id, hit.ordinal) for hit in collapsed] == [("turning", 0), ("other-0", 0), ("other-1", 0)]


@pytest.mark.parametrize("method", ["convex", "zscore", "rrf"])
async def test_the_explanation_adds_up(settings: StoreSettings, tenant: str, method: str) -> None:
    found = await hits(settings, tenant, explain=True, fusion=Fusion(method=method, alpha=0.3))
    assert len(found) == 8
    for hit in found:
        said = hit.explanation
        assert said is not None
        weights = (1, 1) if method == "rrf" else (0.3, 0.7)
        assert said.fused == hit.score == pytest.approx(weights[0] * said.dense + weights[1] * said.bm25)
        assert said.fused_rank == hit.rank
        assert (said.bm25_rank is None) == (hit.scores.bm25 is None)


async def test_a_frozen_milvus_is_gone_without_by_all_and_used_again_when_it_is_back(
    settings: StoreSettings, tenant: str, milvus_proxy: Proxy
) -> None:
    async with searching(settings, milvus=milvus_proxy.url) as retriever:
        whole = await ask(retriever, tenant)
        assert whole.degraded == []
        milvus_proxy.freeze()
        found = await asyncio.gather(*(ask(retriever, tenant) for _ in range(50)))
        assert [one.degraded for one in found] == [["milvus"]] * 50
        assert {hit.doc_id for hit in found[0].hits} == {"turning", "other-1", "other-2", "other-3"}
        milvus_proxy.cut()
        milvus_proxy.up()
        assert (await until_whole(retriever, tenant)).hits == whole.hits


async def test_without_opensearch_there_is_no_answer_and_when_it_is_back_there_is(
    settings: StoreSettings, tenant: str, opensearch_proxy: Proxy
) -> None:
    async with searching(settings, opensearch=opensearch_proxy.url, breaker_failures=1) as retriever:
        whole = await ask(retriever, tenant)
        opensearch_proxy.freeze()
        for _ in range(2):
            with pytest.raises(Transient) as raised:
                await ask(retriever, tenant)
            assert raised.value.service == "opensearch"
        opensearch_proxy.cut()
        opensearch_proxy.up()
        assert (await until_whole(retriever, tenant)).hits == whole.hits


async def test_a_query_waits_for_a_frozen_milvus_no_longer_than_its_own_deadline(
    settings: StoreSettings, tenant: str, milvus_proxy: Proxy
) -> None:
    async with searching(settings, milvus=milvus_proxy.url) as retriever:
        await ask(retriever, tenant)
        milvus_proxy.freeze()
        impatient, patient = await asyncio.gather(
            asyncio.wait_for(ask(retriever, tenant), QUICK_S / 4), ask(retriever, tenant), return_exceptions=True
        )
        assert isinstance(impatient, TimeoutError)
        assert isinstance(patient, Found)
        assert patient.degraded == ["milvus"]


async def until_whole(retriever: Retriever, tenant: str) -> Found:
    give_up = time.monotonic() + 15
    while True:
        try:
            found = await ask(retriever, tenant)
        except Transient:
            found = None
        if found is not None and not found.degraded:
            return found
        assert time.monotonic() < give_up, "still not whole after 15 s"
        await asyncio.sleep(0.1)
