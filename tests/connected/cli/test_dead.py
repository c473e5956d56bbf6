"""Dead letters on a real Kafka: what is decided about them, and what is sent again, whatever is killed."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest
from confluent_kafka import Message, Producer

from agents.dead_letters import dead_letter_headers
from headrace.cli import main
from headrace.cli.deadletters import counts
from headrace.cli.kafka import oldest_first, raw_headers, raw_key, raw_value
from headrace.errors import Poison
from schemas import DocumentEvent, decode
from tests.conftest import Deployment

ROOT = Path(__file__).parents[3]
NOW = time.time_ns() // 1_000_000
HOUR_MS = 3_600_000
WITHIN_S = 60.0


class Letters:
    """Dead letters of one deployment, buried as a stage would, and settled with the `headrace` command."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.kafka = deployment.settings.kafka
        self._producer = Producer(
            self.kafka.confluent() | {"partitioner": "murmur2_random", "message.max.bytes": 11_000_000}
        )
        self._ids: list[str] = []

    def bury(
        self,
        key: bytes | None,
        value: bytes | None,
        *,
        headers: list[tuple[str, bytes | None]] = [],
        topic: str = "documents.raw",
        at: int = NOW,
        stage: str = "chunk",
        code: str = "bad_json",
        extra: tuple[str, bytes] | None = None,
    ) -> None:
        extended = dead_letter_headers(
            headers,  # type: ignore[arg-type]
            stage=stage,
            poison=Poison(code, "why it failed"),
            attempts=1,
            topic=self.deployment.topic(topic) if topic.startswith("documents.") else topic,
            partition=0,
            offset=0,
        )
        self._producer.produce(
            self.deployment.topic("documents.dead"),
            value,
            key,
            headers=[*extended, *([extra] if extra else [])],
            timestamp=at,
            on_delivery=lambda _, message: self._ids.append(f"{message.partition()}:{message.offset()}"),
        )

    def buried(self) -> list[str]:
        """Their ids; for a single one, call it after each."""
        assert self._producer.flush(30) == 0
        ids, self._ids = self._ids, []
        return ids

    def run(self, *arguments: str, exit_code: int = 0) -> str:
        out, said = self._run(*arguments, exit_code=exit_code)
        return out + said

    def json(self, *arguments: str, exit_code: int = 0) -> Any:
        return orjson.loads(self._run(*arguments, "--json", exit_code=exit_code)[0])

    def _run(self, *arguments: str, exit_code: int) -> tuple[str, str]:
        """In this process, to spare the tests a start for each of them."""
        out, err = StringIO(), StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            for name, value in self.deployment.environment.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as left:
                main(["dead", *arguments])
        assert int(left.value.code or 0) == exit_code, err.getvalue() + out.getvalue()
        return out.getvalue(), err.getvalue()

    def ids(self, *filters: str) -> set[str]:
        return {letter["id"] for letter in self.json("list", "--limit", "10000", *filters)}

    def until(self, what: Callable[[], Any]) -> Any:
        """What comes in time, as soon as it is there."""
        deadline = time.monotonic() + WITHIN_S
        while not (found := what()):
            assert time.monotonic() < deadline, "it did not come"
            time.sleep(0.2)
        return found

    def on(self, topic: str) -> list[Message]:
        """Everything that a stage would read there: what was committed."""
        with closing(oldest_first(self.kafka.confluent(), self.deployment.topic(topic))) as found:
            return list(found)


@pytest.fixture
def letters(deployment: Deployment) -> Letters:
    return Letters(deployment)


def test_a_letter_is_sent_again_byte_for_byte_with_its_key_headers_and_timestamp(letters: Letters) -> None:
    whole: list[tuple[str, bytes | None]] = [
        ("trace", b"\x00\xff"),
        ("trace", b"again"),
        ("empty", b""),
        ("absent", None),
        ("ключ", "значение".encode()),
    ]
    old = NOW - 48 * HOUR_MS
    letters.bury(b"default/\xff\x00", bytes(range(256)) * 20, headers=whole, at=old)
    letters.bury(b"default/gone", None, at=old)
    letters.bury(None, b"\x00", topic="documents.chunks", at=old, headers=whole)
    letters.bury(b"", b"", topic="documents.urgent", at=old)
    letters.buried()
    letters.run("replay", "--all")
    [binary, tombstone] = sorted(letters.on("documents.raw"), key=lambda message: raw_key(message) or b"", reverse=True)
    assert (raw_key(binary), raw_value(binary)) == (b"default/\xff\x00", bytes(range(256)) * 20)
    assert raw_headers(binary) == [*whole, ("headrace.replays", b"1")]
    assert (raw_key(tombstone), raw_value(tombstone)) == (b"default/gone", None)
    [keyless] = letters.on("documents.chunks")
    assert (raw_key(keyless), raw_value(keyless)) == (None, b"\x00")
    assert raw_headers(keyless) == [*whole, ("headrace.replays", b"1")]
    [empty] = letters.on("documents.urgent")
    assert (raw_key(empty), raw_value(empty)) == (b"", b"")
    assert {message.timestamp()[1] for message in (binary, tombstone, keyless, empty)} == {old}
    assert letters.ids() == set()
    assert len(letters.ids("--state", "replayed")) == 4


def test_a_letter_of_the_largest_size_is_sent_again_or_says_why_not(letters: Letters) -> None:
    room = 10 * 1024 * 1024 - 61 - 4 - 3 - 1 - len(b"\x18default/fits") - 4 - len(b"\x20headrace.replays\x021")
    letters.bury(b"default/fits", b"x" * room)
    letters.bury(b"default/full", b"x" * (room + 1))
    letters.buried()
    said = letters.run("replay", "--all", exit_code=1)
    assert "larger than documents.raw takes" in said
    assert [raw_key(message) for message in letters.on("documents.raw")] == [b"default/fits"]
    assert [letter["key"] for letter in letters.json("list")] == ["default/full"]


def test_a_letter_from_a_topic_that_no_stage_reads_is_left_open(letters: Letters) -> None:
    for topic in ("documents.raw", "elsewhere", "documents.dead", "documents.dead.settled", "documents.events", ""):
        letters.bury(b"default/a", b"{", topic=topic)
    # Without the deployment's prefix it is another deployment's topic.
    letters.bury(b"default/a", b"{")
    letters.buried()
    producer = Producer(letters.kafka.confluent())
    producer.produce(
        letters.deployment.topic("documents.dead"), b"{", b"x", headers=[("__connect.errors.topic", b"documents.raw")]
    )
    producer.flush()
    said = letters.run("replay", "--all", exit_code=1)
    assert "elsewhere" in said
    assert len(letters.on("documents.raw")) == 2
    assert len(letters.ids()) == 6
    assert letters.on("documents.events") == []


def test_a_letter_that_kafka_would_refuse_holds_no_other_up(letters: Letters) -> None:
    letters.bury(b"default/future", b"{", at=NOW + 2 * HOUR_MS)
    letters.bury(b"default/a", b"{")
    letters.bury(None, b"{")
    letters.buried()
    said = letters.run("replay", "--all", exit_code=1)
    assert "in the future" in said
    assert "no record without a key" in said
    assert [raw_key(message) for message in letters.on("documents.raw")] == [b"default/a"]
    assert len(letters.ids()) == 2


def test_on_topics_that_delete_by_age_an_old_record_is_made_young_enough_to_be_read(letters: Letters) -> None:
    letters.bury(b"default/a", b"{", topic="documents.chunks", at=NOW - 30 * 24 * HOUR_MS)
    letters.bury(b"default/a", b"{", topic="documents.raw", at=NOW - 30 * 24 * HOUR_MS)
    letters.buried()
    letters.run("replay", "--all")
    [moved], [kept] = letters.on("documents.chunks"), letters.on("documents.raw")
    assert 0 <= moved.timestamp()[1] - (NOW - 84 * HOUR_MS) < HOUR_MS
    assert kept.timestamp()[1] == NOW - 30 * 24 * HOUR_MS


def test_a_letter_that_is_not_the_whole_record_is_never_sent_again(letters: Letters) -> None:
    letters.bury(b"default/a", b"", headers=[], extra=("headrace.error.left_out_bytes", b"11000000"))
    letters.bury(None, b"a batch", headers=[], extra=("headrace.error.last_offset", b"17"))
    letters.buried()
    assert "2 left as they are" in letters.run("replay", "--all", exit_code=1)
    assert letters.on("documents.raw") == []
    assert len(letters.ids()) == 2


def test_what_was_sent_again_and_died_again_is_parked_and_comes_back_only_when_asked_for(letters: Letters) -> None:
    letters.bury(b"default/a", b"{", headers=[("headrace.replays", b"1"), ("x", b"y")])
    [letter] = letters.buried()
    said = letters.run("replay", "--all")
    assert "1 parked" in said
    assert letters.on("documents.raw") == []
    assert letters.ids() == set()
    assert letters.ids("--state", "parked") == {letter}
    assert "replayed once and died again" in letters.run("show", letter)
    assert f"{letter} is parked" in letters.run("replay", letter, exit_code=1)
    letters.run("replay", letter, "--state", "parked")
    [record] = letters.on("documents.raw")
    assert raw_headers(record) == [("x", b"y"), ("headrace.replays", b"2")]
    assert letters.ids("--state", "all") == letters.ids("--state", "replayed") == {letter}


def test_more_replays_are_allowed_where_that_is_said(letters: Letters) -> None:
    letters.bury(b"default/a", b"{", headers=[("headrace.replays", b"1")])
    letters.bury(b"default/b", b"{", headers=[("headrace.replays", b"many")])
    letters.buried()
    letters.run("replay", "--all", "--max-replays", "2")
    assert Counter(dict(raw_headers(message))["headrace.replays"] for message in letters.on("documents.raw")) == {
        b"2": 1,
        b"1": 1,
    }


def test_a_dry_run_says_what_would_be_sent_and_does_nothing(letters: Letters) -> None:
    letters.bury(b"default/a", b"{")
    letters.bury(b"default/b", b"{", headers=[("headrace.replays", b"1")])
    letters.bury(b"default/c", b"{", topic="elsewhere")
    ids = letters.buried()
    plan = letters.json("replay", "--all", "--dry-run")
    assert plan["would"]["sent"] == {"documents.raw": 1}
    assert plan["would"]["settled"] == {"replayed": 1, "parked": 1}
    assert sum(plan["would"]["refused"].values()) == 1
    assert "default/a" in letters.run("replay", "--all", "--dry-run")
    assert letters.ids() == set(ids)
    assert letters.on("documents.raw") == letters.on("documents.dead.settled") == []


def test_letters_are_parked_dropped_and_reopened_by_id_and_by_filter(letters: Letters) -> None:
    letters.bury(b"acme/a", b"1", code="bad_json")
    letters.bury(b"acme/b", b"2", code="bad_document", stage="embed")
    letters.bury(b"other/a", b"3", code="bad_json", at=NOW - 50 * HOUR_MS)
    letters.buried()
    [b, *rest] = sorted(letters.ids(), key=lambda name: name not in letters.ids("--key", "acme/b"))
    old = next(iter(letters.ids("--until", "2d")))
    assert letters.ids("--since", "2d") == letters.ids() - {old}
    letters.run("park", b, "--reason", "waits for the fix")
    assert letters.ids() == set(rest)
    assert letters.ids("--state", "parked") == {b}
    shown = letters.json("show", b)
    assert (shown["state"], shown["history"][0]["reason"]) == ("parked", "waits for the fix")
    assert "say --yes" in letters.run("drop", "--code", "bad_json", exit_code=2)
    letters.run("drop", "--code", "bad_json", "--tenant", "other", "--yes")
    assert letters.ids("--state", "dropped") == {old}
    assert letters.ids() == set(rest) - {old}
    letters.run("reopen", "--all")
    letters.run("reopen", "--all", "--state", "dropped")
    assert letters.ids() == {b, *rest}
    actions = [decision["action"] for decision in letters.json("show", b)["history"]]
    assert actions == ["parked", "reopened"]
    assert "there is no dead letter 0:999" in letters.run("park", "0:999", exit_code=1)


def test_dropping_asks_first(letters: Letters) -> None:
    letters.bury(b"default/a", b"{")
    letters.bury(b"default/b", b"{")
    letters.buried()
    for answer, code, left in ((b"n\n", 1, 2), (b"y\n", 0, 0)):
        terminal, stdin = os.openpty()
        os.write(terminal, answer)
        done = subprocess.run(
            letters.deployment.command("dead", "drop", "--all"),
            env=letters.deployment.environment,
            stdin=stdin,
            capture_output=True,
            check=False,
        )
        os.close(stdin)
        os.close(terminal)
        assert done.returncode == code
        assert b"Drop 2 letters?" in done.stderr
        assert len(letters.ids()) == left


def test_letters_of_each_state_are_counted_without_reading_them(letters: Letters) -> None:
    for number in range(20):
        letters.bury(b"default/%d" % number, b"{")
    ids = letters.buried()
    letters.run("park", *ids[:3])
    letters.run("drop", *ids[3:5], "--yes")
    letters.run("reopen", ids[0])
    assert counts(letters.kafka) == {"open": 16, "replayed": 0, "parked": 2, "dropped": 2}


def test_all_letters_are_counted_by_kind(letters: Letters) -> None:
    for number in range(300):
        hour = NOW - number % 3 * HOUR_MS
        letters.bury(b"t%d/a" % (number % 2), b"x", code=("bad_json", "bad_key")[number % 3 == 0], at=hour)
    letters.buried()
    groups = letters.json("list", "--group-by", "code", "--group-by", "tenant")
    assert {(group["by"]["code"], group["by"]["tenant"]): group["letters"] for group in groups} == {
        ("bad_json", "t0"): 100,
        ("bad_json", "t1"): 100,
        ("bad_key", "t0"): 50,
        ("bad_key", "t1"): 50,
    }
    by_hour = letters.json("list", "-g", "hour")
    assert [group["letters"] for group in by_hour] == [100, 100, 100]
    assert "bad_key" in letters.run("list", "-g", "code")


def bury_many(letters: Letters, count: int) -> dict[bytes, bytes]:
    values = {b"default/%d" % number: b"{ %d" % number for number in range(count)}
    for key, value in values.items():
        letters.bury(key, value)
    letters.buried()
    return values


def assert_each_was_sent_once(letters: Letters, values: dict[bytes, bytes]) -> None:
    sent = letters.on("documents.raw")
    assert Counter(raw_key(message) for message in sent) == dict.fromkeys(values, 1)
    assert {raw_key(message): raw_value(message) for message in sent} == values
    assert letters.ids() == set()
    assert len(letters.ids("--state", "replayed")) == len(values)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_replay_that_is_killed_at_a_commit_leaves_each_letter_open_or_sent_once(
    letters: Letters, moment: str
) -> None:
    values = bury_many(letters, 350)
    killed = subprocess.run(
        [sys.executable, "-m", "tests.connected.cli.dying_replay", moment],
        cwd=ROOT,
        env=letters.deployment.environment,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    letters.run("replay", "--all")
    assert_each_was_sent_once(letters, values)
    assert len(letters.on("documents.dead.settled")) == len(values)


def test_a_replay_that_is_killed_anywhere_goes_on_where_it_was(letters: Letters) -> None:
    values = bury_many(letters, 400)
    dice = random.Random(11)
    kills = 0
    for _ in range(4):
        with (letters.deployment.logs / "replay.log").open("ab") as log:
            replaying = subprocess.Popen(
                letters.deployment.command("dead", "replay", "--all", "--rate", "60"),
                env=letters.deployment.environment,
                stdout=log,
                stderr=log,
            )
        time.sleep(2.0 + 2 * dice.random())
        kills += replaying.poll() is None
        replaying.kill()
        replaying.wait()
        left = letters.ids()
        sent = {raw_key(message) for message in letters.on("documents.raw")}
        assert len(sent) + len(left) == len(values)
    assert kills
    letters.run("replay", "--all")
    assert_each_was_sent_once(letters, values)


def test_a_second_replay_ends_the_first_and_nothing_is_sent_twice(letters: Letters) -> None:
    values = bury_many(letters, 300)
    first = subprocess.Popen(
        letters.deployment.command("dead", "replay", "--all", "--rate", "20"),
        env=letters.deployment.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    letters.until(lambda: letters.on("documents.raw"))
    assert first.poll() is None
    letters.run("replay", "--all")
    _, said = first.communicate(timeout=60)
    assert first.returncode == 1
    assert b"another `headrace dead` has begun" in said
    assert said.count(b"\n") == 1
    assert_each_was_sent_once(letters, values)


# With workers


def test_what_died_of_a_bug_is_sent_again_when_the_bug_is_mended_and_works(letters: Letters) -> None:
    """`copy_worker.py` buries what begins with `poison`, until it is told to take it."""
    deployment = letters.deployment
    broken = start_copying(deployment)
    producer = Producer(letters.kafka.confluent() | {"partitioner": "murmur2_random"})
    for number in range(60):
        value = b"poison %d" % number if number % 3 == 0 else b"%d" % number
        producer.produce(deployment.topic("documents.stored"), value, b"default/%d" % number, headers=[("n", b"1")])
    assert producer.flush(30) == 0
    letters.until(lambda: len(letters.ids()) == 20)
    assert letters.json("list", "-g", "code")[0]["by"] == {"code": "unreadable"}
    broken.send_signal(signal.SIGTERM)
    assert broken.wait(timeout=30) == 0
    start_copying(deployment, TAKES_POISON="1")
    letters.run("replay", "--code", "unreadable")

    def copied() -> Counter[bytes | None]:
        values = (raw_value(message) for message in letters.on("documents.events"))
        return Counter(value for value in values if value is not None and not value.startswith(b"{"))

    letters.until(lambda: len(copied()) == 60)
    assert set(copied().values()) == {1}
    assert letters.ids() == set()
    assert len(letters.on("documents.dead")) == 20


def start_copying(deployment: Deployment, **environment: str) -> subprocess.Popen[bytes]:
    with (deployment.logs / "copy.log").open("ab") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "tests.stages.copy_worker"],
            cwd=ROOT,
            env=deployment.environment | {"HEADRACE_WORKER__PORT": "0"} | environment,
            stdout=log,
            stderr=log,
        )
    deployment.workers.append(worker)
    return worker


def events_of(letters: Letters, key: bytes) -> list[DocumentEvent]:
    records = letters.on("documents.events")
    return [decode(raw_value(message) or b"", DocumentEvent) for message in records if raw_key(message) == key]


def test_a_document_that_died_of_what_is_mended_now_is_indexed_under_its_own_version(pipeline: Deployment) -> None:
    letters, key = Letters(pipeline), f"default/{uuid4().hex}"
    letters.bury(key.encode(), b'{"text": "The sluice opens at six."}', at=NOW - HOUR_MS)
    [letter] = letters.buried()
    letters.run("replay", letter)
    [event] = letters.until(lambda: events_of(letters, key.encode()))
    assert (event.status, event.version) == ("indexed", NOW - HOUR_MS)


def test_a_document_that_a_newer_version_has_replaced_since_is_not_brought_back(pipeline: Deployment) -> None:
    letters, changed, deleted = Letters(pipeline), f"default/{uuid4().hex}".encode(), f"default/{uuid4().hex}".encode()
    producer = Producer(letters.kafka.confluent() | {"partitioner": "murmur2_random"})
    producer.produce(pipeline.topic("documents.raw"), b'{"text": "It opens at seven."}', changed, timestamp=NOW)
    producer.produce(pipeline.topic("documents.raw"), None, deleted, timestamp=NOW)
    assert producer.flush(30) == 0
    for key in (changed, deleted):
        letters.until(lambda key=key: events_of(letters, key))
        letters.bury(key, b'{"text": "It opens at six."}', at=NOW - HOUR_MS)
    letters.run("replay", *letters.buried())
    for key, status in ((changed, "indexed"), (deleted, "deleted")):
        first, second = letters.until(lambda key=key: (found := events_of(letters, key))[1:] and found)
        assert (first.status, first.version) == (status, NOW)
        assert (second.status, second.version) == ("superseded", NOW - HOUR_MS)


def test_what_is_sent_again_without_a_fix_dies_once_more_and_is_parked(pipeline: Deployment) -> None:
    letters, key = Letters(pipeline), f"default/{uuid4().hex}"
    producer = Producer(letters.kafka.confluent() | {"partitioner": "murmur2_random"})
    producer.produce(pipeline.topic("documents.raw"), b"{", key.encode(), headers=[("a", b"1"), ("a", None)])
    assert producer.flush(30) == 0

    def found(state: str) -> set[str]:
        return letters.ids("--key", key, "--state", state)

    first = letters.until(lambda: found("open"))
    letters.run("replay", "--key", key)
    second = letters.until(lambda: found("open"))
    assert found("replayed") == first
    shown = letters.json("show", *second)
    assert shown["replays"] == 1
    assert [header for header in shown["headers"] if header[0] == "a"] == [["a", "1"], ["a", "(no value)"]]
    letters.run("replay", "--key", key)
    assert found("open") == set()
    assert found("parked") == second
    records = [message for message in letters.on("documents.raw") if raw_key(message) == key.encode()]
    assert [raw_value(message) for message in records] == [b"{", b"{"]
