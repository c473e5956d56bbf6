import time
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest
from prometheus_client import REGISTRY

from agents.embed import Embedder, decode_chunks
from agents.stage import Outgoing, check_size
from agents.upsert_milvus import MilvusUpserter
from headrace.encoders import Vectors
from headrace.encoders.meter import RATE_OVER_S
from headrace.errors import Poison
from headrace.reuse import VectorReuse
from schemas import Attributes, Batch, Chunk, ChunkBatch, EmbeddingBatch, EncoderIdentity, Replaced, Revision, decode
from schemas.batches import unpack_vectors
from tests.fakes.encoder import FakeEncoder
from tests.fakes.records import item, record
from tests.fakes.stores import FakeVectorStore
from topics import Lane

REVISION = Revision(version=1, timestamp=2, offset=3, fingerprint="f")
ATTRIBUTES = Attributes(created_at=datetime(2026, 1, 1, tzinfo=UTC), title="T")


def batch(*texts: str, doc_id: str = "d", first: int = 0, deleted: bool = False) -> ChunkBatch:
    chunks = [
        Chunk(ordinal=first + place, text=text, start=0, end=len(text), tokens=3) for place, text in enumerate(texts)
    ]
    return ChunkBatch(
        tenant="default",
        doc_id=doc_id,
        revision=REVISION,
        total=first + len(texts),
        first=first,
        attributes=ATTRIBUTES,
        chunks=chunks,
        deleted=deleted,
    )


def embedded(outgoing: Sequence[Outgoing]) -> list[EmbeddingBatch]:
    return [decode(one.value or b"", EmbeddingBatch) for one in outgoing]


async def test_every_chunk_gets_the_vector_of_its_text() -> None:
    encoder = FakeEncoder()
    outgoing = await Embedder(encoder=encoder).work([item(batch("a", "b")), item(batch("c", doc_id="e"))])
    assert encoder.calls == [["a", "b", "c"]]
    for message in embedded(outgoing):
        expected = np.array([encoder.vector(chunk.text) for chunk in message.chunks])
        assert (unpack_vectors(message.vectors, message.dimension) == expected).all()


async def test_a_chunk_is_embedded_in_the_context_that_the_encoder_names() -> None:
    class Titled(FakeEncoder):
        identity = EncoderIdentity(name="test/titled", dimension=4, normalised=True, context="title")

    encoder = Titled()
    [found] = embedded(await Embedder(encoder=encoder).work([item(batch("a", "b"))]))
    assert encoder.calls == [["T a", "T b"]]
    assert [chunk.text for chunk in found.chunks] == ["a", "b"]
    assert found.encoder == "test/titled+title"


async def test_a_batch_keeps_all_that_it_had() -> None:
    sent = batch("a", "b", first=64)
    [found] = embedded(await Embedder(encoder=FakeEncoder()).work([item(sent)]))
    assert {name: getattr(found, name) for name in Batch.__struct_fields__} == {
        name: getattr(sent, name) for name in Batch.__struct_fields__
    }
    assert (found.encoder, found.dimension) == ("test/four-dimensions", 4)


async def test_only_what_the_replaced_version_lacks_is_embedded() -> None:
    encoder, store = FakeEncoder(), FakeVectorStore()
    embedder = Embedder(encoder=encoder, reuse=VectorReuse(store, encoder.identity.recipe))
    [before] = embedded(await embedder.work([item(batch("a", "b", "c"))]))
    await MilvusUpserter(vectors=store, encoder=encoder.identity).work([item(before)])
    update = msgspec.structs.replace(
        batch("a", "new", "b", "c"),
        revision=msgspec.structs.replace(REVISION, version=2),
        replaces=Replaced(revision=REVISION, chunks=3),
    )
    first, after = embedded(await embedder.work([item(batch("x", doc_id="e")), item(update)]))
    assert encoder.calls == [["a", "b", "c"], ["x", "new"]]
    assert unpack_vectors(first.vectors, 4).tolist() == [encoder.vector("x").tolist()]
    assert unpack_vectors(after.vectors, 4).tolist() == [
        encoder.vector(text).tolist() for text in ("a", "new", "b", "c")
    ]


@pytest.mark.parametrize(("lane", "topic"), [("bulk", ""), ("urgent", ".urgent")])
async def test_the_lane_stays(lane: str, topic: str) -> None:
    [sent] = await Embedder(encoder=FakeEncoder()).work([item(batch("a"), lane=lane)])  # type: ignore[arg-type]
    assert (sent.topic, sent.key) == (f"documents.embeddings{topic}", b"default/d")


@pytest.mark.parametrize("lane", ["bulk", "urgent"])
async def test_the_model_is_told_what_is_urgent(lane: Lane) -> None:
    class Listening(FakeEncoder):
        urgent: bool | None = None

        def encode(
            self,
            texts: Sequence[str],
            *,
            contexts: Sequence[str] | None = None,
            truncate: bool = False,
            urgent: bool = False,
        ) -> Vectors:
            self.urgent = urgent
            return super().encode(texts, contexts=contexts, truncate=truncate)

    encoder = Listening()
    await Embedder(encoder=encoder).work([item(batch("a"), lane=lane)])
    assert encoder.urgent is (lane == "urgent")


async def test_what_is_embedded_shows_in_embedding_qps_and_an_idle_encoder_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embedder = Embedder(encoder=FakeEncoder())
    assert REGISTRY.get_sample_value("embedding_qps") == 0
    await embedder.work([item(batch("a", "b", "c"))])
    assert REGISTRY.get_sample_value("embedding_qps") == 3 / RATE_OVER_S
    later = time.monotonic() + RATE_OVER_S
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert REGISTRY.get_sample_value("embedding_qps") == 0


async def test_the_encoder_is_not_asked_for_nothing() -> None:
    encoder = FakeEncoder()
    [found] = embedded(await Embedder(encoder=encoder).work([item(batch(deleted=True))]))
    assert encoder.calls == []
    assert (found.chunks, found.vectors, found.deleted) == ([], "", True)


async def test_what_would_be_too_large_with_its_vectors_travels_in_several_records() -> None:
    class Wide(FakeEncoder):
        identity = EncoderIdentity(name="test/wide", dimension=4096, normalised=True)

        def encode(
            self,
            texts: Sequence[str],
            *,
            contexts: Sequence[str] | None = None,
            truncate: bool = False,
            urgent: bool = False,
        ) -> Vectors:
            return np.tile(np.arange(len(texts), dtype=np.float32)[:, None], 4096)

    outgoing = await Embedder(encoder=Wide()).work([item(batch(*(["text"] * 64), first=64))])
    for one in outgoing:
        check_size(one)
    found = embedded(outgoing)
    assert len(found) > 1
    assert [chunk.ordinal for part in found for chunk in part.chunks] == list(range(64, 128))
    assert [part.first for part in found] == [part.chunks[0].ordinal for part in found]
    vectors = np.concatenate([unpack_vectors(part.vectors, 4096) for part in found])
    assert vectors[:, 0].tolist() == list(range(64))


@pytest.mark.parametrize("value", [None, b"", b"{", b"{}", b"[]"])
def test_what_is_no_batch_is_poison(value: bytes | None) -> None:
    with pytest.raises(Poison) as refused:
        decode_chunks(record(value))
    assert refused.value.code == "bad_json"


async def test_each_record_follows_from_the_one_whose_chunks_it_has() -> None:
    """Of one document, too: its batches have one key."""
    first, second = item(batch("a")), item(batch("b", "c", first=1))
    outgoing = await Embedder(encoder=FakeEncoder()).work([first, second])
    assert [one.cause is of.record for one, of in zip(outgoing, (first, second), strict=True)] == [True, True]
