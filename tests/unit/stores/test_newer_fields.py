"""What a newer release wrote into a manifest outlives an older worker's write."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson

from headrace.stores.newer_fields import beyond, rewritten
from schemas import Intake, Live, Manifest, Pending, Revision
from schemas.wire import decode, encode

AT = datetime(2026, 1, 1, tzinfo=UTC)
OLD, NEW = (Revision(version=n, timestamp=n, offset=n, fingerprint="f") for n in (1, 2))


def manifest(**parts: Any) -> Manifest:
    return Manifest(tenant="acme", doc_id="d", **parts)


def by_a_newer_release(known: Manifest, **fields: Any) -> bytes:
    """The manifest with more fields: `live__note` is a field `note` of `live`, `pending__0__note` one of an entry."""
    found = orjson.loads(encode(known))
    for path, value in fields.items():
        *parts, name = path.split("__")
        place = found
        for part in parts:
            place = place[int(part) if part.isdigit() else part]
        place[name] = value
    return orjson.dumps(found)


def replaced(source: bytes, after: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(rewritten(source, after))
    assert decode(orjson.dumps(found), Manifest) == after
    return found


INTAKE = Intake(revision=NEW, content=NEW, chunks=3, at=AT)
LIVE = Live(revision=OLD, chunks=2, at=AT)
PENDING = Pending(revision=NEW, total=3, milvus=[(0, 3)])


def test_a_manifest_without_unknown_fields_is_nothing_beyond_itself() -> None:
    known = manifest(intake=INTAKE, live=LIVE, pending=[PENDING])
    assert beyond(encode(known), known) is None
    newer = by_a_newer_release(known, live__note="x")
    assert beyond(newer, decode(newer, Manifest)) == newer


def test_what_commit_does_not_touch_keeps_its_unknown_fields() -> None:
    source = by_a_newer_release(manifest(intake=INTAKE, live=LIVE), note="top", intake__note="let in", live__note="old")
    after = replaced(source, manifest(intake=INTAKE, live=Live(revision=NEW, chunks=3, at=AT)))
    assert after["note"] == "top"
    assert after["intake"]["note"] == "let in"
    assert "note" not in after["live"]  # another version


def test_a_version_on_its_way_keeps_them_when_more_of_it_arrives() -> None:
    other = Pending(revision=OLD, total=1)
    source = by_a_newer_release(
        manifest(pending=[other, PENDING]), pending__0__note="other", pending__1__note="on its way"
    )
    grown = msgspec.structs.replace(PENDING, opensearch=[(0, 2)])
    after = replaced(source, manifest(pending=[grown, other]))
    assert [(one["opensearch"], one["note"]) for one in after["pending"]] == [([[0, 2]], "on its way"), ([], "other")]
    assert replaced(source, manifest(pending=[]))["pending"] == []


def test_the_same_version_keeps_them_when_something_else_of_it_changes() -> None:
    source = by_a_newer_release(manifest(live=LIVE), live__note="kept")
    after = replaced(source, manifest(live=msgspec.structs.replace(LIVE, chunks=5)))
    assert (after["live"]["note"], after["live"]["chunks"]) == ("kept", 5)


def test_a_manifest_of_an_older_release_gets_what_it_lacks() -> None:
    source = orjson.dumps({"tenant": "acme", "doc_id": "d", "live": orjson.loads(encode(LIVE))})
    after = replaced(source, manifest(intake=INTAKE, live=LIVE, pending=[PENDING]))
    assert set(after) == {"tenant", "doc_id", "intake", "live", "pending"}


def test_a_field_that_was_null_can_be_set_and_taken_away() -> None:
    source = by_a_newer_release(manifest(intake=INTAKE), note="top")
    assert replaced(source, manifest(live=LIVE))["intake"] is None
    assert replaced(source, manifest(live=LIVE))["note"] == "top"
