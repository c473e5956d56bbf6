"""Which event is the outcome of which record."""

from datetime import UTC, datetime
from typing import Any

import pytest
from headrace_client import DocumentEvent, EventError
from headrace_client.outcomes import Outcomes, Sent

KEY, OTHER = b"default/a", b"default/b"
NOW = 1_800_000_000_000


def event(status: str, version: int | None, **more: Any) -> DocumentEvent:
    at = datetime.fromtimestamp(NOW / 1000 + 10, UTC)
    return DocumentEvent(status=status, stage="commit", at=at, version=version, **more)  # type: ignore[arg-type]


def sent(outcomes: Outcomes, *, named: int | None = None, key: bytes = KEY, confirmed: bool = True) -> Sent:
    record = Sent(key=key, at_ms=outcomes.stamp(key, NOW, waited_for=True), named=named)
    outcomes.expect(record)
    if confirmed:
        assert outcomes.confirm(record, record.at_ms) == []
    return record


def told(found: list[tuple[Sent, Any]]) -> list[tuple[Sent, str]]:
    return [(record, outcome.status) for record, outcome in found]


@pytest.mark.parametrize("status", ["indexed", "deleted", "unchanged", "superseded"])
def test_an_event_of_its_version_is_the_outcome(status: str) -> None:
    outcomes = Outcomes()
    record = sent(outcomes)
    [(found, outcome)] = outcomes.note(KEY, event(status, NOW, chunks=3))
    assert found is record
    assert (outcome.status, outcome.tenant, outcome.doc_id, outcome.version, outcome.chunks) == (
        status, "default", "a", NOW, 3,
    )  # fmt: skip
    assert not outcomes


def test_an_event_of_another_document_or_an_older_version_tells_nothing() -> None:
    outcomes = Outcomes()
    sent(outcomes)
    assert outcomes.note(OTHER, event("indexed", NOW)) == []
    assert outcomes.note(KEY, event("indexed", NOW - 1)) == []
    assert KEY in outcomes


def test_a_newer_version_that_was_judged_supersedes_what_nobody_will_judge_any_more() -> None:
    outcomes = Outcomes()
    record = sent(outcomes)
    [(found, outcome)] = outcomes.note(KEY, event("indexed", NOW + 5))
    assert found is record
    assert (outcome.status, outcome.version, outcome.stage) == ("superseded", NOW, None)


def test_a_newer_version_that_failed_supersedes_nothing() -> None:
    outcomes = Outcomes()
    sent(outcomes)
    assert outcomes.note(KEY, event("failed", NOW + 5)) == []


def test_what_is_waited_for_shares_its_timestamp_with_no_record_before_or_after_it() -> None:
    outcomes = Outcomes()
    before = [outcomes.stamp(KEY, NOW, waited_for=False) for _ in range(2)]
    record = sent(outcomes)
    after = [outcomes.stamp(KEY, NOW, waited_for=False) for _ in range(2)]
    assert [at_ms - NOW for at_ms in (*before, record.at_ms, *after)] == [0, 0, 1, 2, 2]
    assert outcomes.stamp(KEY, NOW + 9, waited_for=True) == NOW + 9


def test_records_of_one_key_never_share_a_timestamp() -> None:
    outcomes = Outcomes()
    assert [sent(outcomes).at_ms - NOW for _ in range(3)] == [0, 1, 2]
    assert sent(outcomes, key=OTHER).at_ms == NOW


def test_of_two_records_with_one_version_each_has_its_own_event() -> None:
    outcomes = Outcomes()
    first, second = sent(outcomes, named=1), sent(outcomes, named=1)
    assert told(outcomes.note(KEY, event("superseded", 1))) == [(first, "superseded")]
    assert told(outcomes.note(KEY, event("indexed", 1))) == [(second, "indexed")]


def test_a_failure_is_told_with_its_reason_by_version_by_timestamp_or_by_neither() -> None:
    for named, version in ((None, NOW), (7, 7), (7, NOW), (None, None), (7, None)):
        outcomes = Outcomes()
        record = sent(outcomes, named=named)
        why = EventError(code="bad_document", message="no text")
        [(found, outcome)] = outcomes.note(KEY, event("failed", version, error=why))
        assert (found, outcome.status, outcome.error) == (record, "failed", why)


def test_what_failed_before_it_was_sent_is_another() -> None:
    outcomes = Outcomes()
    record = Sent(key=KEY, at_ms=NOW + 60_000, named=None, confirmed=True)
    outcomes.expect(record)
    assert outcomes.note(KEY, event("failed", None)) == []


def test_where_the_broker_sets_the_time_an_event_that_comes_before_the_confirmation_counts_after_it() -> None:
    outcomes = Outcomes()
    record = sent(outcomes, confirmed=False)
    assert outcomes.note(KEY, event("indexed", NOW + 9)) == []
    assert told(outcomes.confirm(record, NOW + 9)) == [(record, "indexed")]


def test_what_one_record_held_up_counts_when_that_one_is_given_up() -> None:
    outcomes = Outcomes()
    undelivered = sent(outcomes, confirmed=False)
    delivered = Sent(key=KEY, at_ms=outcomes.stamp(KEY, NOW, waited_for=True), named=None)
    outcomes.expect(delivered)
    assert outcomes.confirm(delivered, NOW + 1) == []
    assert outcomes.note(KEY, event("indexed", NOW + 1)) == []
    assert told(outcomes.forget(undelivered)) == [(delivered, "indexed")]
    assert not outcomes


def test_one_that_is_given_up_leaves_nothing_behind() -> None:
    outcomes = Outcomes()
    assert outcomes.forget(sent(outcomes)) == []
    assert not outcomes
