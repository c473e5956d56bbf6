"""Deciding about dead letters: sent again, parked, dropped, or open again.

A record that is sent again and the note that its letter is settled are written in one Kafka transaction, and all stages
read only what was committed: whatever is killed whenever, a letter is open, or it is settled and its record was sent
once. There is one writer at a time: whoever begins ends the one before, and aborts its unfinished transaction.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from agents.dead_letters import REPLAYS, is_whole, replay_headers
from headrace.auth import Bearer
from headrace.auth.bearer import AUTHORIZATION
from headrace.cli.deadletters import (
    DeadLetter,
    Selection,
    State,
    name_of,
    place_of,
    read_dead_letter,
    selected,
    settlements,
)
from headrace.cli.kafka import QUIET, Place, raw_headers, raw_key, raw_value, read_places, translated
from headrace.errors import HeadraceError
from schemas import Action, Settlement, encode
from topics import BY_NAME, GROUPS, Names, Topic
from topics.settings import KafkaSettings
from topics.table import CLOCK_AHEAD_MS, DEAD_MAX_BYTES

SAMPLES = 20
"""Letters of a plan that can be shown."""
TRANSACTION_LETTERS = 100
TRANSACTION_BYTES = 8_000_000
"""A transaction is full at whichever comes first; its records are in memory at once."""
TRANSACTION_MS = 60_000
"""How long a killed run's transaction may hold up the readers of its topics; the next run ends it sooner."""
BATCH_BYTES = 500_000
"""Of small records in one write: well below every topic's limit, which is held against whole batches."""
BATCH_FIXED_BYTES = 61
RECORD_FIXED_BYTES = 3
"""Kafka's format: a batch's header; the attributes and deltas of its one record. All else has its length before it."""
DOCUMENTS_READER = "chunk"
"""The stage that looks at the tokens of what it reads."""
_FENCED = {KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED}


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """A letter's record as it is sent again. `topic` is a name of the table, `timestamp` Unix milliseconds."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    timestamp: int

    @property
    def batch_bytes(self) -> int:
        """What Kafka holds against the topic's limit, where the record is sent alone."""
        size = RECORD_FIXED_BYTES + _varint_bytes(len(self.headers))
        size += _with_length(self.key) + _with_length(self.value)
        size += sum(_with_length(name.encode()) + _with_length(value) for name, value in self.headers)
        return BATCH_FIXED_BYTES + _varint_bytes(size) + size


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is decided about a letter, and the record that is sent for it."""

    action: Action
    reason: str | None = None
    record: Outgoing | None = None


@dataclass(frozen=True, kw_only=True)
class Refused:
    """This letter can't be sent again, and stays as it is."""

    why: str


def _with_length(part: bytes | None) -> int:
    return _varint_bytes(len(part or b"")) + len(part or b"")


def _varint_bytes(number: int) -> int:
    """Zigzag: one bit of each byte says whether another follows, one of the whole is the sign."""
    return max(1, -(-(2 * number).bit_length() // 7))


Judge = Callable[[DeadLetter, Message], Verdict | Refused]


class Tally(msgspec.Struct, kw_only=True):
    """What was decided, or would be. `sent` counts by topic and `refused` by reason; `passed_over` are letters that
    another run has settled since they were chosen, or that are gone.
    """

    run: str
    settled: dict[Action, int] = {}
    sent: dict[str, int] = {}
    sent_bytes: int = 0
    refused: dict[str, int] = {}
    passed_over: int = 0

    def add(self, verdict: Verdict | Refused) -> None:
        if isinstance(verdict, Refused):
            self.refused[verdict.why] = self.refused.get(verdict.why, 0) + 1
            return
        self.settled[verdict.action] = self.settled.get(verdict.action, 0) + 1
        if (record := verdict.record) is not None:
            self.sent[record.topic] = self.sent.get(record.topic, 0) + 1
            self.sent_bytes += len(record.key or b"") + len(record.value or b"")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would do. `samples` are the first letters it would settle; `problems` are places that were asked for
    and can't be settled.
    """

    places: list[Place]
    samples: list[DeadLetter]
    tally: Tally
    problems: list[str]


def decided(action: Action, reason: str | None) -> Judge:
    """The same for every letter."""
    return lambda _letter, _message: Verdict(action=action, reason=reason)


def replayed(names: Names, *, max_replays: int | None, now_ms: int, bearer: Bearer | None = None) -> Judge:
    """Send it again; one that has been sent again so often is parked instead. With a `bearer` a document goes under
    its token instead of the one that it came with.
    """

    def judge(letter: DeadLetter, message: Message) -> Verdict | Refused:
        if max_replays is not None and letter.replays >= max_replays:
            times = "once" if letter.replays == 1 else f"{letter.replays} times"
            return Verdict(action="parked", reason=f"it was replayed {times} and died again")
        record = again(letter, message, names, now_ms, bearer)
        return record if isinstance(record, Refused) else Verdict(action="replayed", record=record)

    return judge


def again(
    letter: DeadLetter, message: Message, names: Names, now_ms: int, bearer: Bearer | None = None
) -> Outgoing | Refused:
    """The original record, byte for byte, for the topic it came from, with one more header.

    Its timestamp is the original's, so that a version that came since wins. Only where the topic's retention would soon
    take so old a record is it moved up; of such topics nobody reads it.
    """
    topic = _topic_of(letter, names)
    if topic is None:
        return Refused(why=f"it came from {letter.topic or 'no topic'}, which no stage of this deployment reads")
    if not is_whole(raw_headers(message)):
        return Refused(why="they hold a whole batch that could not be read, or a record without its value")
    key = raw_key(message)
    if key is None and topic.cleanup == "compact":
        return Refused(why=f"{topic.name} takes no record without a key")
    if message.timestamp()[1] > now_ms + CLOCK_AHEAD_MS:
        return Refused(why="their timestamps are further in the future than Kafka takes")
    # To librdkafka 0 is the time of sending.
    timestamp = max(1, message.timestamp()[1])
    if topic.retention_ms is not None:
        timestamp = max(timestamp, now_ms - topic.retention_ms // 2)
    headers = replay_headers(raw_headers(message))
    if bearer is not None and DOCUMENTS_READER in topic.read_by:
        headers = [*(header for header in headers if header[0] != AUTHORIZATION), *bearer.headers()]
    record = Outgoing(topic=topic.name, key=key, value=raw_value(message), headers=headers, timestamp=timestamp)
    if record.batch_bytes > topic.max_bytes:
        return Refused(why=f"with the header {REPLAYS} it is larger than {topic.name} takes")
    return record


def _topic_of(letter: DeadLetter, names: Names) -> Topic | None:
    topic = BY_NAME.get(names.named(letter.topic) or "")
    return topic if topic is not None and set(topic.read_by) & set(GROUPS) else None


def plan(kafka: KafkaSettings, selection: Selection, judge: Judge, looked_at: Callable[[], None]) -> Plan:
    """Look at every letter that is meant and change nothing; a place a letter is held."""
    tally = Tally(run="")
    places: list[Place] = []
    samples: list[DeadLetter] = []
    states: dict[str, State | None] = {}

    def look(letter: DeadLetter) -> None:
        looked_at()
        if selection.places:
            states[letter.id] = letter.state

    for letter, message in selected(kafka, selection, look):
        verdict = judge(letter, message)
        tally.add(verdict)
        if isinstance(verdict, Verdict):
            places.append(place_of(message))
            samples += [letter] if len(samples) < SAMPLES else []
    return Plan(places=places, samples=samples, tally=tally, problems=_problems(selection, states))


def _problems(selection: Selection, states: dict[str, State | None]) -> list[str]:
    problems = []
    for name in map(name_of, selection.places):
        if name not in states:
            problems.append(f"there is no dead letter {name}")
        elif states[name] not in selection.states:
            problems.append(f"{name} is {states[name]}, and not {' or '.join(sorted(selection.states))}")
    return problems


def settle(
    kafka: KafkaSettings,
    planned: Plan,
    selection: Selection,
    judge: Judge,
    *,
    rate: float | None = None,
    settled_some: Callable[[int], None],
) -> Tally:
    """Do what was planned, as far as nobody has done it since; `rate` is in letters a second.

    Raises HeadraceError when another run begins before this one is done. Then, and whenever it ends early, every letter
    is either settled or as it was.
    """
    config, names = kafka.confluent(), kafka.names
    tally = Tally(run=uuid4().hex[:12])
    batch_letters = TRANSACTION_LETTERS if rate is None else max(1, min(TRANSACTION_LETTERS, int(rate)))
    with translated(config), _sole():
        producer = Producer(producer_config(config, names))
        # First: when this returns, what the run before left unfinished is decided, and it writes nothing any more.
        producer.init_transactions(TRANSACTION_MS / 1000)
        settled = settlements(kafka)
        started, done = time.monotonic(), 0
        with closing(read_places(config, names.topic("documents.dead"), planned.places)) as records:
            for batch in _batches(records, batch_letters):
                if rate is not None:
                    time.sleep(max(0.0, started + done / rate - time.monotonic()))
                letters = [(read_dead_letter(message, settled), message) for message in batch]
                verdicts = [(letter, judge(letter, message)) for letter, message in letters if selection.takes(letter)]
                with _transaction(producer):
                    for letter, verdict in verdicts:
                        _write(producer, names, letter, verdict, tally.run)
                for _, verdict in verdicts:
                    tally.add(verdict)
                done += len(verdicts)
                settled_some(len(batch))
    tally.passed_over = len(planned.places) - done
    return tally


def producer_config(kafka: dict[str, Any], names: Names) -> dict[str, Any]:
    """One transactional writer a deployment: its id is the topic it alone writes."""
    silent = logging.getLogger("headrace.librdkafka")
    silent.disabled = True
    return {
        **kafka,
        **QUIET,
        "transactional.id": names.topic("documents.dead.settled"),
        "transaction.timeout.ms": TRANSACTION_MS,
        "delivery.timeout.ms": TRANSACTION_MS,
        # Java's partitioner: a record goes where its producer put it.
        "partitioner": "murmur2_random",
        "message.max.bytes": DEAD_MAX_BYTES,
        "batch.size": BATCH_BYTES,
        "compression.type": "none",
        # That another run has ended this one would go to stderr whatever the level; the exception says it.
        "logger": silent,
    }


def _write(producer: Producer, names: Names, letter: DeadLetter, verdict: Verdict | Refused, run: str) -> None:
    if isinstance(verdict, Refused):
        return
    if (record := verdict.record) is not None:
        topic = names.topic(record.topic)
        producer.produce(topic, record.value, record.key, headers=list(record.headers), timestamp=record.timestamp)
    note = Settlement(action=verdict.action, at=datetime.now(UTC), run=run, reason=verdict.reason)
    producer.produce(names.topic("documents.dead.settled"), encode(note), letter.id.encode())


def _batches(records: Iterable[Message], letters: int) -> Iterator[list[Message]]:
    batch: list[Message] = []
    size = 0
    for message in records:
        batch.append(message)
        size += len(raw_value(message) or b"")
        if len(batch) == letters or size >= TRANSACTION_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@contextmanager
def _transaction(producer: Producer) -> Iterator[None]:
    """Committed when the block ends, aborted when it breaks: an open one would hold up the readers."""
    producer.begin_transaction()
    try:
        yield
        producer.commit_transaction(TRANSACTION_MS / 1000)
    except BaseException:
        with suppress(KafkaException):  # A writer that another one has ended can't, and needn't.
            producer.abort_transaction(TRANSACTION_MS / 1000)
        raise


@contextmanager
def _sole() -> Iterator[None]:
    try:
        yield
    except KafkaException as exc:
        error = exc.args[0]
        if not isinstance(error, KafkaError) or error.code() not in _FENCED:
            raise
        raise HeadraceError(
            "another `headrace dead` has begun to settle letters, which ends this one; nothing is lost or sent twice, "
            "and `headrace dead list` shows what is still open"
        ) from exc
