"""An update takes the vectors of what stayed as it was from Milvus, and does without where Milvus is no help."""

import asyncio
import socket
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from pymilvus import MilvusClient

from agents.embed import Embedder
from agents.upsert_milvus import MilvusUpserter
from headrace import wiring
from headrace.config import Settings
from headrace.errors import Misconfigured
from headrace.reuse import VectorReuse
from headrace.stores import StoreSettings
from headrace.stores.milvus import MilvusStore, collection_name
from schemas import (
    Attributes,
    Chunk,
    ChunkBatch,
    EmbeddingBatch,
    EncoderIdentity,
    Replaced,
    Revision,
    chunk_id,
    decode,
    revision_id,
)
from schemas.batches import unpack_vectors
from tests.fakes.encoder import FakeEncoder
from tests.fakes.records import item

BEFORE = Revision(version=1, timestamp=1, offset=0, fingerprint="f")
AFTER = Revision(version=2, timestamp=2, offset=1, fingerprint="g")
IDENTITY = FakeEncoder.identity
TEXTS = [f"text {place}" for place in range(40)]
UPDATED = [*TEXTS[:20], "a new one", *TEXTS[21:]]
VISIBLE_WITHIN_S = 15


@pytest.fixture
def stores(servers: Settings) -> Iterator[StoreSettings]:
    stores = servers.stores.model_copy(update={"prefix": f"t{uuid4().hex[:8]}_"})
    yield stores
    milvus = MilvusClient(stores.milvus.uri, timeout=5, dedicated=True)
    milvus.drop_collection(collection_name(stores.prefix, "default"))
    milvus.close()


@pytest.fixture
def store(stores: StoreSettings) -> Iterator[MilvusStore]:
    made = MilvusStore(stores, IDENTITY)
    yield made
    made.close()


def batch(texts: Sequence[str], *, replaces: Replaced | None = None) -> ChunkBatch:
    return ChunkBatch(
        tenant="default",
        doc_id="d",
        revision=BEFORE if replaces is None else AFTER,
        total=len(texts),
        first=0,
        attributes=Attributes(created_at=datetime(2026, 1, 1, tzinfo=UTC), title="T"),
        chunks=[Chunk(ordinal=place, text=text, start=0, end=len(text), tokens=3) for place, text in enumerate(texts)],
        replaces=replaces,
    )


UPDATE = batch(UPDATED, replaces=Replaced(revision=BEFORE, chunks=len(TEXTS)))
ROWS = [chunk_id(revision_id(UPDATE.key, BEFORE), ordinal) for ordinal in range(len(TEXTS))]


async def is_stored(store: MilvusStore, sent: ChunkBatch) -> None:
    [embedded] = await Embedder(encoder=FakeEncoder()).work([item(sent)])
    message = decode(embedded.value or b"", EmbeddingBatch)
    await MilvusUpserter(vectors=store, encoder=IDENTITY).work([item(message)])
    give_up = time.monotonic() + VISIBLE_WITHIN_S
    while len(store.vectors("default", ROWS)) < len(sent.chunks):
        assert time.monotonic() < give_up, f"not visible after {VISIBLE_WITHIN_S} s"
        await asyncio.sleep(0.1)


async def embedded_anew(store: MilvusStore, sent: ChunkBatch) -> list[str]:
    """The texts that the model was asked for, when every vector is right."""
    encoder = FakeEncoder()
    [outgoing] = await Embedder(encoder=encoder, reuse=VectorReuse(store, IDENTITY.recipe)).work([item(sent)])
    message = decode(outgoing.value or b"", EmbeddingBatch)
    assert unpack_vectors(message.vectors, 4).tolist() == [encoder.vector(chunk.text).tolist() for chunk in sent.chunks]
    return [text for call in encoder.calls for text in call]


async def test_only_the_changed_chunk_of_an_update_is_embedded(store: MilvusStore) -> None:
    await is_stored(store, batch(TEXTS))
    assert await embedded_anew(store, UPDATE) == ["a new one"]


async def test_rows_that_are_gone_are_embedded_anew(store: MilvusStore) -> None:
    assert await embedded_anew(store, UPDATE) == UPDATED
    await is_stored(store, batch(TEXTS))
    store.delete("default", ROWS)
    # A row that was deleted just now may be seen a little longer, and is as good then.
    assert "a new one" in await embedded_anew(store, UPDATE)


async def test_another_encoders_collection_gives_no_vectors(stores: StoreSettings, store: MilvusStore) -> None:
    await is_stored(store, batch(TEXTS))
    other = EncoderIdentity(name="test/other-four", dimension=4, normalised=True)
    with pytest.raises(Misconfigured, match="test/four-dimensions"):
        VectorReuse(MilvusStore(stores, other), other.recipe).vectors([UPDATE])


@pytest.mark.parametrize("listens", [True, False])
def test_a_milvus_that_is_away_or_silent_is_done_without(servers: Settings, listens: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        uri = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        if not listens:
            deaf.close()
        milvus = servers.stores.milvus.model_copy(update={"uri": uri})
        stores = servers.stores.model_copy(update={"milvus": milvus})
        encoder = servers.encoder.model_copy(update={"reuse": "always"})
        reuse = wiring.build_reuse(servers.model_copy(update={"stores": stores, "encoder": encoder}))
        assert reuse is not None
        assert reuse.vectors([UPDATE]) == {}
