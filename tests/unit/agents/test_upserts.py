"""Both stores' stages: rows in, receipts out."""

from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest

from agents.upsert_milvus import MilvusUpserter
from agents.upsert_opensearch import OpenSearchUpserter
from agents.upserts import decode_embeddings
from headrace.errors import Misconfigured, Poison, Transient
from headrace.reuse import content_hash
from schemas import (
    Attributes,
    Chunk,
    EmbeddingBatch,
    EncoderIdentity,
    Receipt,
    Revision,
    chunk_id,
    decode,
    encode,
    revision_id,
)
from schemas.batches import pack_vectors
from tests.fakes.records import item, record
from tests.fakes.stores import FakeTextStore, FakeVectorStore

ENCODER = EncoderIdentity(name="test/four-dimensions", dimension=4, normalised=True)
REVISION = Revision(version=5, timestamp=2, offset=3, fingerprint="f")
ATTRIBUTES = Attributes(created_at=datetime(2026, 1, 1, tzinfo=UTC), title="T")


def batch(count: int = 2, *, tenant: str = "default", doc_id: str = "d", deleted: bool = False) -> EmbeddingBatch:
    chunks = [
        Chunk(ordinal=place, text=f"text {place}", start=place, end=place + 6, tokens=4, headings=["H"])
        for place in range(64, 64 + count)
    ]
    return EmbeddingBatch(
        tenant=tenant,
        doc_id=doc_id,
        revision=REVISION,
        total=200,
        first=64,
        attributes=ATTRIBUTES,
        chunks=chunks,
        deleted=deleted,
        encoder=ENCODER.name,
        dimension=4,
        vectors=pack_vectors(np.arange(4 * count, dtype=np.float32).reshape(-1, 4)),
    )


def changed(**fields: object) -> EmbeddingBatch:
    return msgspec.structs.replace(batch(), **fields)


def ids(sent: EmbeddingBatch) -> list[str]:
    return [chunk_id(revision_id(sent.key, sent.revision), chunk.ordinal) for chunk in sent.chunks]


class TestMilvus:
    async def test_rows_have_their_chunks_ids_and_vectors(self) -> None:
        store = FakeVectorStore()
        await MilvusUpserter(vectors=store, encoder=ENCODER).work([item(batch())])
        rows = store.collections["default"]
        assert list(rows) == ids(batch())
        assert [row.vector.tolist() for row in rows.values()] == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert [(row.doc_id, row.version, row.attributes) for row in rows.values()] == [("d", 5, ATTRIBUTES)] * 2

    @pytest.mark.parametrize("other", [{"encoder": "another/model"}, {"dimension": 2}])
    async def test_vectors_of_another_model_stop_the_worker(self, other: dict[str, object]) -> None:
        with pytest.raises(Misconfigured, match="give all workers the same HEADRACE_ENCODER__MODEL"):
            await MilvusUpserter(vectors=FakeVectorStore(), encoder=ENCODER).work([item(changed(**other))])

    @pytest.mark.parametrize(
        "vectors", ["", "AAAA", "%%", pack_vectors(np.zeros((1, 4))), pack_vectors(np.zeros((3, 4)))]
    )
    async def test_vectors_that_do_not_fit_their_chunks_are_poison(self, vectors: str) -> None:
        store = FakeVectorStore()
        with pytest.raises(Poison) as refused:
            await MilvusUpserter(vectors=store, encoder=ENCODER).work([item(changed(vectors=vectors))])
        assert refused.value.code == "bad_vectors"
        assert store.collections == {}


class TestOpenSearch:
    async def test_rows_have_their_chunks_ids_and_texts(self) -> None:
        store = FakeTextStore()
        await OpenSearchUpserter(texts=store).work([item(batch())])
        rows = store.indexes["default"]
        assert list(rows) == ids(batch())
        assert [(row.text, row.start, row.end, row.headings) for row in rows.values()] == [
            ("text 64", 64, 70, ["H"]),
            ("text 65", 65, 71, ["H"]),
        ]


class TestBoth:
    @pytest.fixture(params=["milvus", "opensearch"])
    def store(self, request: pytest.FixtureRequest) -> FakeVectorStore | FakeTextStore:
        return FakeVectorStore() if request.param == "milvus" else FakeTextStore()

    @pytest.fixture
    def upserter(self, store: FakeVectorStore | FakeTextStore) -> MilvusUpserter | OpenSearchUpserter:
        if isinstance(store, FakeVectorStore):
            return MilvusUpserter(vectors=store, encoder=ENCODER)
        return OpenSearchUpserter(texts=store)

    async def test_each_message_gets_a_receipt(
        self, upserter: MilvusUpserter | OpenSearchUpserter, store: FakeVectorStore | FakeTextStore
    ) -> None:
        sent = [batch(), batch(1, tenant="other", doc_id="e"), batch(0, deleted=True)]
        outgoing = await upserter.work([item(one) for one in sent])
        receipts = [decode(one.value or b"", Receipt) for one in outgoing]
        assert [(one.tenant, one.doc_id, one.first, one.count, one.total, one.deleted) for one in receipts] == [
            ("default", "d", 64, 2, 200, False),
            ("other", "e", 64, 1, 200, False),
            ("default", "d", 64, 0, 200, True),
        ]
        name = "milvus" if isinstance(store, FakeVectorStore) else "opensearch"
        assert {one.store for one in receipts} == {name}
        assert {one.topic for one in outgoing} == {"documents.stored"}
        assert [one.key for one in outgoing] == [b"default/d", b"other/e", b"default/d"]

    async def test_a_row_has_the_hash_of_what_its_vector_is_made_of(
        self, upserter: MilvusUpserter | OpenSearchUpserter, store: FakeVectorStore | FakeTextStore
    ) -> None:
        await upserter.work([item(batch())])
        [rows] = store.rows("default")
        assert [row.content_hash for row in rows] == [
            content_hash(batch(), chunk, ENCODER.recipe) for chunk in batch().chunks
        ]

    async def test_a_replay_overwrites_the_same_rows(
        self, upserter: MilvusUpserter | OpenSearchUpserter, store: FakeVectorStore | FakeTextStore
    ) -> None:
        first = await upserter.work([item(batch())])
        assert await upserter.work([item(batch()), item(batch())]) == [*first, *first]
        assert store.count("default").chunks == 2

    async def test_no_receipt_without_the_store(
        self, upserter: MilvusUpserter | OpenSearchUpserter, store: FakeVectorStore | FakeTextStore
    ) -> None:
        store.failing = Transient("store", "away")
        with pytest.raises(Transient):
            await upserter.work([item(batch())])

    @pytest.mark.parametrize("value", [None, b"", b"{}", encode(REVISION)])
    def test_what_is_no_batch_is_poison(self, value: bytes | None) -> None:
        with pytest.raises(Poison) as refused:
            decode_embeddings(record(value))
        assert refused.value.code == "bad_json"


async def test_a_receipt_follows_from_the_message_whose_rows_it_is_for() -> None:
    items = [item(batch()), item(batch())]
    milvus = await MilvusUpserter(vectors=FakeVectorStore(), encoder=ENCODER).work(items)
    opensearch = await OpenSearchUpserter(texts=FakeTextStore()).work(items)
    for receipts in (milvus, opensearch):
        assert [one.cause is of.record for one, of in zip(receipts, items, strict=True)] == [True, True]
