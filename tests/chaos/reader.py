"""An app that asks all the while, with plain Kafka clients, and what its answers must be by the contract."""

import json
import random
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from tests.chaos.workload import Expectation

ASK_EVERY_S = 0.25
SENT_WITHIN_MS = 600_000
ALL_CHUNKS = 50
"""More than a document has here."""
SETTLED = ("indexed", "deleted")


@dataclass(frozen=True)
class Told:
    """What a document's events have said so far: this version is what queries see."""

    version: int
    status: str


@dataclass(kw_only=True)
class Asked:
    """A question, what was known when it was sent, and its answer."""

    tenant: str
    doc_id: str | None
    told: Mapping[str, Told]
    sent_at: float
    answer: dict[str, Any] | None = None
    answered_at: float = 0.0
    replies: int = 0


@dataclass
class Reader:
    """Asks, and reads events and replies, in a thread of its own until it is stopped."""

    bootstrap: str
    prefix: str
    seed: int
    asked: dict[bytes, Asked] = field(default_factory=dict)
    events: list[Message] = field(default_factory=list)
    settled_at: list[float] = field(default_factory=list)
    """When each event of a version that went live, or of a deletion, was read (monotonic seconds)."""
    broken: Exception | None = None
    _told: dict[str, Told] = field(default_factory=dict)
    _asking: threading.Event = field(default_factory=threading.Event)
    _reading: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._asking.set()
        self._reading.set()
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)
        self._thread.start()

    def stop_asking(self) -> None:
        self._asking.clear()

    def stop(self) -> None:
        self._asking.clear()
        self._reading.clear()
        if self._thread is not None:
            self._thread.join(30)

    def unanswered(self) -> int:
        return sum(asked.answer is None for asked in list(self.asked.values()))

    def statuses(self) -> dict[tuple[str, int], set[str]]:
        """What the events said of each (key, version)."""
        said: dict[tuple[str, int], set[str]] = defaultdict(set)
        for message in list(self.events):
            event = json.loads(message.value())
            said[f"{event['tenant']}/{event['doc_id']}", event["version"]].add(event["status"])
        return said

    def _run(self) -> None:
        try:
            self._read_and_ask()
        except Exception as exc:  # noqa: BLE001  # the test's thread is the one to fail
            self.broken = exc

    def _read_and_ask(self) -> None:
        random_ = random.Random(self.seed)
        # The broker is away at times, and librdkafka would say so many times a second.
        kafka = {"bootstrap.servers": self.bootstrap, "log_level": 0}
        # Idempotent, and with time enough for every outage: a question that never came to Kafka couldn't be answered.
        idempotent = {"enable.idempotence": True, "message.timeout.ms": SENT_WITHIN_MS}
        producer = Producer(kafka | idempotent | {"linger.ms": 0})
        consumer = Consumer(kafka | {"group.id": uuid.uuid4().hex})
        assign_from_the_start(consumer, [self.prefix + "documents.events", self.prefix + "replies"])
        next_question = time.monotonic()
        while self._reading.is_set():
            message = consumer.poll(0.02)
            if message is not None and not message.error():
                self._take(message)
            if self._asking.is_set() and time.monotonic() >= next_question:
                next_question = time.monotonic() + ASK_EVERY_S
                self._ask(producer, random_)
            producer.poll(0)
        producer.flush(10)
        consumer.close()

    def _take(self, message: Message) -> None:
        if message.topic() == self.prefix + "replies":
            asked = self.asked[dict(message.headers())["kafka_correlationId"]]
            asked.replies += 1
            if asked.answer is None:
                asked.answer, asked.answered_at = json.loads(message.value()), time.monotonic()
            return
        self.events.append(message)
        event = json.loads(message.value())
        key = f"{event['tenant']}/{event['doc_id']}"
        if event["status"] in SETTLED:
            self.settled_at.append(time.monotonic())
        before = self._told.get(key)
        if event["status"] in SETTLED and (before is None or event["version"] > before.version):
            self._told[key] = Told(event["version"], event["status"])

    def _ask(self, producer: Producer, random_: random.Random) -> None:
        tenant, doc_id = "acme", None
        if self._told:
            tenant, _, named = random_.choice(sorted(self._told)).partition("/")
            doc_id = named if random_.random() < 0.7 else None
        query = {"query": f"lantern of {named if doc_id else 'the harbour'}", "tenant": tenant, "top_k": ALL_CHUNKS}
        if doc_id is not None:
            query["filters"] = {"doc_id": [doc_id]}
        correlation = uuid.uuid4().bytes
        headers = [
            ("kafka_correlationId", correlation),
            ("kafka_replyTopic", (self.prefix + "replies").encode()),
        ]
        self.asked[correlation] = Asked(tenant=tenant, doc_id=doc_id, told=dict(self._told), sent_at=time.monotonic())
        producer.produce(
            self.prefix + "queries", json.dumps(query).encode(), correlation, headers=headers, on_delivery=self._sent
        )

    def _sent(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            raise ConnectionError(f"the question {message.key()!r} did not come to Kafka: {error}")


def assign_from_the_start(consumer: Consumer, topics: Sequence[str]) -> None:
    known = consumer.list_topics(timeout=10).topics
    consumer.assign([TopicPartition(topic, partition, 0) for topic in topics for partition in known[topic].partitions])


def faults_of(asked: Asked, expectation: Expectation, *, by_content: bool = False) -> Iterator[str]:
    """What is wrong with an answer: stale, mixed, torn (a part of a version), vanished, or of nobody's sending.

    `by_content`: an earlier version of the content that was told is not stale. A generation that reads the two topics
    in another order than the one before may have found the later version unchanged.
    """
    answer = asked.answer
    if answer is None:
        yield f"unanswered: {asked.tenant}/{asked.doc_id or '*'}"
        return
    if answer["error"] is not None:
        return
    by_document: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for hit in answer["hits"]:
        by_document[f"{asked.tenant}/{hit['doc_id']}"].append(hit)
    for key, hits in by_document.items():
        yield from _faults_of_hits(key, hits, asked.told.get(key), expectation, by_content=by_content)
    if asked.doc_id is not None and not answer["degraded"]:
        yield from _missing(asked, by_document, expectation)


def _faults_of_hits(
    key: str, hits: Sequence[dict[str, Any]], told: Told | None, expectation: Expectation, *, by_content: bool
) -> Iterator[str]:
    versions = {hit["version"] for hit in hits}
    if len(versions) > 1:
        yield f"mixed: {key} in versions {sorted(versions)} in one answer"
    for version in versions:
        try:
            text = expectation.text(key, version)
        except KeyError:
            yield f"mixed: {key} in version {version}, which nobody sent"
            continue
        if text is None:
            yield f"stale: {key} in version {version}, which is a deletion"
            continue
        for hit in hits:
            if hit["version"] == version and hit["text"] != text[hit["start"] : hit["end"]]:
                yield f"mixed: {key} in version {version} says {hit['text'][:80]!r}, sent was {text[:80]!r}"
        if told is None or version >= told.version:
            continue
        if not by_content or expectation.text(key, told.version) != text:
            yield f"stale: {key} in version {version} after {told.status} {told.version} was told"


def _missing(
    asked: Asked, by_document: Mapping[str, Sequence[dict[str, Any]]], expectation: Expectation
) -> Iterator[str]:
    """A document that was told to be there, and that nobody deleted, is there, and whole."""
    key = f"{asked.tenant}/{asked.doc_id}"
    told, hits = asked.told.get(key), by_document.get(key, ())
    if not hits:
        if told is None or told.status == "deleted":
            return
        if expectation.may_be_deleted(key, since=told.version, until=asked.answered_at):
            return
        if _may_be_empty(key, told.version, expectation):
            return
        yield f"vanished: {key} after indexed {told.version} was told"
        return
    try:
        text = expectation.text(key, hits[0]["version"])
    except KeyError:
        return
    if text and not covered(text, [(hit["start"], hit["end"]) for hit in hits]):
        yield f"torn: {key} in version {hits[0]['version']} has {len(hits)} chunks that are not its whole text"


def _may_be_empty(key: str, since: int, expectation: Expectation) -> bool:
    return any(version >= since and expectation.text(key, version) == "" for version in expectation.versions(key))


def covered(text: str, spans: Sequence[tuple[int, int]]) -> bool:
    """Whether the spans leave out nothing but white space."""
    reached = 0
    for start, end in sorted(spans):
        if text[reached:start].strip():
            return False
        reached = max(reached, end)
    return not text[reached:].strip()
