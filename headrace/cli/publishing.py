"""Sending documents and learning what became of them."""

import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import msgspec
from confluent_kafka import KafkaError, Message, Producer

from headrace.auth import NO_TOKEN, Bearer
from headrace.cli.kafka import QUIET, Tail, raw_key, raw_value, translated
from headrace.cli.sources import Found, Problem, Reading, Skipped, too_large
from headrace.errors import Misconfigured
from schemas import DocumentEvent, Key, Status, decode, encode, parse_key
from schemas.document import Deletion
from topics import RAW_MAX_BYTES, Names
from topics.provisioning import existing_topics
from topics.settings import KafkaSettings

FRAMING_BYTES = 100
"""Kafka holds a batch against the limit: 61 bytes of it, and about 20 of the record, are neither key nor value."""
DELIVERED_WITHIN_MS = 120_000
QUEUE_KIB = 65_536
"""What waits for the broker in this process: six of the largest records; librdkafka's own default is 1 GiB."""


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """A record to be sent. `version` is None where the record's timestamp is the version; `topic` is a name of the
    table, and None where it goes with the others.
    """

    where: str
    key: Key
    value: bytes | None
    version: int | None = None
    topic: str | None = None

    @property
    def size(self) -> int:
        return len(self.key.encode()) + len(self.value or b"") + FRAMING_BYTES


def outgoing(reading: Reading) -> Outgoing | Problem | Skipped:
    """A document as a record; too large a one is a Problem before it is sent."""
    if not isinstance(reading, Found):
        return reading
    record = Outgoing(
        where=reading.where,
        key=reading.key,
        value=encode(reading.document),
        version=reading.document.version,
    )
    if record.size > RAW_MAX_BYTES:
        return Problem(where=reading.where, why=too_large(record.size))
    return record


def deletion(key: Key, version: int | None, topic: str | None = None) -> Outgoing:
    """With a version it is a message of its own, which an older document can't undo; without one a null value."""
    value = None if version is None else encode(Deletion(version=version))
    return Outgoing(where=str(key), key=key, value=value, version=version, topic=topic)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a record that was sent."""

    where: str
    key: Key
    version: int
    status: Status
    chunks: int | None = None
    why: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Sent:
    where: str
    version: int
    at_ms: int


class Outcomes:
    """What was sent and has no outcome yet, matched with the events that come."""

    def __init__(self) -> None:
        self._open: dict[Key, list[_Sent]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def next_version(self, key: Key, now_ms: int) -> int:
        """A timestamp for a record of this key that none before it has: equal ones would share their events."""
        return max([now_ms, *(sent.at_ms + 1 for sent in self._open.get(key, []))])

    def expect(self, record: Outgoing, at_ms: int) -> None:
        version = at_ms if record.version is None else record.version
        self._open.setdefault(record.key, []).append(_Sent(where=record.where, version=version, at_ms=at_ms))
        self._count += 1

    def restamp(self, key: Key, at_ms: int, stamped_ms: int) -> None:
        """The broker put its own time on the record that was sent at `at_ms`: that is its version then."""
        sents = self._open.get(key, [])
        for index, sent in enumerate(sents):
            if sent.version == sent.at_ms == at_ms:
                sents[index] = _Sent(where=sent.where, version=stamped_ms, at_ms=stamped_ms)

    def forget(self, key: Key, at_ms: int) -> None:
        """It did not reach the broker."""
        self._close(key, [sent for sent in self._open.get(key, []) if sent.at_ms == at_ms])

    def note(self, key: Key, event: DocumentEvent) -> list[Outcome]:
        """The outcomes that this event is for the records waiting."""
        sents = self._open.get(key, [])
        if event.version is None:
            # What could not be read has no version; it can only be one that was sent before it was judged.
            judged = [sent for sent in sents if sent.at_ms <= _unix_ms(event.at)][:1]
            found = [(sent, event.status) for sent in judged]
        else:
            found = [(sent, event.status) for sent in sents if sent.version == event.version]
            if event.status != "failed":
                # Kafka keeps only the newest record of a key when it compacts, so an older one may never be judged.
                found += [(sent, "superseded") for sent in sents if sent.version < event.version]
        self._close(key, [sent for sent, _ in found])
        why = f"{event.error.code} ({event.stage}): {event.error.message}" if event.error else None
        return [
            Outcome(where=sent.where, key=key, version=sent.version, status=status, chunks=event.chunks, why=why)
            for sent, status in found
        ]

    def waiting(self) -> list[str]:
        return [sent.where for sents in self._open.values() for sent in sents]

    def _close(self, key: Key, closed: list[_Sent]) -> None:
        left = [sent for sent in self._open.get(key, []) if sent not in closed]
        self._count -= len(self._open.get(key, [])) - len(left)
        if left:
            self._open[key] = left
        else:
            self._open.pop(key, None)


@dataclass(kw_only=True)
class Tally:
    """How a publication went so far. `problems` were never sent, `undelivered` never arrived."""

    sent: int = 0
    sent_bytes: int = 0
    delivered: int = 0
    undelivered: int = 0
    problems: int = 0
    skipped: int = 0
    outcomes: dict[Status, int] = field(
        default_factory=lambda: {"indexed": 0, "deleted": 0, "unchanged": 0, "superseded": 0, "failed": 0}
    )
    chunks: int = 0
    unfinished: list[str] = field(default_factory=list)
    """What had no outcome when the time was up."""
    seconds: float = 0.0

    @property
    def finished(self) -> int:
        return sum(self.outcomes.values())

    @property
    def fine(self) -> bool:
        return not (self.problems or self.undelivered or self.outcomes["failed"] or self.unfinished)


class Watch(Protocol):
    """Whoever shows how it goes."""

    def changed(self, tally: Tally) -> None: ...

    def problem(self, where: str, why: str) -> None: ...


def producer_config(kafka: dict[str, Any]) -> dict[str, Any]:
    """What the contract asks of producers, and bounds."""
    return {
        **kafka,
        **QUIET,
        "acks": "all",
        "enable.idempotence": True,
        # Java's partitioner, and Faust's: every producer of a key must come to the same partition.
        "partitioner": "murmur2_random",
        "message.max.bytes": RAW_MAX_BYTES,
        # Compressed fetches would grow in the workers beyond the bytes that they bound.
        "compression.type": "none",
        "linger.ms": 20,
        "queue.buffering.max.kbytes": QUEUE_KIB,
        "delivery.timeout.ms": DELIVERED_WITHIN_MS,
    }


def publish(
    records: Iterable[Outgoing | Problem | Skipped],
    settings: KafkaSettings,
    watch: Watch,
    *,
    urgent: bool = False,
    wait_s: float | None = None,
    bearer: Bearer = NO_TOKEN,
) -> Tally:
    """Send the records in order and return when every delivery is confirmed or has failed.

    With `wait_s`, return when each record has its outcome, or when none has come for so many seconds. Raises Transient
    when no broker answers at the start, and Misconfigured when the topics aren't there. Memory is bounded by the queue
    to the broker and, when waiting, by one small entry a record that has no outcome yet.
    """
    kafka, names = settings.confluent(), settings.names
    topic, events_topic = (
        names.topic("documents.urgent" if urgent else "documents.raw"),
        names.topic("documents.events"),
    )
    there = existing_topics({**kafka, **QUIET})
    for name in (topic, events_topic):
        if name not in there:
            raise Misconfigured(f"topic {name} does not exist; `headrace topics create` makes it")
    # Positioned before the first record goes, so that no event of it can be missed.
    with Tail(kafka, events_topic) if wait_s is not None else nullcontext() as events, translated(kafka):
        producer = Producer(producer_config(kafka))
        return _Publication(producer, names, topic, events, watch, bearer).run(records, wait_s)


class _Publication:
    def __init__(
        self, producer: Producer, names: Names, topic: str, events: Tail | None, watch: Watch, bearer: Bearer
    ) -> None:
        self._producer = producer
        self._names = names
        self._topic = topic
        self._events = events
        self._watch = watch
        self._bearer = bearer
        self._outcomes = Outcomes()
        self._tally = Tally()

    def run(self, records: Iterable[Outgoing | Problem | Skipped], wait_s: float | None) -> Tally:
        started = time.monotonic()
        for record in records:
            match record:
                case Outgoing():
                    self._send(record)
                case Problem():
                    self._tally.problems += 1
                    self._watch.problem(record.where, record.why)
                case Skipped():
                    self._tally.skipped += 1
            self._progress()
        while len(self._producer):
            self._progress(0.1)
        if self._events is not None and wait_s is not None:
            self._wait(self._events, wait_s)
        self._tally.seconds = time.monotonic() - started
        self._watch.changed(self._tally)
        return self._tally

    def _send(self, record: Outgoing) -> None:
        topic = self._topic if record.topic is None else self._names.topic(record.topic)
        at_ms = self._outcomes.next_version(record.key, time.time_ns() // 1_000_000)

        headers: Any = self._bearer.headers()

        def delivered(error: KafkaError | None, message: Message) -> None:
            self._delivered(record.where, record.key, at_ms, error, message)

        while True:
            try:
                self._producer.produce(
                    topic, record.value, record.key.encode(), headers=headers, on_delivery=delivered, timestamp=at_ms
                )
                break
            except BufferError:
                self._progress(0.1)
        if self._events is not None:
            self._outcomes.expect(record, at_ms)
        self._tally.sent += 1
        self._tally.sent_bytes += record.size

    def _delivered(self, where: str, key: Key, at_ms: int, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._tally.undelivered += 1
            self._outcomes.forget(key, at_ms)
            self._watch.problem(where, f"did not reach Kafka: {_refusal(error)}")
            return
        self._tally.delivered += 1
        stamped_ms = message.timestamp()[1]
        if stamped_ms != at_ms:
            self._outcomes.restamp(key, at_ms, stamped_ms)

    def _progress(self, timeout: float = 0.0) -> None:
        """Take in what has come from the broker; waits for deliveries for so long at most."""
        self._producer.poll(timeout)
        if self._events is not None:
            while (message := self._events.poll()) is not None:
                self._note(message)
        self._watch.changed(self._tally)

    def _wait(self, events: Tail, idle_s: float) -> None:
        give_up = time.monotonic() + idle_s
        while len(self._outcomes):
            message = events.poll(0.25)
            if message is not None and self._note(message):
                give_up = time.monotonic() + idle_s
            elif time.monotonic() > give_up:
                self._tally.unfinished = self._outcomes.waiting()
                return
            self._watch.changed(self._tally)

    def _note(self, message: Message) -> bool:
        """Whether the event was the outcome of something that was sent."""
        key, event = read_event(message)
        outcomes = self._outcomes.note(key, event) if key and event else []
        for outcome in outcomes:
            self._tally.outcomes[outcome.status] += 1
            if outcome.status == "indexed":
                self._tally.chunks += outcome.chunks or 0
            elif outcome.status == "failed":
                self._watch.problem(outcome.where, f"failed: {outcome.why or 'no reason was given'}")
        return bool(outcomes)


def read_event(message: Message) -> tuple[Key | None, DocumentEvent | None]:
    """A record of documents.events. Its key may be of any form: that of a document that could not be read."""
    try:
        return parse_key(raw_key(message)), decode(raw_value(message) or b"", DocumentEvent)
    except (ValueError, msgspec.DecodeError):
        return None, None


def _refusal(error: KafkaError) -> str:
    if error.code() == KafkaError.INVALID_TIMESTAMP:
        return "its timestamp is too far ahead of the broker's clock; set this machine's clock right"
    return error.str()


def _unix_ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
