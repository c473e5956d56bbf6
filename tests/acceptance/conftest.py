"""An app that knows the contract and nothing else: plain Kafka clients and JSON, no code of headrace."""

import json
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from tests.conftest import Deployment

WITHIN_S = 30.0


@dataclass
class App:
    """Publishes, asks, and reads events, replies and dead letters from where it started."""

    bootstrap: str
    prefix: str
    producer: Producer = field(init=False)
    readers: dict[str, Consumer] = field(default_factory=dict)
    seen: dict[str, list[Message]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.producer = Producer({"bootstrap.servers": self.bootstrap, "message.max.bytes": 10_485_760 + 10_000})
        for topic in ("documents.events", "documents.dead", "replies"):
            reader = Consumer(
                {
                    "bootstrap.servers": self.bootstrap,
                    "group.id": uuid.uuid4().hex,
                    "enable.auto.commit": False,
                    "fetch.message.max.bytes": 20_000_000,
                }
            )
            name = self.prefix + topic
            partitions = reader.list_topics(name, timeout=10).topics[name].partitions
            ends = [
                TopicPartition(name, partition, reader.get_watermark_offsets(TopicPartition(name, partition))[1])
                for partition in partitions
            ]
            reader.assign(ends)
            self.readers[topic], self.seen[topic] = reader, []

    def send(
        self,
        key: bytes | str | None,
        value: Any,
        *,
        topic: str = "documents.raw",
        headers: list[tuple[str, bytes]] | None = None,
        timestamp: int = 0,
    ) -> int:
        """Returns the record's timestamp, Unix ms, once it is confirmed. A dict is sent as JSON, bytes as they are."""
        raw = json.dumps(value).encode() if isinstance(value, dict) else value
        confirmed: list[Any] = []
        self.producer.produce(
            self.prefix + topic,
            raw,
            key,
            headers=headers or [],
            timestamp=timestamp,
            on_delivery=lambda error, message: confirmed.append((error, message)),
        )
        assert self.producer.flush(30) == 0
        [(error, message)] = confirmed
        assert error is None, error
        sent: int = message.timestamp()[1]
        return sent

    def read(self, topic: str, wanted: Callable[[Message], bool], within: float = WITHIN_S) -> Message:
        """The first record that is wanted, whether it came before or comes within so many seconds."""
        deadline = time.monotonic() + within
        for message in self.seen[topic]:
            if wanted(message):
                return message
        while time.monotonic() < deadline:
            message = self.readers[topic].poll(0.5)
            if message is None or message.error():
                continue
            self.seen[topic].append(message)
            if wanted(message):
                return message
        values = [m.value()[:200] for m in self.seen[topic][-5:]]
        raise AssertionError(f"nothing came on {topic} within {within} s; the last ones: {values}")

    def event(self, key: str, version: int | None = None, status: str | None = None) -> dict[str, Any]:
        """What became of a document."""

        def wanted(message: Message) -> bool:
            event = json.loads(message.value())
            return (
                message.key() == key.encode()
                and (version is None or event["version"] == version)
                and (status is None or event["status"] == status)
            )

        found: dict[str, Any] = json.loads(self.read("documents.events", wanted).value())
        return found

    def ask(self, query: dict[str, Any] | bytes, *, headers: list[tuple[str, bytes]] | None = None) -> dict[str, Any]:
        return self.reply(query, headers=headers)[0]

    def reply(
        self, query: dict[str, Any] | bytes, *, headers: list[tuple[str, bytes]] | None = None, key: bytes = b"app"
    ) -> tuple[dict[str, Any], dict[str, bytes], Message]:
        """The answer, its headers and its record."""
        correlation = uuid.uuid4().bytes
        own = [("kafka_correlationId", correlation), ("kafka_replyTopic", (self.prefix + "replies").encode())]
        self.send(key, query, topic="queries", headers=[*own, *(headers or [])])
        message = self.read(
            "replies", lambda reply: dict(reply.headers() or []).get("kafka_correlationId") == correlation
        )
        return json.loads(message.value()), dict(message.headers()), message

    def partition(self, number: int) -> bytes:
        return struct.pack(">i", number)

    def close(self) -> None:
        for reader in self.readers.values():
            reader.close()


@pytest.fixture(scope="session")
def app(pipeline: Deployment) -> Iterator[App]:
    kafka = pipeline.settings.kafka
    made = App(kafka.bootstrap_servers, kafka.topic_prefix)
    yield made
    made.close()
