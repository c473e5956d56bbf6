"""Which event is the outcome of which record."""

from datetime import UTC, datetime

import pytest

from headrace.cli.publishing import Outcomes, Outgoing, deletion
from schemas import DocumentEvent, EventError, Key, Status
from schemas.document import Deletion, read_document

KEY = Key("default", "a")


def record(where: str = "a.txt", version: int | None = None, key: Key = KEY) -> Outgoing:
    return Outgoing(where=where, key=key, value=b"{}", version=version)


def event(status: Status, version: int | None, at_ms: int = 2000, code: str | None = None) -> DocumentEvent:
    return DocumentEvent(
        status=status,
        stage="commit",
        at=datetime.fromtimestamp(at_ms / 1000, UTC),
        version=version,
        chunks=3,
        error=EventError(code=code, message="why") if code else None,
    )


@pytest.fixture
def outcomes() -> Outcomes:
    return Outcomes()


def test_the_timestamp_is_the_version_of_a_record_without_one(outcomes: Outcomes) -> None:
    outcomes.expect(record(), 1000)
    assert outcomes.note(KEY, event("indexed", 999)) == []
    [outcome] = outcomes.note(KEY, event("indexed", 1000))
    assert (outcome.where, outcome.status, outcome.version, outcome.chunks) == ("a.txt", "indexed", 1000, 3)
    assert len(outcomes) == 0
    assert outcomes.note(KEY, event("indexed", 1000)) == []


def test_a_version_of_the_documents_own_is_matched_instead(outcomes: Outcomes) -> None:
    outcomes.expect(record(version=7), 1000)
    assert outcomes.note(KEY, event("unchanged", 6)) == []
    [outcome] = outcomes.note(KEY, event("unchanged", 7))
    assert outcome.status == "unchanged"


def test_events_of_other_documents_are_nothing(outcomes: Outcomes) -> None:
    outcomes.expect(record(), 1000)
    assert outcomes.note(Key("other", "a"), event("indexed", 1000)) == []
    assert outcomes.note(Key("default", "b"), event("indexed", 1000)) == []
    assert len(outcomes) == 1


def test_a_failure_says_why(outcomes: Outcomes) -> None:
    outcomes.expect(record(), 1000)
    [outcome] = outcomes.note(KEY, event("failed", 1000, code="too_many_chunks"))
    assert outcome.why == "too_many_chunks (commit): why"


def test_a_failure_without_a_version_is_the_oldest_sent_before_it(outcomes: Outcomes) -> None:
    outcomes.expect(record("first"), 1000)
    outcomes.expect(record("second"), 1500)
    assert outcomes.note(KEY, event("failed", None, at_ms=900)) == []
    assert [outcome.where for outcome in outcomes.note(KEY, event("failed", None))] == ["first"]
    assert outcomes.waiting() == ["second"]


def test_a_newer_version_that_is_done_supersedes_the_older_ones(outcomes: Outcomes) -> None:
    outcomes.expect(record("old"), 1000)
    outcomes.expect(record("new"), 1001)
    done = {outcome.where: outcome.status for outcome in outcomes.note(KEY, event("indexed", 1001))}
    assert done == {"old": "superseded", "new": "indexed"}


def test_a_newer_version_that_failed_supersedes_nothing(outcomes: Outcomes) -> None:
    outcomes.expect(record("old"), 1000)
    outcomes.expect(record("new"), 1001)
    assert [outcome.where for outcome in outcomes.note(KEY, event("failed", 1001, code="x"))] == ["new"]


def test_records_of_one_document_never_share_a_timestamp(outcomes: Outcomes) -> None:
    first = outcomes.next_version(KEY, 1000)
    outcomes.expect(record(), first)
    second = outcomes.next_version(KEY, 1000)
    assert (first, second) == (1000, 1001)
    assert outcomes.next_version(Key("default", "b"), 1000) == 1000


def test_the_brokers_own_time_replaces_the_senders(outcomes: Outcomes) -> None:
    outcomes.expect(record(), 1000)
    outcomes.restamp(KEY, 1000, 1234)
    assert outcomes.note(KEY, event("indexed", 1000)) == []
    assert len(outcomes.note(KEY, event("indexed", 1234))) == 1


def test_the_brokers_own_time_leaves_a_version_of_the_documents_own_alone(outcomes: Outcomes) -> None:
    outcomes.expect(record(version=7), 1000)
    outcomes.restamp(KEY, 1000, 1234)
    assert len(outcomes.note(KEY, event("indexed", 7))) == 1


def test_what_did_not_reach_the_broker_is_not_waited_for(outcomes: Outcomes) -> None:
    outcomes.expect(record(), 1000)
    outcomes.forget(KEY, 1000)
    assert len(outcomes) == 0


def test_a_deletion_without_a_version_is_a_record_without_a_value() -> None:
    assert deletion(KEY, None).value is None
    with_version = deletion(KEY, 5)
    assert (with_version.version, read_document(with_version.value)) == (5, Deletion(version=5))
