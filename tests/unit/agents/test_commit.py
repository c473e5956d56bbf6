from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
import pytest

from agents.commit import Committer, decode_receipt
from agents.stage import Outgoing
from headrace.errors import Poison, Transient
from headrace.stores import Stored, TextRow, VectorRow
from schemas import (
    Attributes,
    DocumentEvent,
    Intake,
    Key,
    Live,
    Manifest,
    Receipt,
    Revision,
    Store,
    chunk_id,
    decode,
    revision_id,
)
from schemas.batches import STORES
from tests.fakes.records import item, record
from tests.fakes.stores import FakeManifestStore, FakeTextStore, FakeVectorStore

KEY = Key("default", "d")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Stores:
    """The three of them. `journal` has what was asked of them, in order."""

    def __init__(self) -> None:
        self.journal: list[str] = []
        journal = self.journal

        class Manifests(FakeManifestStore):
            intruder: Mapping[Key, Stored] | None = None

            def write(self, replacements: Mapping[Key, Stored]) -> set[Key]:
                if self.intruder is not None:
                    theirs, self.intruder = self.intruder, None
                    super().write(theirs)
                if replacements:
                    flips = any(one.manifest.live != _live(self, key) for key, one in replacements.items())
                    journal.append("flip" if flips else "note")
                return super().write(replacements)

        class Vectors(FakeVectorStore):
            def make_searchable(self, tenant: str, ids: Sequence[str]) -> None:
                journal.append("make vectors searchable")
                super().make_searchable(tenant, ids)

            def delete(self, tenant: str, ids: Sequence[str]) -> None:
                journal.append("sweep vectors")
                super().delete(tenant, ids)

        class Texts(FakeTextStore):
            def make_searchable(self, tenant: str) -> None:
                journal.append("make texts searchable")
                super().make_searchable(tenant)

            def delete(self, tenant: str, ids: Sequence[str]) -> None:
                journal.append("sweep texts")
                super().delete(tenant, ids)

        self.manifests = Manifests()
        self.vectors = Vectors()
        self.texts = Texts(self.manifests)
        self.committer = Committer(manifests=self.manifests, vectors=self.vectors, texts=self.texts)

    def hold(self, version: Revision, chunks: int) -> None:
        """Rows of a version in both stores, and its intake in the manifest."""
        attributes = Attributes(created_at=NOW)
        for ordinal in range(chunks):
            name = chunk_id(revision_id(KEY, version), ordinal)
            vector = np.ones(4, dtype=np.float32)
            common = {
                "id": name,
                "doc_id": KEY.doc_id,
                "version": version.version,
                "ordinal": ordinal,
                "content_hash": "0",
                "attributes": attributes,
            }
            self.vectors.upsert(KEY.tenant, [VectorRow(vector=vector, **common)])  # type: ignore[arg-type]
            self.texts.upsert(KEY.tenant, [TextRow(text="a", start=0, end=1, **common)])  # type: ignore[arg-type]

    def held(self) -> set[int]:
        """The versions that any store has rows of."""
        rows = [*self.vectors.collections.get("default", {}).values(), *self.texts.indexes.get("default", {}).values()]
        return {row.version for row in rows}

    def live(self) -> int | None:
        live = _live(self.manifests, KEY)
        return None if live is None else live.revision.version

    async def commit(self, *receipts: Receipt) -> list[Outgoing]:
        return await self.committer.work([item(receipt) for receipt in receipts])


def _live(manifests: FakeManifestStore, key: Key) -> Live | None:
    stored = manifests.stored.get(key)
    return None if stored is None else stored.manifest.live


@pytest.fixture
def stores() -> Stores:
    return Stores()


def revision(version: int) -> Revision:
    return Revision(version=version, timestamp=version, offset=0, fingerprint=str(version))


def receipt(version: int, store: Store, *, chunks: int = 2, deleted: bool = False) -> Receipt:
    return Receipt(
        tenant=KEY.tenant,
        doc_id=KEY.doc_id,
        revision=revision(version),
        store=store,
        total=chunks,
        first=0,
        count=chunks,
        deleted=deleted,
    )


def both(version: int, *, chunks: int = 2, deleted: bool = False) -> list[Receipt]:
    return [receipt(version, store, chunks=chunks, deleted=deleted) for store in STORES]


def fates(outgoing: Iterable[Outgoing]) -> list[tuple[str, int | None]]:
    events = [decode(one.value or b"", DocumentEvent) for one in outgoing]
    return [(event.status, event.version) for event in events]


async def test_a_version_is_live_when_both_stores_hold_it(stores: Stores) -> None:
    stores.hold(revision(1), 2)
    assert await stores.commit(receipt(1, "milvus")) == []
    assert stores.live() is None
    assert fates(await stores.commit(receipt(1, "opensearch"))) == [("indexed", 1)]
    assert stores.live() == 1


async def test_rows_are_searchable_before_the_manifest_flips(stores: Stores) -> None:
    stores.hold(revision(1), 2)
    await stores.commit(*both(1))
    assert stores.journal == ["make vectors searchable", "make texts searchable", "flip"]


async def test_the_manifest_does_not_flip_while_searches_cannot_find_the_rows(stores: Stores) -> None:
    stores.hold(revision(1), 2)
    stores.vectors.searchable = False
    with pytest.raises(Transient):
        await stores.commit(*both(1))
    assert stores.live() is None


async def test_rows_that_are_gone_before_the_flip_do_not_stop_the_documents_behind_it(stores: Stores) -> None:
    outgoing = await stores.commit(*both(1))
    assert fates(outgoing) == [("indexed", 1)]


async def test_the_sweep_follows_the_flip(stores: Stores) -> None:
    for version in (1, 2):
        stores.hold(revision(version), 2)
    await stores.commit(*both(1))
    stores.journal.clear()
    outgoing = await stores.commit(*both(2))
    assert stores.journal[2:] == ["flip", "sweep vectors", "sweep texts"]
    assert stores.held() == {2}
    assert fates(outgoing) == [("indexed", 2)]


async def test_a_sweep_that_a_dead_worker_left_undone_is_done_when_the_receipt_comes_again(stores: Stores) -> None:
    for version in (1, 2):
        stores.hold(revision(version), 2)
    await stores.commit(*both(1))
    stores.texts.delete = stores.vectors.delete = _crash  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        await stores.commit(*both(2))
    assert (stores.live(), stores.held()) == (2, {1, 2})
    del stores.texts.delete, stores.vectors.delete
    assert fates(await stores.commit(*both(2))) == [("indexed", 2)]
    assert stores.held() == {2}


async def test_a_receipt_that_comes_twice_counts_once(stores: Stores) -> None:
    stores.hold(revision(1), 2)
    await stores.commit(receipt(1, "milvus"), receipt(1, "milvus"))
    assert stores.live() is None
    await stores.commit(*both(1))
    before = stores.manifests.stored[KEY]
    assert fates(await stores.commit(*both(1))) == [("indexed", 1)]
    assert stores.manifests.stored[KEY] == before


async def test_a_version_that_comes_too_late_is_swept_and_said_to_be_superseded(stores: Stores) -> None:
    for version in (1, 2):
        stores.hold(revision(version), 2)
    await stores.commit(*both(2))
    outgoing = await stores.commit(*both(1))
    assert ("superseded", 1) in fates(outgoing)
    assert (stores.live(), stores.held()) == (2, {2})


async def test_a_deletion_sweeps_everything_and_waits_for_no_search(stores: Stores) -> None:
    stores.hold(revision(1), 2)
    await stores.commit(*both(1))
    stores.journal.clear()
    assert fates(await stores.commit(*both(2, chunks=0, deleted=True))) == [("deleted", 2)]
    assert stores.journal == ["flip", "sweep vectors", "sweep texts"]
    assert (stores.live(), stores.held()) == (2, set())


async def test_a_manifest_that_somebody_else_wrote_first_is_read_again(stores: Stores) -> None:
    stores.hold(revision(1), 2)
    intake = Intake(revision=revision(1), content=revision(1), chunks=2, at=NOW)
    theirs = Manifest(tenant=KEY.tenant, doc_id=KEY.doc_id, intake=intake)
    stores.manifests.intruder = {KEY: Stored(manifest=theirs)}
    assert fates(await stores.commit(*both(1))) == [("indexed", 1)]
    kept = stores.manifests.stored[KEY].manifest
    assert kept.intake == intake
    assert stores.live() == 1


async def test_events_go_under_the_documents_key(stores: Stores) -> None:
    stores.hold(revision(1), 2)
    [sent] = await stores.commit(*both(1))
    assert (sent.topic, sent.key) == ("documents.events", b"default/d")
    event = decode(sent.value or b"", DocumentEvent)
    assert (event.stage, event.tenant, event.doc_id, event.chunks) == ("commit", "default", "d", 2)


@pytest.mark.parametrize("value", [None, b"", b"{", b"{}"])
def test_what_is_no_receipt_is_poison(value: bytes | None) -> None:
    with pytest.raises(Poison) as refused:
        decode_receipt(record(value))
    assert refused.value.code == "bad_json"


def _crash(tenant: str, ids: Sequence[str]) -> None:
    raise RuntimeError("killed")


async def test_an_event_follows_from_the_last_receipt_of_its_version(stores: Stores) -> None:
    """Of a version that was outdone without a receipt of its own, from the document's last one."""
    for version in (1, 2):
        stores.hold(revision(version), 2)
    await stores.commit(receipt(1, "milvus"))
    items = [item(one) for one in (receipt(2, "milvus"), receipt(1, "opensearch"), receipt(2, "opensearch"))]
    outgoing = await stores.committer.work(items)
    assert {(decode(one.value or b"", DocumentEvent).version, id(one.cause)) for one in outgoing} == {
        (1, id(items[1].record)),
        (2, id(items[2].record)),
    }
    await stores.commit(receipt(3, "milvus"))
    later = [item(one) for one in both(4)]
    outdone, live = await stores.committer.work(later)
    assert outdone.cause is live.cause is later[-1].record
