"""The one record of `documents.generations`: read by every worker, changed by one command at a time.

A worker asks for the end of the topic about once a second, and reads to it when it has moved. What it knows is as of
the moment at which the asking began, and it goes by it for `Generations.lease_s` from then on; after that it waits
until it could ask again. So whoever changes the record knows, that long after everybody can read it, that nobody goes
by what stood there before.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
import structlog
from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from headrace.errors import HeadraceError, Misconfigured, Transient
from schemas.generations import HALF_DONE, IDLE_LEASE_S, LEASE_S, Generations
from schemas.wire import decode, encode
from topics.provisioning import existing_topics
from topics.reaching import check_token, metadata, no_answer, until_let_in_again
from topics.settings import KafkaSettings

log = structlog.get_logger("headrace.generations")

TOPIC = "documents.generations"
KEY = b"generations"
PARTITION = 0
ASK_EVERY_S = 1.0
ANSWER_TIMEOUT_S = 4.0
MARGIN_S = 1.0
"""On top of a lease: for clocks that don't run alike."""
TRANSACTION_S = 30.0
ABANDONED_S = 600.0
"""After so long a broker ends a transaction that nobody goes on with, and its producer then hears what it hears when
another run has begun. Nobody waits for it: what is readable before it stays so, and the next run ends it at once."""
_ANYBODY = "headrace-cli"
"""librdkafka wants a group's name even where nobody joins a group."""
_REFUSED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}
_ABSENT = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}
_PASSING = {KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError._NOENT}
_SILENCE = {KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._RESOLVE}
_NOTHING_TO_COMMIT = {KafkaError._STATE, KafkaError._CONFLICT}
"""There is no transaction, or one that is being aborted."""
_FENCED = {KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED}


@dataclass(frozen=True)
class Reading:
    """What the topic said when it was asked, at `asked` (monotonic seconds)."""

    record: Generations
    asked: float

    def holds(self, now: float) -> bool:
        """Whether it may still be gone by."""
        return now - self.asked <= self.record.lease_s


class GenerationWatch:
    """Keeps a reading of the record fresh, from a thread of its own."""

    def __init__(self, kafka: KafkaSettings, *, group: str) -> None:
        """`group` is one that this process may use; nothing is committed in it, and nobody joins it."""
        self._kafka = kafka
        self._topic = kafka.names.topic(TOPIC)
        self._group = group
        self._admin: AdminClient | None = None
        self._end = -1
        self._is_there = True
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._listeners: list[Callable[[Generations], None]] = []
        self._telling = threading.Lock()
        self.reading: Reading | None = None
        self.away: tuple[str, float] | None = None
        """Why the last asking came to nothing, and since when (monotonic seconds)."""

    def follow(self, listener: Callable[[Generations], None]) -> None:
        """Call it with what was read last, if anything was, and then with each record that differs from the one before:
        in the thread that asks, which is mostly the watch's own. It must not take long.
        """
        with self._telling:
            self._listeners.append(listener)
            if self.reading is not None:
                listener(self.reading.record)

    def start(self) -> Generations:
        """Read it for the first time, and keep it fresh from then on. Where the topic isn't there, as in a deployment
        of an earlier release, what holds without a record holds until somebody makes it.

        Raises Transient when nobody answers, and Misconfigured when a broker refuses.
        """
        # By the list of all topics: a leader that has just begun may deny one that is there.
        if self._topic not in existing_topics(self._kafka.confluent()):
            self._is_there = False
            log.warning("generations_not_there", topic=self._topic)
        record = self.ask()
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_fresh, name="generations", daemon=True)
            self._thread.start()
        return record

    def stop(self) -> None:
        """Ask no more; what is known grows old. Returns when the last asking is over."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def fresh(self) -> Generations | None:
        """The record, if it may be gone by now. From any thread."""
        reading = self.reading
        return reading.record if reading is not None and reading.holds(time.monotonic()) else None

    def ask(self) -> Generations:
        """Read what is there now. Raises as `start` does, and Misconfigured when a topic that was there is gone."""
        asked = time.monotonic()
        try:
            with _translated(self._kafka):
                end = self._ask_for_the_end()
                if end == self._end and self.reading is not None:
                    self.reading = Reading(self.reading.record, asked)
                    return self.reading.record
                record = _read_to(self._kafka, self._topic, end, self._group)
        except NoTopic:
            self._admin = None
            if self._is_there:
                self._end = -1
                raise
            end, record = -1, Generations()
        except BaseException:
            # After a broker was frozen the same client goes on with what it knew of leaders before. And a topic that
            # was away may be another one.
            self._admin, self._end = None, -1
            raise
        self._is_there = self._is_there or end >= 0
        with self._telling:
            before, self._end, self.reading = self.reading, end, Reading(record, asked)
            if before is None or before.record != record:
                for listener in self._listeners:
                    listener(record)
        return record

    def _ask_for_the_end(self) -> int:
        if self._admin is None:
            self._admin = _admin(self._kafka)
        return _end(self._admin, self._kafka, self._topic)

    def _keep_fresh(self) -> None:
        while not self._stopped.wait(ASK_EVERY_S):
            try:
                self.ask()
            except HeadraceError as exc:
                self._note(str(until_let_in_again(exc)))
            except Exception as bug:
                # Without this thread the worker would wait for good, and nobody would know why.
                log.exception("generations_not_read", reason="a bug")
                self._note(type(bug).__name__)
            else:
                if self.away is not None:
                    log.info("generations_read_again")
                self.away = None

    def _note(self, reason: str) -> None:
        if self.away is None:
            log.warning("generations_not_read", reason=reason)
        self.away = (reason, self.away[1] if self.away is not None else time.monotonic())


def read_generations(kafka: KafkaSettings) -> Generations:
    """The record as it stands; what holds without one where there is none.

    Raises Transient when nobody answers, and Misconfigured when a broker refuses or the topic isn't there.
    """
    topic = kafka.names.topic(TOPIC)
    with _translated(kafka):
        return _read_to(kafka, topic, _end(_admin(kafka), kafka, topic), _ANYBODY)


class Change:
    """The right to change the record, until another one takes it."""

    def __init__(self, kafka: KafkaSettings, producer: Producer, record: Generations) -> None:
        self.record = record
        """As it stands; after a `write` that did not return, as `settle` says."""
        self._kafka = kafka
        self._topic = kafka.names.topic(TOPIC)
        self._producer = producer
        self._settled = True
        # Nobody knows when the run before wrote last.
        before_s = LEASE_S if record.phase in HALF_DONE else IDLE_LEASE_S
        self._known_from = time.monotonic() + before_s + MARGIN_S

    def write(self, record: Generations) -> None:
        """Replace it. When this returns, whoever asks reads it; see `wait_until_known` for those who have asked before.

        Raises Overtaken when another run has taken the right to change it, and Transient when nobody answers. Where it
        raises that, or is interrupted, the record may be written or not, and `settle` says which.
        """
        self.settle()
        self._settled = False
        with _translated(self._kafka):
            self._producer.begin_transaction()
            self._producer.produce(self._topic, encode(record), KEY, partition=PARTITION)
            self._producer.commit_transaction(TRANSACTION_S)
        self._wait_until_readable()
        self._adopt(record)

    def settle(self) -> Generations:
        """The record as it stands, whatever became of the last `write`. Raises as `write` does; nobody knows then."""
        if not self._settled:
            self._end_transaction()
            self._wait_until_readable()
            self._adopt(read_generations(self._kafka))
        return self.record

    def _end_transaction(self) -> None:
        """What was under way is written after all if it still can be. Where nothing is, librdkafka refuses both."""
        for end in (self._producer.commit_transaction, self._producer.abort_transaction):
            try:
                end(TRANSACTION_S)
                return
            except KafkaException as exc:
                error = exc.args[0]
                if not error.txn_requires_abort() and error.code() not in _NOTHING_TO_COMMIT:
                    raise _meaning(error, self._kafka) from exc

    def _wait_until_readable(self) -> None:
        """A transaction that is committed is readable some moments later."""
        give_up, admin = time.monotonic() + TRANSACTION_S, _admin(self._kafka)
        written = _end(admin, self._kafka, self._topic, IsolationLevel.READ_UNCOMMITTED)
        while _end(admin, self._kafka, self._topic) < written:
            if time.monotonic() > give_up:
                raise Transient("kafka", f"what was written to {self._topic} can't be read yet")
            time.sleep(0.05)

    def _adopt(self, record: Generations) -> None:
        if record != self.record:
            self._known_from = max(self._known_from, time.monotonic() + self.record.lease_s + MARGIN_S)
        self.record = record
        self._settled = True

    def wait_until_known(self, tick: Callable[[float], None] | None = None) -> None:
        """Return when every worker goes by what was written last, or waits until it has read it. `tick` gets the
        seconds that are left, about once a second.
        """
        while (left_s := self._known_from - time.monotonic()) > 0:
            if tick is not None:
                tick(left_s)
            time.sleep(min(1.0, left_s))


class NoTopic(Misconfigured):
    """Kafka has no topic for the record."""


class Overtaken(HeadraceError):
    """Another run has taken the right to change the record, and goes on from what stands there."""


@contextmanager
def changing_generations(kafka: KafkaSettings) -> Iterator[Change]:
    """The right to change the record: whoever takes it ends the one who had it.

    Raises Transient when nobody answers, Misconfigured when a broker refuses or the topic isn't there, and
    HeadraceError from within when another run takes it.
    """
    read_generations(kafka)  # A producer would wait for a topic that isn't there.
    silent = logging.getLogger("headrace.librdkafka")
    silent.disabled = True
    producer = Producer(
        {
            **kafka.confluent(),
            "log_level": 0,
            "transactional.id": kafka.names.topic(TOPIC),
            "transaction.timeout.ms": round(ABANDONED_S * 1000),
            "delivery.timeout.ms": round(TRANSACTION_S * 1000),
            # That another run has ended this one would go to stderr whatever the level; the exception says it.
            "logger": silent,
        }
    )
    with _translated(kafka):
        # When this returns, what the run before left unfinished is decided, and it writes nothing any more.
        producer.init_transactions(TRANSACTION_S)
    yield Change(kafka, producer, read_generations(kafka))


def _admin(kafka: KafkaSettings) -> AdminClient:
    config = {**kafka.confluent(), "log_level": 0}
    check_token(config)
    return AdminClient(config)


def _end(
    admin: AdminClient,
    kafka: KafkaSettings,
    topic: str,
    isolation: IsolationLevel = IsolationLevel.READ_COMMITTED,
) -> int:
    """The offset behind the last record that everybody may read, or behind the last one of all."""
    place = TopicPartition(topic, PARTITION)
    give_up = time.monotonic() + ANSWER_TIMEOUT_S
    while True:
        try:
            answer = admin.list_offsets(
                {place: OffsetSpec.latest()},  # type: ignore[no-untyped-call]
                isolation_level=isolation,
                request_timeout=ANSWER_TIMEOUT_S,
            )[place]
            end = answer.result().offset
            break
        except KafkaException as exc:
            error = exc.args[0]
            # Right after a topic was made, or its leader moved, a broker may not know yet that it leads, or of it.
            if error.code() in _PASSING and time.monotonic() < give_up:
                time.sleep(0.1)
                continue
            if error.code() == KafkaError._NOENT and not _is_there(admin, kafka, topic):
                error = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
            raise _meaning(error, kafka) from exc
    # librdkafka tells of a leader that didn't answer in time by an offset that no partition has, and by no error.
    if end < 0:
        raise Transient("kafka", f"the leader of {topic} did not answer within {ANSWER_TIMEOUT_S:g} s")
    return int(end)


def _is_there(admin: AdminClient, kafka: KafkaSettings, topic: str) -> bool:
    """For librdkafka says the same of a topic that isn't there and of one without a leader. All topics are asked for:
    to ask for one makes it, on a broker that is set to.
    """
    return topic in metadata(admin, kafka.confluent(), timeout_s=ANSWER_TIMEOUT_S).topics


def _read_to(kafka: KafkaSettings, topic: str, end: int, group: str) -> Generations:
    value: bytes | None = None
    if end > 0:
        config = kafka.confluent()
        check_token(config)
        consumer = Consumer(
            {
                **config,
                "log_level": 0,
                "group.id": group,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
            }
        )
        try:
            value = _last_value(consumer, kafka, topic, end)
        finally:
            consumer.close()
    if value is None:
        return Generations()
    try:
        return decode(value, Generations)
    except msgspec.DecodeError as exc:
        raise Misconfigured(f"the record of {topic} can't be read: {exc}") from exc


def _last_value(consumer: Consumer, kafka: KafkaSettings, topic: str, end: int) -> bytes | None:
    consumer.assign([TopicPartition(topic, PARTITION, 0)])
    value: bytes | None = None
    give_up = time.monotonic() + ANSWER_TIMEOUT_S
    while time.monotonic() < give_up:
        message = consumer.poll(0.1)
        if message is None:
            continue
        error, offset = message.error(), message.offset() or 0
        if error is None:
            if message.key() == KEY:
                value = message.value()
            if offset >= end - 1:
                return value
        elif error.code() == KafkaError._PARTITION_EOF:
            # The last offsets may be those of a transaction's marks.
            if offset >= end:
                return value
        elif error.fatal() or error.code() in _REFUSED | _ABSENT:
            raise _meaning(error, kafka)
    raise Transient("kafka", f"{topic} could not be read within {ANSWER_TIMEOUT_S:g} s")


@contextmanager
def _translated(kafka: KafkaSettings) -> Iterator[None]:
    try:
        yield
    except KafkaException as exc:
        raise _meaning(exc.args[0], kafka) from exc


def _meaning(error: KafkaError, kafka: KafkaSettings) -> HeadraceError:
    if error.code() in _FENCED:
        return Overtaken("another run has begun to change the generations, which ends this one")
    if error.code() in _ABSENT:
        return NoTopic(f"Kafka has no topic {kafka.names.topic(TOPIC)}: run `headrace topics create`")
    if error.code() in _REFUSED:
        return Misconfigured(f"Kafka at {kafka.bootstrap_servers} refuses: {error.str()}")
    return no_answer(kafka.confluent(), error) if error.code() in _SILENCE else Transient("kafka", error.str())
