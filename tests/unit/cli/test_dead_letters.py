"""What dead letters are called, chosen and counted by, as pure functions."""

from datetime import UTC, datetime, timedelta

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from agents.dead_letters import dead_letter_headers, is_whole, replay_headers, replays
from headrace.cli.dead import moment, pretty
from headrace.cli.deadletters import DeadLetter, Selection, grouped, name_of, parse_place, state_of
from headrace.cli.settling import Refused, Tally, Verdict
from headrace.errors import Poison
from schemas import Settlement

AT = datetime(2026, 5, 1, 6, 30, tzinfo=UTC)
Headers = list[tuple[str, bytes | None]]


def letter(**fields: object) -> DeadLetter:
    whole = {
        "id": "1:2",
        "at": AT,
        "key": "acme/a",
        "stage": "chunk",
        "code": "bad_json",
        "message": "why",
        "attempts": "1",
        "topic": "documents.raw",
        "partition": "0",
        "offset": "7",
        "size": 3,
        "state": "open",
    }
    return DeadLetter(**(whole | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("condition", "value", "other"),
    [
        ("stage", "chunk", "embed"),
        ("code", "bad_json", "bad_key"),
        ("tenant", "acme", "acm"),
        ("key", "acme/a", "acme/b"),
        ("since", AT, AT + timedelta(seconds=1)),
        ("until", AT + timedelta(seconds=1), AT),
        ("states", frozenset({"open", "parked"}), frozenset({"parked"})),
    ],
)
def test_a_letter_is_meant_when_it_meets_every_condition(condition: str, value: object, other: object) -> None:
    assert Selection(**{"code": "bad_json", condition: value}).takes(letter())  # type: ignore[arg-type]
    assert not Selection(**{"stage": "chunk", condition: other}).takes(letter())  # type: ignore[arg-type]


def test_a_letter_without_a_key_is_nobodys() -> None:
    assert letter(key=None).tenant == ""
    assert not Selection(tenant="acme").takes(letter(key=None))


def test_groups_are_the_largest_first_and_say_from_when_to_when() -> None:
    later = AT + timedelta(hours=2)
    found = grouped([letter(code="a"), letter(code="b"), letter(code="b", at=later)], ["code"])
    assert [(group.by, group.letters, group.first, group.last) for group in found] == [
        ({"code": "b"}, 2, AT, later),
        ({"code": "a"}, 1, AT, AT),
    ]
    assert [group.by["hour"] for group in grouped([letter(at=later), letter()], ["hour"])] == [
        "2026-05-01T06:00Z",
        "2026-05-01T08:00Z",
    ]


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 1))
def test_a_letters_id_is_read_back(partition: int, offset: int) -> None:
    assert parse_place(name_of((partition, offset))) == (partition, offset)


def test_the_newest_decision_is_the_letters_state() -> None:
    assert state_of(None) == "open"
    assert state_of(Settlement(action="reopened", at=AT, run="r")) == "open"
    assert state_of(Settlement(action="parked", at=AT, run="r")) == "parked"


_names = st.text(max_size=20).filter(lambda name: not name.startswith(("headrace.", "__connect", "kafka_dlt")))


@given(st.lists(st.tuples(_names, st.none() | st.binary(max_size=20))))
def test_headers_come_back_as_they_were_however_often_a_record_dies(original: Headers) -> None:
    headers = original
    for times in range(1, 4):
        died = dead_letter_headers(
            headers,  # type: ignore[arg-type]
            stage="chunk",
            poison=Poison("bad_json", "why"),
            attempts=1,
            topic="documents.raw",
            partition=0,
            offset=0,
        )
        assert is_whole(died)
        headers = replay_headers(died)
        assert headers == [*original, ("headrace.replays", str(times).encode())]
        assert replays(headers) == times


@pytest.mark.parametrize("said", [None, b"", b"-1", b"many", b"\xff", b"9" * 5000])
def test_a_count_of_replays_that_cannot_be_read_is_none(said: bytes | None) -> None:
    assert replays([("headrace.replays", said)]) == 0
    assert replay_headers([("headrace.replays", said)]) == [("headrace.replays", b"1")]


@pytest.mark.parametrize("name", ["headrace.error.last_offset", "headrace.error.left_out_bytes"])
def test_a_letter_that_lacks_the_record_is_not_whole(name: str) -> None:
    assert not is_whole([("headrace.error.code", b"x"), (name, b"1")])


def test_times_are_moments_or_so_long_ago() -> None:
    assert moment("2026-05-01T06:30Z") == AT
    assert moment("2026-05-01T08:30+02:00") == AT
    assert moment("2026-05-01").tzinfo is not None
    now = datetime.now(UTC)
    for text, ago in (("90m", timedelta(minutes=90)), ("6h", timedelta(hours=6)), ("2d", timedelta(days=2))):
        assert abs(now - ago - moment(text)) < timedelta(seconds=30)
    for text in ("yesterday", "", "6", "h", "99999999999d", "1.5h"):
        with pytest.raises(typer.BadParameter):
            moment(text)


def test_a_payload_is_indented_where_it_is_json_and_never_fails_to_be_shown() -> None:
    assert pretty(b'{"a":[1]}') == '{\n  "a": [\n    1\n  ]\n}'
    assert pretty(b'{"a":') == '{"a":'
    assert pretty(b"\xff{}") == "\\xff{}"
    assert len(pretty(b"[" * 200_000)) <= 8004
    assert pretty(b"") == ""


def test_a_tally_counts_what_was_decided_sent_and_refused() -> None:
    tally = Tally(run="r")
    tally.add(Verdict(action="parked"))
    tally.add(Refused(why="no"))
    tally.add(Refused(why="no"))
    assert (tally.settled, tally.refused, tally.sent) == ({"parked": 1}, {"no": 2}, {})
    assert Tally(run="s").settled == {}
