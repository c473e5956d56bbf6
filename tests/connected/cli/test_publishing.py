"""What `publish` and `delete` put on the topics, and what they make of the events that come back."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import orjson
import pytest
from confluent_kafka import Message, Producer, murmur2

from headrace.cli import main
from headrace.cli.kafka import Tail, newest_first, raw_key, raw_value, read_one
from headrace.cli.publishing import Outgoing, Tally, publish
from headrace.cli.sources import Problem
from schemas import DocumentEvent, EventError, Key, Status, encode, parse_key
from schemas.document import Deletion, read_document
from topics import RAW_MAX_BYTES
from topics.settings import KafkaSettings


class Lines:
    """A Watch that keeps what it is told."""

    def __init__(self) -> None:
        self.problems: list[tuple[str, str]] = []

    def changed(self, tally: Tally) -> None:
        pass

    def problem(self, where: str, why: str) -> None:
        self.problems.append((where, why))


@pytest.fixture
def tenant() -> str:
    return f"t-{uuid4().hex[:8]}"


def records(kafka: KafkaSettings, topic: str, tenant: str) -> list[Message]:
    """A tenant's records on a topic, in the order of their timestamps."""

    def keep(message: Message) -> Message | None:
        return message if (raw_key(message) or b"").startswith(f"{tenant}/".encode()) else None

    found = list(newest_first(kafka.confluent(), kafka.names.topic(topic), keep))
    return sorted(found, key=lambda message: (message.timestamp()[1], message.partition(), message.offset()))


@contextmanager
def pipeline(kafka: KafkaSettings, judge: Callable[[Key, bytes | None], tuple[Status, bool]]) -> Iterator[None]:
    """Stands for all stages: an event for every record, with or without its version."""
    stop, ready = threading.Event(), threading.Event()
    names = kafka.names

    def run() -> None:
        producer = Producer({**kafka.confluent(), "partitioner": "murmur2_random"})
        with Tail(kafka.confluent(), names.topic("documents.raw")) as raw:
            ready.set()
            while not stop.is_set():
                if (message := raw.poll(0.1)) is None:
                    continue
                key, value = parse_key(raw_key(message)), raw_value(message)
                status, with_version = judge(key, value)
                version = read_document(value).version if with_version else None
                event = DocumentEvent(
                    status=status,
                    stage="test",
                    at=datetime.now(UTC),
                    tenant=key.tenant,
                    doc_id=key.doc_id,
                    version=(message.timestamp()[1] if version is None else version) if with_version else None,
                    chunks=2,
                    error=EventError(code="no_good", message="not today") if status == "failed" else None,
                )
                producer.produce(names.topic("documents.events"), encode(event), key.encode())
                producer.flush()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(30)
    try:
        yield
    finally:
        stop.set()
        thread.join()


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return int(left.value.code or 0)


def test_files_arrive_under_their_key_where_java_would_put_them(
    environment: KafkaSettings, tenant: str, tmp_path: Path
) -> None:
    for name in ("a.txt", "b.md", "ü/c.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    before = time.time() * 1000
    assert run("publish", str(tmp_path), "--tenant", tenant, "--tag", "x") == 0
    found = {raw_key(message): message for message in records(environment, "documents.raw", tenant)}
    assert set(found) == {f"{tenant}/{name}".encode() for name in ("a.txt", "b.md", "ü/c.html")}
    for key, message in found.items():
        assert key is not None
        assert message.partition() == murmur2(key, environment.partitions)
        assert before - 1 <= message.timestamp()[1] <= time.time() * 1000
    assert orjson.loads(raw_value(found[f"{tenant}/b.md".encode()]) or b"") == {
        "text": "text of b.md",
        "content_type": "text/markdown",
        "source": (tmp_path / "b.md").as_uri(),
        "tags": ["x"],
    }


def test_urgent_documents_and_deletions_take_the_fast_path(environment: KafkaSettings, tenant: str) -> None:
    assert run("delete", "a", "--tenant", tenant, "--urgent") == 0
    assert run("delete", "b", "--tenant", tenant, "--urgent", "--version", "9") == 0
    assert records(environment, "documents.raw", tenant) == []
    null, versioned = (raw_value(message) for message in records(environment, "documents.urgent", tenant))
    assert null is None
    assert read_document(versioned) == Deletion(version=9)


def test_the_largest_record_arrives_and_a_larger_one_is_refused_before_it_is_sent(
    environment: KafkaSettings, tenant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = len(f"{tenant}/d1") + len(b'{"text":""}') + 100
    lines = tmp_path / "lines.jsonl"
    with lines.open("wb") as file:
        for doc_id, length in (("d1", RAW_MAX_BYTES - frame), ("d2", RAW_MAX_BYTES - frame + 1), ("d3", 1)):
            file.write(orjson.dumps({"id": doc_id, "text": "x" * length}) + b"\n")
    assert run("publish", str(lines), "--tenant", tenant) == 1
    arrived = {
        raw_key(message): len(raw_value(message) or b"") for message in records(environment, "documents.raw", tenant)
    }
    assert set(arrived) == {f"{tenant}/d1".encode(), f"{tenant}/d3".encode()}
    assert f"{lines}:2: is too large" in capsys.readouterr().err


def test_more_than_the_queue_holds_goes_through(kafka: KafkaSettings, tenant: str) -> None:
    text = b'{"text":"' + b"x" * 1_000_000 + b'"}'
    watch = Lines()
    many = (Outgoing(where=str(n), key=Key(tenant, str(n)), value=text) for n in range(150))
    tally = publish(many, kafka, watch)
    assert (tally.delivered, tally.undelivered, watch.problems) == (150, 0, [])


def test_waiting_ends_when_each_has_its_outcome(kafka: KafkaSettings, tenant: str) -> None:
    statuses: dict[str, Status] = {"a": "indexed", "b": "unchanged", "c": "superseded", "d": "deleted"}
    documents = [
        Outgoing(where="a", key=Key(tenant, "a"), value=b'{"text":""}'),
        Outgoing(where="b", key=Key(tenant, "b"), value=b'{"text":"","version":7}', version=7),
        Outgoing(where="c", key=Key(tenant, "c"), value=b'{"text":""}'),
        Outgoing(where="d", key=Key(tenant, "d"), value=None),
    ]
    with pipeline(kafka, lambda key, _: (statuses.get(key.doc_id, "indexed"), True)):
        tally = publish([*documents, Problem(where="x", why="y")], kafka, Lines(), wait_s=30)
    assert tally.outcomes == {"indexed": 1, "unchanged": 1, "superseded": 1, "deleted": 1, "failed": 0}
    assert (tally.chunks, tally.unfinished, tally.problems) == (2, [], 1)


def test_every_version_of_one_document_has_its_own_outcome(kafka: KafkaSettings, tenant: str) -> None:
    many = [Outgoing(where=str(n), key=Key(tenant, "same"), value=b'{"text":""}') for n in range(200)]
    with pipeline(kafka, lambda *_: ("indexed", True)):
        tally = publish(many, kafka, Lines(), wait_s=30)
    assert tally.finished == 200
    assert tally.unfinished == []
    stamps = [message.timestamp()[1] for message in records(kafka, "documents.raw", tenant)]
    assert len(set(stamps)) == 200


@pytest.mark.parametrize("with_version", [True, False])
def test_a_failure_is_told_with_its_reason(kafka: KafkaSettings, tenant: str, with_version: bool) -> None:
    watch = Lines()
    with pipeline(kafka, lambda *_: ("failed", with_version)):
        document = Outgoing(where="a.txt", key=Key(tenant, "a"), value=b'{"text":""}')
        tally = publish([document], kafka, watch, wait_s=30)
    assert tally.outcomes["failed"] == 1
    assert not tally.fine
    assert watch.problems == [("a.txt", "failed: no_good (test): not today")]


def test_waiting_gives_up_and_says_what_is_missing(kafka: KafkaSettings, tenant: str) -> None:
    document = Outgoing(where="a.txt", key=Key(tenant, "a"), value=b'{"text":""}')
    tally = publish([document], kafka, Lines(), wait_s=1)
    assert tally.unfinished == ["a.txt"]


def test_a_tail_reads_what_was_written_between_its_opening_and_its_first_poll(
    kafka: KafkaSettings, tenant: str
) -> None:
    topic = kafka.names.topic("documents.events")
    with Tail(kafka.confluent(), topic) as tail:
        producer = Producer({**kafka.confluent(), "partitioner": "murmur2_random"})
        for n in range(500):
            producer.produce(topic, b"{}", f"{tenant}/{n}".encode())
        producer.flush()
        time.sleep(1)
        found: set[bytes | None] = set()
        deadline = time.monotonic() + 20
        while len(found) < 500 and time.monotonic() < deadline:
            if (message := tail.poll(0.2)) is not None:
                found.add(raw_key(message))
    assert found == {f"{tenant}/{n}".encode() for n in range(500)}


def test_newest_first_reads_backwards_over_windows(kafka: KafkaSettings, tenant: str) -> None:
    topic = kafka.names.topic("documents.events")
    key = f"{tenant}/a".encode()
    producer = Producer({**kafka.confluent(), "partitioner": "murmur2_random"})
    for n in range(25):
        producer.produce(topic, str(n).encode(), key)
    producer.flush()

    def keep(message: Message) -> int | None:
        return int(raw_value(message) or b"") if raw_key(message) == key else None

    found = newest_first(kafka.confluent(), topic, keep, key=key, window=10)
    assert list(found) == [*range(24, -1, -1)]


def test_one_record_is_read_at_its_place_or_not_at_all(kafka: KafkaSettings, tenant: str) -> None:
    topic = kafka.names.topic("documents.dead")
    placed: list[Message] = []
    producer = Producer(kafka.confluent())
    producer.produce(topic, b"\xff", tenant.encode(), on_delivery=lambda _, message: placed.append(message))
    producer.flush()
    partition, offset = placed[0].partition() or 0, placed[0].offset() or 0
    there = read_one(kafka.confluent(), topic, partition, offset)
    assert there is not None
    assert raw_value(there) == b"\xff"
    assert read_one(kafka.confluent(), topic, partition, offset + 1) is None
    assert read_one(kafka.confluent(), topic, 99, 0) is None
