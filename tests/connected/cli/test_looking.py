"""Dead letters, topics and lag, as operators see them."""

import struct
import sys
from uuid import uuid4

import orjson
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from headrace.cli import main
from headrace.cli.condition import group_lag
from headrace.cli.whereabouts import recent_dead_letters, recent_events
from schemas import DocumentEvent, Key, encode
from topics import TOPICS
from topics.settings import KafkaSettings


def run(capfdbinary: pytest.CaptureFixture[bytes], *arguments: str) -> tuple[int, bytes, bytes]:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    sys.stdout.flush()
    said = capfdbinary.readouterr()
    return int(left.value.code or 0), said.out, said.err


def bury(kafka: KafkaSettings, key: bytes, value: bytes | None, code: str, stage: str = "chunk") -> str:
    """A dead letter of the contract; returns its id."""
    ids: list[str] = []
    producer = Producer({**kafka.confluent(), "partitioner": "murmur2_random"})
    producer.produce(
        kafka.names.topic("documents.dead"),
        value,
        key,
        headers=[
            ("headrace.error.stage", stage),
            ("headrace.error.code", code),
            ("headrace.error.message", "why it failed"),
            ("headrace.error.attempts", "1"),
            ("__connect.errors.topic", "documents.raw"),
            ("kafka_dlt-original-offset", struct.pack(">q", 77)),
        ],
        on_delivery=lambda _, message: ids.append(f"{message.partition()}:{message.offset()}"),
    )
    producer.flush()
    return ids[0]


def test_dead_letters_are_listed_newest_first_and_by_kind(
    environment: KafkaSettings, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    tenant = f"t-{uuid4().hex[:8]}"
    first = bury(environment, f"{tenant}/a".encode(), b"{", "bad_json")
    second = bury(environment, f"{tenant}/b".encode(), b"{}", "no_text")
    code, out, _ = run(capfdbinary, "dead", "list", "--tenant", tenant, "--json")
    assert code == 0
    assert [letter["id"] for letter in orjson.loads(out)] == [second, first]
    _, out, _ = run(capfdbinary, "dead", "list", "--tenant", tenant, "--code", "bad_json", "--json")
    assert [letter["id"] for letter in orjson.loads(out)] == [first]
    _, out, _ = run(capfdbinary, "dead", "list", "--tenant", tenant, "--limit", "1")
    assert b"no_text" in out
    assert b"bad_json" not in out
    [letter] = recent_dead_letters(Key(tenant, "a"), environment)
    assert (letter.id, letter.code, letter.message, letter.size) == (first, "bad_json", "why it failed", 1)


def test_a_dead_letter_is_shown_whole_and_byte_for_byte(
    environment: KafkaSettings, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    payload = bytes(range(256))
    letter = bury(environment, b"no slash", payload, "bad_key")
    code, out, _ = run(capfdbinary, "dead", "show", letter, "--raw")
    assert (code, out) == (0, payload)
    _, out, _ = run(capfdbinary, "dead", "show", letter)
    assert b"no slash" in out
    assert b"kafka_dlt-original-offset" in out
    assert b"77" in out
    code, _, err = run(capfdbinary, "dead", "show", "0:999999")
    assert code == 1
    assert b"0:999999" in err


def test_the_last_events_of_a_document_are_found(kafka: KafkaSettings) -> None:
    from datetime import UTC, datetime

    key = Key(f"t-{uuid4().hex[:8]}", "a")
    producer = Producer({**kafka.confluent(), "partitioner": "murmur2_random"})
    for version in range(8):
        event = DocumentEvent(status="indexed", stage="commit", at=datetime.now(UTC), version=version)
        producer.produce(kafka.names.topic("documents.events"), encode(event), key.encode())
    producer.flush()
    assert [event.version for event in recent_events(key, kafka)] == [7, 6, 5, 4, 3]


def test_topics_are_shown_in_travel_order(
    environment: KafkaSettings, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    code, out, _ = run(capfdbinary, "topics", "show", "--json")
    assert code == 0
    assert [row["topic"] for row in orjson.loads(out)] == [environment.names.topic(topic.name) for topic in TOPICS]
    code, out, _ = run(capfdbinary, "topics", "create", "--json")
    assert (code, orjson.loads(out)) == (0, {"created": []})


def test_lag_is_what_a_group_has_not_committed(kafka: KafkaSettings) -> None:
    topic = kafka.names.topic("documents.chunks.urgent")
    producer = Producer(kafka.confluent())
    for n in range(10):
        producer.produce(topic, b"{}", b"t/a", partition=n % 2)
    producer.flush()
    lag = {(entry.stage, entry.lane): entry.messages for entry in group_lag(kafka)}
    assert lag["embed", "urgent"] == 10
    assert lag["embed", "bulk"] == 0
    consumer = Consumer({**kafka.confluent(), "group.id": kafka.names.group("embed")})
    consumer.commit(offsets=[TopicPartition(topic, 0, 4)], asynchronous=False)
    consumer.close()
    lag = {(entry.stage, entry.lane): entry.messages for entry in group_lag(kafka)}
    assert lag["embed", "urgent"] == 6
