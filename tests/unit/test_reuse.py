"""Which chunks of an update take their vectors from the version before."""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import reuse
from headrace.encoders import Vectors, reuses_vectors
from headrace.encoders.settings import EncoderSettings
from headrace.errors import Misconfigured, Transient
from headrace.reuse import VectorReuse, content_hash, likely_rows
from headrace.stores import VectorRow
from headrace.stores.ports import TenantAway
from schemas import Attributes, Chunk, ChunkBatch, Replaced, Revision, chunk_id, revision_id
from schemas.batches import CHUNKS_PER_BATCH
from tests.fakes.stores import FakeVectorStore

ENCODER = "test/model+title"
BEFORE = Revision(version=1, timestamp=1, offset=0, fingerprint="f")
AFTER = Revision(version=2, timestamp=2, offset=1, fingerprint="g")


class CountingStore(FakeVectorStore):
    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, list[str]]] = []

    def vectors(self, tenant: str, ids: Sequence[str]) -> dict[str, Vectors]:
        self.asked.append((tenant, list(ids)))
        return super().vectors(tenant, ids)


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


def batches(
    texts: Sequence[str],
    *,
    replaces: int | None = None,
    title: str | None = "T",
    tenant: str = "default",
    doc_id: str = "d",
    headings: Sequence[str] = (),
) -> list[ChunkBatch]:
    """A version of so many chunks, of which the one that it replaces has as many as `replaces` says."""
    chunks = [
        Chunk(ordinal=place, text=text, start=0, end=len(text), tokens=3, headings=list(headings))
        for place, text in enumerate(texts)
    ]
    return [
        ChunkBatch(
            tenant=tenant,
            doc_id=doc_id,
            revision=BEFORE if replaces is None else AFTER,
            total=len(texts),
            first=first,
            attributes=Attributes(created_at=datetime(2026, 1, 1, tzinfo=UTC), title=title),
            chunks=chunks[first : first + CHUNKS_PER_BATCH],
            replaces=None if replaces is None else Replaced(revision=BEFORE, chunks=replaces),
        )
        for first in range(0, len(texts), CHUNKS_PER_BATCH)
    ]


def is_live(store: FakeVectorStore, sent: Sequence[ChunkBatch], *, encoder: str = ENCODER) -> None:
    """What a batch's chunks are made of is told by their vectors: their lengths are the texts' lengths."""
    for batch in sent:
        revision = revision_id(batch.key, batch.revision)
        rows = [
            VectorRow(
                id=chunk_id(revision, chunk.ordinal),
                doc_id=batch.doc_id,
                version=batch.revision.version,
                ordinal=chunk.ordinal,
                content_hash=content_hash(batch, chunk, encoder),
                attributes=batch.attributes,
                vector=np.full(2, len(chunk.text), dtype=np.float32),
            )
            for chunk in batch.chunks
        ]
        store.upsert(batch.tenant, rows)


def reused(store: FakeVectorStore, sent: Sequence[ChunkBatch]) -> list[int]:
    return sorted(VectorReuse(store, ENCODER).vectors(sent))


def test_a_chunk_that_stayed_as_it_was_has_the_vector_that_it_had(store: CountingStore) -> None:
    is_live(store, batches(["a", "bb", "ccc"]))
    found = VectorReuse(store, ENCODER).vectors(batches(["a", "new", "ccc"], replaces=3))
    assert {place: vector.tolist() for place, vector in found.items()} == {0: [1, 1], 2: [3, 3]}


def test_chunks_are_known_wherever_they_have_moved_to(store: CountingStore) -> None:
    is_live(store, batches(["a", "b", "c", "d"]))
    assert reused(store, batches(["new", "a", "c", "d", "b"], replaces=4)) == [1, 2, 3, 4]


@pytest.mark.parametrize("added", [-150, -3, 0, 5, 150])
def test_of_a_long_document_all_before_and_behind_a_change_is_found(store: CountingStore, added: int) -> None:
    texts = [f"text {place}" for place in range(1000)]
    is_live(store, batches(texts))
    new = [f"new {place}" for place in range(max(added, 0))]
    changed = [*texts[:500], *new, *texts[500 + max(-added, 0) :]]
    sent = batches(changed, replaces=1000)
    assert [changed[place] for place in reused(store, sent)] == [text for text in changed if text not in new]
    assert max(len(likely_rows(batch)) for batch in sent) <= 6 * CHUNKS_PER_BATCH


@pytest.mark.parametrize(
    "other", [{"title": "U"}, {"title": None}, {"headings": ["H"]}, {"doc_id": "e"}, {"tenant": "other"}]
)
def test_nothing_is_taken_for_the_same_text_in_another_place(store: CountingStore, other: dict[str, str]) -> None:
    is_live(store, batches(["a", "b"]))
    assert reused(store, batches(["a", "b"], replaces=2, **other)) == []  # type: ignore[arg-type]


def test_nothing_is_taken_from_rows_of_another_encoder(store: CountingStore) -> None:
    is_live(store, batches(["a", "b"]), encoder="test/model")
    assert reused(store, batches(["a", "b"], replaces=2)) == []


def test_rows_that_were_swept_meanwhile_are_not_missed(store: CountingStore) -> None:
    is_live(store, batches(["a", "b"]))
    store.delete("default", [chunk_id(revision_id(batches(["a"])[0].key, BEFORE), 0)])
    assert reused(store, batches(["a", "b"], replaces=2)) == [1]


def test_a_tenants_documents_are_asked_for_together_and_new_ones_not_at_all(store: CountingStore) -> None:
    is_live(store, [*batches(["a"]), *batches(["b"], doc_id="e"), *batches(["c"], tenant="other")])
    sent = [
        *batches(["a"], replaces=1),
        *batches(["x"], doc_id="new"),
        *batches(["b"], doc_id="e", replaces=1),
        *batches(["c"], tenant="other", replaces=1),
    ]
    assert reused(store, sent) == [0, 2, 3]
    assert [(tenant, len(ids)) for tenant, ids in store.asked] == [("default", 2), ("other", 1)]
    store.asked.clear()
    assert reused(store, batches(["x"], doc_id="new")) == []
    assert store.asked == []


@pytest.mark.parametrize(("before", "now"), [(1, 1000), (1000, 1), (3, 64), (64, 3)])
def test_only_rows_that_the_replaced_version_has_are_asked_for(before: int, now: int) -> None:
    for batch in batches(["text"] * now, replaces=before):
        revision = revision_id(batch.key, BEFORE)
        assert set(likely_rows(batch)) <= {chunk_id(revision, ordinal) for ordinal in range(before)}


def test_a_store_that_is_away_is_left_alone_for_a_while(store: CountingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    is_live(store, batches(["a"]))
    vectors, sent = VectorReuse(store, ENCODER), batches(["a"], replaces=1)
    store.failing = Transient("milvus", "away")
    assert [vectors.vectors(sent), vectors.vectors(sent)] == [{}, {}]
    store.failing = None
    assert vectors.vectors(sent) == {}
    assert len(store.asked) == 1
    monkeypatch.setattr(reuse, "PAUSE_S", 0.0)
    again = VectorReuse(store, ENCODER)
    store.failing = Transient("milvus", "away")
    assert again.vectors(sent) == {}
    store.failing = None
    assert list(again.vectors(sent)) == [0]


def test_one_tenants_collection_that_is_away_is_no_matter_to_others(store: CountingStore) -> None:
    is_live(store, batches(["a"]))
    vectors, sent = VectorReuse(store, ENCODER), batches(["a"], replaces=1)
    store.failing = TenantAway("milvus", "not loaded")
    assert vectors.vectors(sent) == {}
    store.failing = None
    assert list(vectors.vectors(sent)) == [0]


def test_a_store_of_another_encoder_is_told_of(store: CountingStore) -> None:
    store.failing = Misconfigured("another encoder")
    with pytest.raises(Misconfigured):
        reused(store, batches(["a"], replaces=1))


@pytest.mark.parametrize(
    ("settings", "reuses"),
    [
        ({"device": "cpu"}, True),
        ({"backend": "openai", "model": "m", "dimension": 8}, True),
        ({"backend": "static"}, False),
        ({"backend": "static", "reuse": "always"}, True),
        ({"device": "cpu", "reuse": "never"}, False),
    ],
)
def test_vectors_are_reused_where_that_is_cheaper_unless_it_is_set(settings: dict[str, object], reuses: bool) -> None:
    assert reuses_vectors(EncoderSettings.model_validate(settings)) is reuses


@given(st.lists(st.tuples(st.text(), st.lists(st.text()), st.text(), st.text()), min_size=2, max_size=2, unique_by=str))
def test_two_chunks_have_one_hash_only_if_all_that_they_are_made_of_is_the_same(
    made_of: list[tuple[str, list[str], str, str]],
) -> None:
    hashes = set()
    for title, headings, text, encoder in made_of:
        [batch] = batches([text], title=title, headings=headings)
        hashes.add(content_hash(batch, batch.chunks[0], encoder))
        moved = msgspec.structs.replace(batch.chunks[0], ordinal=7, start=3, end=9)
        hashes.add(content_hash(batch, moved, encoder))
    assert len(hashes) == 2
