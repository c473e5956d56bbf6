from datetime import UTC, datetime

from headrace.retrieval.live import live_chunks
from headrace.stores.ports import Candidate
from schemas import Key, Live, Manifest, Pending, Revision, chunk_id, revision_id

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = Key("acme", "a-1")


def revision(version: int) -> Revision:
    return Revision(version=version, timestamp=version, offset=version, fingerprint="f")


def candidate(version: int, key: Key = KEY) -> Candidate:
    return Candidate(id=chunk_id(revision_id(key, revision(version)), 0), doc_id=key.doc_id, score=1.0)


def manifest(version: int | None, *, deleted: bool = False, pending: int | None = None) -> Manifest:
    return Manifest(
        tenant=KEY.tenant,
        doc_id=KEY.doc_id,
        live=None if version is None else Live(revision=revision(version), chunks=1, at=NOW, deleted=deleted),
        pending=[] if pending is None else [Pending(revision=revision(pending), total=1)],
    )


def kept(found: list[Candidate], *manifests: Manifest) -> list[Candidate]:
    live = live_chunks(
        {one.id: one.doc_id for one in found},
        {one.doc_id: one.live_revision for one in manifests if one.live_revision},
    )
    return [one for one in found if one.id in live]


def test_only_the_live_versions_chunks_stay() -> None:
    old, live, coming = candidate(1), candidate(2), candidate(3)
    assert kept([coming, live, old], manifest(2, pending=3)) == [live]


def test_a_deleted_document_shows_nothing_not_even_its_last_version() -> None:
    assert kept([candidate(1), candidate(2)], manifest(2, deleted=True)) == []


def test_a_document_that_has_never_been_whole_shows_nothing() -> None:
    assert kept([candidate(1)], manifest(None, pending=1)) == []
    assert kept([candidate(1)]) == []


def test_the_same_version_of_another_document_or_tenant_is_another_revision() -> None:
    other_tenant = Candidate(id=candidate(2, Key("other", "a-1")).id, doc_id="a-1", score=1.0)
    assert kept([candidate(2, Key("acme", "b")), other_tenant], manifest(2)) == []


def test_each_document_has_a_live_version_of_its_own() -> None:
    key = Key("acme", "b")
    other = Manifest(tenant="acme", doc_id="b", live=Live(revision=revision(7), chunks=1, at=NOW))
    found = [candidate(7, key), candidate(2), candidate(6, key)]
    assert kept(found, manifest(2), other) == found[:2]
