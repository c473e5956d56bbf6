"""Which version is let in, which is live, which rows go: the rules, over messages in any order."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import permutations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.versions import Admission, admit, fingerprint, merge_spans, receive, replaced, swept_ids
from schemas import Chunking, Document, Intake, Key, Live, Manifest, Receipt, Replaced, Revision, Store
from schemas.batches import STORES

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = Key("default", "a/b")
EMPTY = Manifest(tenant=KEY.tenant, doc_id=KEY.doc_id)


def revision(version: int, content: str = "A", *, offset: int = 0) -> Revision:
    return Revision(version=version, timestamp=version, offset=offset, fingerprint=content)


def live(manifest: Manifest, version: Revision, chunks: int = 1) -> Manifest:
    return msgspec.structs.replace(manifest, live=Live(revision=version, chunks=chunks, at=NOW))


def let_in(manifest: Manifest, version: Revision, chunks: int = 1) -> tuple[Admission, Manifest]:
    verdict = admit(manifest, version, chunks=lambda: chunks, deleted=False, at=NOW)
    return verdict.admission, verdict.manifest or manifest


def receipts(version: Revision, total: int, store: Store, *, batch: int = 2, deleted: bool = False) -> list[Receipt]:
    return [
        Receipt(
            tenant=KEY.tenant,
            doc_id=KEY.doc_id,
            revision=version,
            store=store,
            total=total,
            first=first,
            count=min(batch, total - first),
            deleted=deleted,
        )
        for first in range(0, max(total, 1), batch)
    ]


def both(version: Revision, total: int, *, deleted: bool = False) -> list[Receipt]:
    return [r for store in STORES for r in receipts(version, total, store, deleted=deleted)]


class TestAdmission:
    def test_a_first_version_is_noted_and_sent(self) -> None:
        admission, manifest = let_in(EMPTY, revision(1))
        assert admission is Admission.SEND
        assert manifest.intake == Intake(revision=revision(1), content=revision(1), chunks=1, at=NOW)

    def test_an_older_version_than_the_one_let_in_is_superseded(self) -> None:
        _, manifest = let_in(EMPTY, revision(5))
        assert let_in(manifest, revision(4)) == (Admission.SUPERSEDED, manifest)

    def test_the_offset_orders_versions_of_one_millisecond(self) -> None:
        _, manifest = let_in(EMPTY, revision(5, "B", offset=8))
        assert let_in(manifest, revision(5, offset=7))[0] is Admission.SUPERSEDED
        assert let_in(manifest, revision(5, offset=9))[0] is Admission.SEND

    def test_a_version_replaces_the_one_that_is_live(self) -> None:
        assert replaced(live(EMPTY, revision(1), chunks=3), revision(2)) == Replaced(revision=revision(1), chunks=3)

    @pytest.mark.parametrize("manifest", [EMPTY, live(EMPTY, revision(1), chunks=0), live(EMPTY, revision(2))])
    def test_nothing_is_replaced_by_the_first_version_behind_an_empty_one_or_by_what_is_live_itself(
        self, manifest: Manifest
    ) -> None:
        assert replaced(manifest, revision(2)) is None

    def test_a_redelivery_is_sent_again_and_written_once(self) -> None:
        _, manifest = let_in(EMPTY, revision(1))
        again = admit(manifest, revision(1), chunks=lambda: 1, deleted=False, at=NOW)
        assert (again.admission, again.manifest) == (Admission.SEND, None)

    def test_what_is_live_already_is_unchanged_and_noted(self) -> None:
        _, manifest = let_in(EMPTY, revision(1))
        admission, manifest = let_in(live(manifest, revision(1)), revision(2))
        assert admission is Admission.UNCHANGED
        assert manifest.intake is not None
        assert (manifest.intake.revision, manifest.intake.content) == (revision(2), revision(1))
        assert let_in(manifest, revision(1, "older", offset=3))[0] is Admission.SUPERSEDED

    def test_a_redelivered_unchanged_version_is_unchanged_again(self) -> None:
        _, manifest = let_in(EMPTY, revision(1))
        _, manifest = let_in(live(manifest, revision(1)), revision(2))
        assert let_in(manifest, revision(2)) == (Admission.UNCHANGED, manifest)

    def test_a_comes_again_while_b_is_on_its_way(self) -> None:
        _, manifest = let_in(EMPTY, revision(1, "A"))
        _, manifest = let_in(live(manifest, revision(1, "A")), revision(2, "B"))
        assert let_in(manifest, revision(3, "A"))[0] is Admission.SEND

    def test_content_on_its_way_that_is_not_live_yet_is_sent_again(self) -> None:
        _, manifest = let_in(EMPTY, revision(1))
        assert let_in(manifest, revision(2))[0] is Admission.SEND


class TestReceipts:
    def test_a_version_is_live_when_both_stores_hold_all_of_it(self) -> None:
        *most, last = both(revision(1), 5)
        first = receive(EMPTY, most, at=NOW)
        assert first.manifest is not None
        assert (first.manifest.live, first.fates) == (None, [])
        done = receive(first.manifest, [last], at=NOW)
        assert done.manifest is not None
        assert done.manifest.live == Live(revision=revision(1), chunks=5, at=NOW)
        assert [(fate.status, fate.chunks) for fate in done.fates] == [("indexed", 5)]
        assert done.manifest.pending == []

    def test_a_receipt_that_comes_twice_counts_once(self) -> None:
        half = receipts(revision(1), 4, "milvus")
        received = receive(EMPTY, [*half, *half], at=NOW)
        assert received.manifest is not None
        assert received.manifest.live is None
        assert received.manifest.pending[0].milvus == [(0, 4)]

    def test_a_newer_version_sweeps_all_rows_of_the_live_one(self) -> None:
        received = receive(live(EMPTY, revision(1), chunks=3), both(revision(2, "B"), 1), at=NOW)
        assert received.manifest is not None and received.manifest.live is not None
        assert received.manifest.live.revision == revision(2, "B")
        [sweep] = received.sweeps
        for store in STORES:
            assert len(swept_ids(KEY, sweep, store)) == 3

    def test_a_redelivered_receipt_of_the_live_version_sweeps_and_tells_again(self) -> None:
        first = receive(live(EMPTY, revision(1), chunks=3), both(revision(2, "B"), 1), at=NOW)
        assert first.manifest is not None
        again = receive(first.manifest, both(revision(2, "B"), 1)[:1], at=NOW)
        assert again.manifest is None
        assert (again.sweeps, again.fates) == (first.sweeps, first.fates)

    def test_rows_of_an_older_version_that_come_late_are_swept_where_they_are(self) -> None:
        [late] = receipts(revision(1), 2, "opensearch")
        received = receive(live(EMPTY, revision(2, "B")), [late], at=NOW)
        assert received.manifest is None
        [sweep] = received.sweeps
        assert (sweep.milvus, sweep.opensearch) == ([], [(0, 2)])
        assert [fate.status for fate in received.fates] == ["superseded"]

    def test_what_had_come_of_an_outdone_version_is_swept_at_the_flip(self) -> None:
        waiting = receive(EMPTY, receipts(revision(1), 4, "milvus")[:1], at=NOW)
        assert waiting.manifest is not None
        received = receive(waiting.manifest, both(revision(2, "B"), 1), at=NOW)
        assert [(s.revision, s.milvus, s.opensearch) for s in received.sweeps] == [(revision(1), [(0, 2)], [])]
        assert {(fate.revision.version, fate.status) for fate in received.fates} == {(1, "superseded"), (2, "indexed")}

    def test_a_delete_is_a_version_without_chunks_and_keeps_a_tombstone(self) -> None:
        received = receive(live(EMPTY, revision(1), chunks=2), both(revision(2, "deleted"), 0, deleted=True), at=NOW)
        assert received.manifest is not None and received.manifest.live is not None
        assert received.manifest.live.deleted
        assert [fate.status for fate in received.fates] == ["deleted"]
        late = receive(received.manifest, both(revision(1), 2), at=NOW)
        assert late.manifest is None
        assert [fate.status for fate in late.fates] == ["superseded"]

    def test_an_empty_document_is_live_without_chunks(self) -> None:
        received = receive(EMPTY, both(revision(1), 0), at=NOW)
        assert received.manifest is not None and received.manifest.live is not None
        assert (received.manifest.live.chunks, received.manifest.live.deleted) == (0, False)

    def test_a_redelivery_under_other_settings_ends_with_what_the_intake_notes(self) -> None:
        old, new = revision(1, "old settings"), revision(1, "new settings")
        for order in permutations([both(old, 3), both(new, 2)]):
            _, manifest = let_in(EMPTY, old, 3)
            _, manifest = let_in(manifest, new, 2)
            for arriving in order:
                for receipt in arriving:
                    manifest = receive(manifest, [receipt], at=NOW).manifest or manifest
            assert manifest.live is not None
            assert manifest.live.revision == new

    def test_a_worker_that_dies_after_the_flip_leaves_nothing_unswept_or_untold(self) -> None:
        """v2 was made live and nothing more; its receipts come again, together with those of v3."""
        noted = receive(live(EMPTY, revision(0), chunks=3), receipts(revision(1), 4, "milvus"), at=NOW).manifest
        assert noted is not None
        flipped = receive(noted, both(revision(2, "B"), 2), at=NOW).manifest
        assert flipped is not None
        received = receive(flipped, [*both(revision(2, "B"), 2), *both(revision(3, "C"), 1)], at=NOW)
        assert {sweep.revision.version for sweep in received.sweeps} == {0, 1, 2}
        told = {(fate.revision.version, fate.status) for fate in received.fates}
        assert told == {(1, "superseded"), (2, "superseded"), (3, "indexed")}

    def test_a_version_that_was_live_and_told_is_not_told_again_when_it_is_replaced(self) -> None:
        received = receive(live(EMPTY, revision(1), chunks=3), both(revision(2, "B"), 1), at=NOW)
        assert [fate.revision.version for fate in received.fates] == [2]

    @given(seed=st.integers(0, 2**32), redelivered=st.integers(0, 6), cut=st.integers(1, 4))
    @settings(max_examples=400, deadline=None)
    def test_whatever_the_order_and_the_crashes_the_newest_is_live_and_alone(
        self, seed: int, redelivered: int, cut: int
    ) -> None:
        """Plays versions against two sets of rows, as the stores would hold them.

        A worker may die after each of its steps; what it had in hand then comes again, with what came meanwhile.
        """
        random_ = random.Random(seed)
        versions = [(revision(1), 3), (revision(2, "B"), 0), (revision(3, "C"), 5), (revision(4, "D"), 2)]
        stream = [receipt for version, total in versions for receipt in both(version, total)]
        stream += random_.choices(stream, k=redelivered)
        random_.shuffle(stream)
        rows: dict[str, set[tuple[int, int]]] = {store: set() for store in STORES}
        told: set[int] = set()
        manifest = EMPTY
        in_hand: list[Receipt] = []
        waiting = [*_batches(stream, cut), []]
        while waiting:
            arrived = waiting.pop(0)
            for receipt in arrived:
                rows[receipt.store] |= {(receipt.revision.version, receipt.first + n) for n in range(receipt.count)}
            in_hand += arrived
            received = receive(manifest, in_hand, at=NOW)
            dies_after = random_.choice(["nothing", "manifest", "sweep", "event", "ack", "ack"]) if waiting else "ack"
            if dies_after == "nothing":
                continue
            manifest = received.manifest or manifest
            if dies_after == "manifest":
                continue
            for sweep in received.sweeps:
                for store in STORES:
                    for first, end in getattr(sweep, store):
                        rows[store] -= {(sweep.revision.version, ordinal) for ordinal in range(first, end)}
            if dies_after == "sweep":
                continue
            told |= {fate.revision.version for fate in received.fates}
            if dies_after == "ack":
                in_hand = []
        assert manifest.live is not None
        assert manifest.live.revision == revision(4, "D")
        assert manifest.pending == []
        assert rows == {store: {(4, 0), (4, 1)} for store in STORES}
        assert told == {1, 2, 3, 4}


def _batches(stream: Sequence[Receipt], size: int) -> list[Sequence[Receipt]]:
    return [stream[first : first + size] for first in range(0, len(stream), size)]


@pytest.mark.parametrize(
    ("spans", "merged"),
    [
        ([], []),
        ([(0, 2), (2, 4)], [(0, 4)]),
        ([(4, 6), (0, 2)], [(0, 2), (4, 6)]),
        ([(0, 5), (1, 2)], [(0, 5)]),
        ([(0, 0)], [(0, 0)]),
    ],
)
def test_spans_merge_where_they_touch(spans: list[tuple[int, int]], merged: list[tuple[int, int]]) -> None:
    assert merge_spans(spans) == merged


@pytest.mark.parametrize(
    "other",
    [
        Document(text="u"),
        Document(text="t", title="x"),
        Document(text="t", tags=["x"]),
        Document(text="t", metadata={"x": 1}),
        Document(text="t", content_type="text/markdown"),
        Document(text="t", created_at=NOW),
    ],
)
def test_whatever_its_rows_hold_changes_a_documents_fingerprint(other: Document) -> None:
    document = Document(text="t")
    assert fingerprint(document, Chunking(), "m") == fingerprint(Document(text="t"), Chunking(), "m")
    assert fingerprint(document, Chunking(), "m") != fingerprint(other, Chunking(), "m")


def test_other_settings_change_a_documents_fingerprint() -> None:
    document = Document(text="t")
    assert fingerprint(document, Chunking(), "m") != fingerprint(document, Chunking(max_tokens=128), "m")
    assert fingerprint(document, Chunking(), "m") != fingerprint(document, Chunking(), "n")
