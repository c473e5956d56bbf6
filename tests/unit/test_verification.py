"""What counts as a difference, and what mends it."""

from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec
import pytest

from headrace.cli.erasing import deletions_of
from headrace.cli.worktable import Suspect, WorkTable
from headrace.stores import StoredRow
from headrace.verification import Difference, Evidence, Fact, Held, Known, Refused, Sent, differences, gather, spared
from schemas import Intake, Key, Live, Manifest, Pending, Revision, Store, chunk_id, revision_id
from schemas.batches import STORES
from schemas.document import Deletion, read_document

KEY = Key("default", "d")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
CHUNKS = 3


def revision(version: int = 1, *, offset: int = 0, content: str = "a") -> Revision:
    return Revision(version=version, timestamp=version, offset=offset, fingerprint=content)


def sent(of: Revision, topic: str = "documents.raw") -> Sent:
    return Sent(topic=topic, partition=0, offset=of.offset, revision=of)


def row(of: Revision, ordinal: int) -> StoredRow:
    name = chunk_id(revision_id(KEY, of), ordinal)
    return StoredRow(id=name, doc_id=KEY.doc_id, version=of.version, ordinal=ordinal, content_hash=str(ordinal))


def rows(of: Revision, ordinals: Iterable[int] = range(CHUNKS)) -> dict[Store, list[StoredRow]]:
    return {store: [row(of, ordinal) for ordinal in ordinals] for store in STORES}


def manifest(
    live: Revision | None,
    intake: Revision | None = None,
    *,
    content: Revision | None = None,
    pending: Iterable[Revision] = (),
    deleted: bool = False,
) -> Manifest:
    let_in = intake or live
    return Manifest(
        tenant=KEY.tenant,
        doc_id=KEY.doc_id,
        intake=None
        if let_in is None
        else Intake(revision=let_in, content=content or let_in, chunks=CHUNKS, at=NOW, deleted=deleted),
        live=None if live is None else Live(revision=live, chunks=0 if deleted else CHUNKS, at=NOW, deleted=deleted),
        pending=[Pending(revision=one, total=CHUNKS) for one in pending],
    )


def healthy() -> Evidence:
    one = revision()
    return Evidence(key=KEY, newest=sent(one), manifest=manifest(one), rows=rows(one))


def found(evidence: Evidence) -> list[tuple[str, str | None, str | None]]:
    return [(one.kind, one.store, one.remedy) for one in differences(evidence)]


def test_a_document_at_rest_has_no_differences() -> None:
    assert found(healthy()) == []


def test_a_deleted_document_has_none_whether_kafka_still_has_its_tombstone_or_not() -> None:
    gone = revision(2, content="deleted")
    for newest in (sent(gone), None):
        assert found(Evidence(key=KEY, newest=newest, manifest=manifest(gone, deleted=True))) == []


def test_a_newer_version_than_kafka_has_may_have_been_let_in() -> None:
    one = revision(2)
    evidence = Evidence(key=KEY, newest=sent(revision(1)), manifest=manifest(one), rows=rows(one))
    assert found(evidence) == []


def test_the_same_content_again_is_noted_and_its_rows_stay_those_of_the_first() -> None:
    first, again = revision(1), revision(2, offset=9)
    evidence = Evidence(key=KEY, newest=sent(again), manifest=manifest(first, again, content=first), rows=rows(first))
    assert found(evidence) == []


@pytest.mark.parametrize("known", [None, manifest(None), manifest(revision(1))])
def test_what_was_not_let_in_is_redelivered(known: Manifest | None) -> None:
    held = rows(revision(1)) if known is not None and known.live is not None else {store: [] for store in STORES}
    evidence = Evidence(key=KEY, newest=sent(revision(1, offset=1)), manifest=known, rows=held)
    assert found(evidence) == [("not_admitted", None, "redeliver")]


def test_what_was_let_in_and_never_went_live_is_redelivered_if_kafka_has_it() -> None:
    old, new = revision(1), revision(2, content="b")
    evidence = Evidence(key=KEY, newest=sent(new), manifest=manifest(old, new, pending=[new]), rows=rows(old))
    assert found(evidence) == [("not_live", None, "redeliver")]
    lost = msgspec.structs.replace(evidence, newest=sent(old))
    assert found(lost) == [("not_live", None, None), ("no_document", None, None)]


def test_rows_on_their_way_are_no_orphans() -> None:
    old, new = revision(1), revision(2, content="b")
    both = {store: [*rows(old)[store], row(new, 0)] for store in STORES}
    evidence = Evidence(key=KEY, newest=sent(new), manifest=manifest(old, new, pending=[new]), rows=both)
    assert [one.kind for one in differences(evidence)] == ["not_live"]


def test_a_version_that_nobody_waits_for_is_told_of() -> None:
    one, other = revision(1), revision(0)
    evidence = msgspec.structs.replace(healthy(), manifest=manifest(one, pending=[other]))
    assert found(evidence) == [("pending", None, None)]


@pytest.mark.parametrize("store", STORES)
def test_missing_rows_are_told_by_store(store: Store) -> None:
    held = rows(revision())
    del held[store][1]
    [one] = differences(msgspec.structs.replace(healthy(), rows=held))
    assert (one.kind, one.store, one.remedy) == ("rows_missing", store, "redeliver")
    assert "1 of 3 rows of version 1 (1)" in one.what


def test_rows_that_kafka_can_no_longer_give_have_no_remedy() -> None:
    evidence = msgspec.structs.replace(healthy(), newest=None, rows={**rows(revision()), "milvus": []})
    assert found(evidence) == [("no_document", None, None), ("rows_missing", "milvus", None)]


def test_an_older_record_of_the_same_content_can_give_them() -> None:
    one = revision(5)
    evidence = Evidence(key=KEY, newest=sent(revision(4)), manifest=manifest(one), rows={**rows(one), "opensearch": []})
    assert found(evidence) == [("rows_missing", "opensearch", "redeliver")]


@pytest.mark.parametrize("field", [{"version": 7}, {"ordinal": 7}, {"content_hash": "x"}])
def test_rows_that_are_not_as_they_should_be(field: dict[str, int | str]) -> None:
    held = rows(revision())
    held["milvus"][2] = msgspec.structs.replace(held["milvus"][2], **field)
    assert found(msgspec.structs.replace(healthy(), rows=held)) == [("rows_differ", None, "redeliver")]


def test_rows_of_nothing_are_swept_and_those_beyond_the_last_chunk_are_such() -> None:
    one, old = revision(2), revision(1, content="b")
    held = {"milvus": [*rows(one)["milvus"], row(old, 0), row(one, CHUNKS)], "opensearch": rows(one)["opensearch"]}
    evidence = Evidence(key=KEY, newest=sent(one), manifest=manifest(one), rows=held)
    [orphaned] = differences(evidence)
    assert (orphaned.kind, orphaned.store, orphaned.remedy) == ("rows_orphaned", "milvus", "sweep")
    assert set(orphaned.rows) == {row(old, 0).id, row(one, CHUNKS).id}


def test_rows_without_a_manifest_wait_for_what_kafka_still_has() -> None:
    one = revision()
    alone = Evidence(key=KEY, rows=rows(one))
    assert found(alone) == [("rows_without_manifest", store, "sweep") for store in STORES]
    sendable = msgspec.structs.replace(alone, newest=sent(one))
    assert {remedy for _, _, remedy in found(sendable)} == {"redeliver"}


def test_rows_that_became_somebodys_are_spared() -> None:
    live, coming, old = revision(2), revision(3, content="c"), revision(1, content="b")
    ids = [row(one, ordinal).id for one in (live, coming, old) for ordinal in range(CHUNKS + 1)]
    assert spared(None, KEY, ids) == set()
    kept = spared(manifest(live, coming), KEY, ids)
    assert kept == {row(live, n).id for n in range(CHUNKS)} | {row(coming, n).id for n in range(CHUNKS + 1)}
    assert kept == spared(manifest(live, live, pending=[coming]), KEY, ids)


def test_of_many_records_the_highest_version_wins_and_dead_letters_do_not_count() -> None:
    low, high, refused = revision(1, offset=5), revision(9, offset=2), revision(10, offset=3)
    facts: list[Fact] = [
        sent(low),
        sent(high, "documents.urgent"),
        sent(refused),
        Refused(topic="documents.raw", partition=0, offset=3),
        Known(manifest=manifest(high)),
        *(Held(store=store, row=one) for store, held in rows(high).items() for one in held),
    ]
    evidence = gather(KEY, facts)
    assert evidence.newest == sent(high, "documents.urgent")
    assert evidence.refused == 1
    assert differences(evidence) == []


def test_the_work_table_gives_each_document_with_all_its_facts() -> None:
    table = WorkTable()
    keys = [Key("default", 'a"b'), Key("default", "line\nbreak"), Key("other", 'a"b')]
    for held in ("milvus", "opensearch"):
        table.add((key, Held(store=held, row=row(revision(), 0))) for key in keys)
    table.add((key, sent(revision())) for key in reversed(keys))
    gathered = list(table.documents())
    assert [evidence.key for evidence in gathered] == sorted(keys)
    assert all(evidence.newest and len(evidence.rows["milvus"]) == 1 for evidence in gathered)


def test_the_work_table_keeps_what_was_found_until_it_is_found_otherwise() -> None:
    table = WorkTable()
    keys = [Key("default", f"d{place}") for place in range(5)]
    for place, key in enumerate(keys):
        missing = Difference(kind="rows_missing", tenant="default", doc_id=key.doc_id, what="", remedy="redeliver")
        note = Difference(kind="no_document", tenant="default", doc_id=key.doc_id, what="")
        newest = sent(revision(offset=9 - place))
        table.note(Suspect(key=key, newest=newest, state=b"s", differences=[missing, note]))
    assert table.counts() == {"no_document": 5, "rows_missing": 5}
    assert (table.redeliveries(), table.without_remedy()) == (5, 0)
    assert list(table.places("documents.raw")) == [(0, offset) for offset in range(5, 10)]
    first = table.unconfirmed(None, 2)
    assert [suspect.key for suspect in first] == keys[:2]
    table.note(msgspec.structs.replace(first[0], confirmed=True))
    table.note(msgspec.structs.replace(first[1], differences=[]))
    assert [suspect.key for suspect in table.unconfirmed(None, 9)] == keys[2:]
    assert [suspect.key for suspect in table.unconfirmed(keys[2], 9)] == keys[3:]
    assert table.forget_unconfirmed() == 3
    assert [one.doc_id for one in table.found("rows_missing")] == ["d0"]


def test_a_deletion_of_everything_wins_over_all_that_is_known() -> None:
    now = 1_000
    [null] = deletions_of(KEY, [sent(revision(5)), Known(manifest=manifest(revision(5)))], now_ms=now)
    assert (null.value, null.topic) == (None, "documents.raw")
    [numbered] = deletions_of(KEY, [sent(revision(5)), Known(manifest=manifest(revision(7_000)))], now_ms=now)
    assert read_document(numbered.value) == Deletion(version=7_001)
    [largest] = deletions_of(KEY, [sent(revision(2**63 - 1))], now_ms=now)
    assert largest.version == 2**63 - 1
    assert [one.topic for one in deletions_of(KEY, [Known(manifest=manifest(revision(5)))], now_ms=now)] == [
        "documents.raw"
    ]


def test_a_deletion_goes_to_every_topic_that_still_has_the_text_and_to_no_other() -> None:
    gone = revision(9, offset=4, content="deleted")
    both = [sent(revision(5)), sent(revision(6), "documents.urgent")]
    assert {one.topic for one in deletions_of(KEY, both, now_ms=9)} == {"documents.raw", "documents.urgent"}
    tombstone = Known(manifest=manifest(gone, deleted=True))
    assert [one.topic for one in deletions_of(KEY, [*both, sent(gone), tombstone], now_ms=9)] == ["documents.urgent"]
    assert deletions_of(KEY, [both[0], sent(gone), tombstone], now_ms=9) == []
    assert deletions_of(KEY, [tombstone], now_ms=9) == []
