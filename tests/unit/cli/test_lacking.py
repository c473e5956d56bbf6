"""What another generation must know of a document, and when it doesn't."""

from datetime import UTC, datetime

import pytest

from headrace.cli.lacking import is_lacking, lacking, stands
from headrace.stores import Stored
from headrace.versions import DELETED_FINGERPRINT
from schemas import Intake, Key, Live, Manifest, Revision
from tests.fakes.stores import FakeManifestStore

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def text(version: int, *, at: int = 100) -> Revision:
    return Revision(version=version, timestamp=at, offset=0, fingerprint="text")


def deletion(version: int, *, at: int = 100) -> Revision:
    return Revision(version=version, timestamp=at, offset=0, fingerprint=DELETED_FINGERPRINT)


def let_in(revision: Revision) -> Intake:
    is_deleted = revision.fingerprint == DELETED_FINGERPRINT
    return Intake(revision=revision, content=revision, chunks=1, at=NOW, deleted=is_deleted)


def live(revision: Revision) -> Live:
    return Live(revision=revision, chunks=1, at=NOW, deleted=revision.fingerprint == DELETED_FINGERPRINT)


@pytest.mark.parametrize(
    ("intake", "shown", "known"),
    [
        (text(1), None, None),
        (text(1), text(1), text(1)),
        (text(2), text(1), text(1)),
        (deletion(2), text(1), deletion(2)),
        (deletion(2), deletion(2), deletion(2)),
        (deletion(4), deletion(2), deletion(4)),
        (text(3), deletion(2), deletion(2)),
    ],
)
def test_what_is_live_is_to_be_known_and_a_deletion_as_soon_as_it_is_let_in(
    intake: Revision, shown: Revision | None, known: Revision | None
) -> None:
    manifest = Manifest(tenant="t", doc_id="a", intake=let_in(intake), live=None if shown is None else live(shown))
    assert stands(manifest) == known


@pytest.mark.parametrize(
    ("revision", "intake", "lacks"),
    [
        (text(2), None, True),
        (text(2), text(1), True),
        (text(2), text(2), False),
        (text(2), text(2, at=50), False),
        (text(2), deletion(3), False),
        (deletion(2), None, False),
        (deletion(2), text(1), True),
        (deletion(2), text(2, at=50), True),
        (deletion(2), text(2, at=150), False),
        (deletion(2), text(3), False),
        (deletion(2), deletion(1), False),
    ],
)
def test_a_generation_lacks_what_it_never_let_in_and_a_deletion_where_an_older_text_would_be_back(
    revision: Revision, intake: Revision | None, lacks: bool
) -> None:
    assert is_lacking(revision, None if intake is None else let_in(intake)) == lacks


def test_those_that_are_lacking_are_found_among_many() -> None:
    manifests = FakeManifestStore()
    keys = [Key("t", f"{number:03}") for number in range(450)]
    manifests.write(
        {key: Stored(manifest=Manifest(tenant="t", doc_id=key.doc_id, intake=let_in(text(2)))) for key in keys}
    )
    deleted = {key: deletion(3 if number % 100 == 0 else 1) for number, key in enumerate(keys)}
    assert [key.doc_id for key, _ in lacking(manifests, deleted)] == ["000", "100", "200", "300", "400"]
