"""One producer and readers of topics' ends, each with one thread of its own; Kafka's errors leave here as ours."""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from secrets import choice
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from headrace_client.errors import Closed, HeadraceError, Invalid, KafkaRefused, KafkaUnavailable, QueueFull
from headrace_client.records import DOCUMENT_MAX_BYTES, Record

log = logging.getLogger("headrace_client")

TICK_S = 0.05
"""How late a time limit may be noticed."""
POSITION_TRY_S = 1.0
"""One attempt to ask a broker for positions; `close` waits for it."""
TROUBLE_S = 60.0
"""A connection that failed longer ago does not explain what happens now: librdkafka tries again every 10 seconds."""
KNOWN_WITHIN_S = 3.0
"""Brokers learn of a topic that was just made one after another."""
IDLE_S = 60.0
"""A reader that nobody has waited for for so long ends; the next request starts another."""

_DEFAULTS: dict[str, Any] = {
    # librdkafka would write each failed connection to stderr; what matters comes as an error with one clear line.
    "log_level": 0,
}
_PRODUCER_DEFAULTS: dict[str, Any] = {
    # A question is not kept waiting; documents gather into batches by themselves while others are on their way.
    "linger.ms": 0,
    # Compressed fetches would grow in headrace's workers beyond the bytes that they bound.
    "compression.type": "none",
    # Six of the largest records; librdkafka's own default is 1 GiB.
    "queue.buffering.max.kbytes": 65_536,
    "delivery.timeout.ms": 120_000,
}
_PRODUCER_FIXED: dict[str, Any] = {
    "acks": "all",
    "enable.idempotence": True,
    # Java's partitioner, and headrace's: every producer of a key must come to the same partition.
    "partitioner": "murmur2_random",
    "message.max.bytes": DOCUMENT_MAX_BYTES,
}
_CONSUMER_DEFAULTS: dict[str, Any] = {
    # The default would let 64 MiB wait in this process.
    "queued.max.messages.kbytes": 16_384,
}
_CONSUMER_FIXED: dict[str, Any] = {
    # librdkafka wants a name even where nobody joins a group; partitions are assigned and nothing is committed.
    "group.id": "headrace-client",
    "enable.auto.commit": False,
    # Only where retention took the records that were to be read: go on with what is left.
    "auto.offset.reset": "earliest",
    "isolation.level": "read_committed",
}
_OURS = {*_PRODUCER_FIXED, *_CONSUMER_FIXED, "error_cb"}

_UNKNOWN = {KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_TOPIC_OR_PART}
_REFUSALS = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError._AUTHENTICATION,
    KafkaError._INVALID_ARG,
    KafkaError._SSL,
    KafkaError.INVALID_CONFIG,
} | _UNKNOWN
_PURGED = {KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT, KafkaError._DESTROY}


def meaning(error: KafkaError) -> HeadraceError:
    """What a Kafka error means to a user."""
    code = error.code()
    if code == KafkaError.MSG_SIZE_TOO_LARGE:
        return Invalid(f"the record is too large for Kafka: {error.str()}")
    if code == KafkaError.INVALID_TIMESTAMP:
        return KafkaRefused("the record's timestamp is too far ahead of the broker's clock; set this machine's right")
    if code in _PURGED:
        return Closed("the client was closed before Kafka confirmed the record")
    if error.fatal():
        return KafkaRefused(f"the producer can't go on, make another Client: {error.str()}")
    if code in _REFUSALS:
        return KafkaRefused(f"Kafka refuses: {error.str()}")
    return KafkaUnavailable(error.str())


def _cause(exc: KafkaException) -> KafkaError:
    error: KafkaError = exc.args[0]
    return error


class KafkaSettings:
    """What a user sets of librdkafka, and what this client sets itself. Raises Invalid where the two collide."""

    def __init__(self, bootstrap_servers: str, settings: Mapping[str, Any]) -> None:
        if taken := _OURS & settings.keys():
            raise Invalid(f"{', '.join(sorted(taken))}: the client sets this itself")
        self._user = {"bootstrap.servers": bootstrap_servers, **settings}
        self.servers = str(self._user["bootstrap.servers"])

    def producer(self) -> dict[str, Any]:
        return {**_DEFAULTS, **_PRODUCER_DEFAULTS, **self._user, **_PRODUCER_FIXED}

    def consumer(self) -> dict[str, Any]:
        return {**_DEFAULTS, **_CONSUMER_DEFAULTS, **self._user, **_CONSUMER_FIXED}


class Sender:
    """One producer, and the thread on which deliveries are told and time limits noticed."""

    def __init__(self, settings: KafkaSettings, on_tick: Callable[[], None]) -> None:
        """Raises KafkaRefused for a setting that librdkafka does not take."""
        self._on_tick = on_tick
        self._closing = False
        self._ended = threading.Event()
        self._trouble, self._trouble_at = "", -math.inf
        self._servers = settings.servers
        try:
            self._producer = Producer({**settings.producer(), "error_cb": self._note})
        except KafkaException as exc:
            raise KafkaRefused(_cause(exc).str()) from exc
        self._thread = threading.Thread(target=self._run, name="headrace-client-sender", daemon=True)
        self._thread.start()

    def send(
        self, record: Record, on_delivery: Callable[[HeadraceError | None, Message], None], *, at_ms: int = 0
    ) -> None:
        """Raises QueueFull, Invalid or KafkaRefused when it isn't taken; else `on_delivery` is called once, elsewhere.

        `at_ms` is the record's timestamp; 0 is now.
        """

        def delivered(error: KafkaError | None, message: Message) -> None:
            on_delivery(self._undelivered(error) if error is not None else None, message)

        if self._closing:
            raise Closed("the client is closed")
        try:
            self._producer.produce(
                record.topic,
                record.value,
                record.key,
                headers=list(record.headers),
                timestamp=at_ms,
                on_delivery=delivered,
            )
        except BufferError:
            raise QueueFull(
                "too much waits for the broker, and this was not sent: wait for what was published before, or use "
                "publish_many, which does"
            ) from None
        except KafkaException as exc:
            raise meaning(_cause(exc)) from exc
        except RuntimeError as exc:
            raise Closed("the client is closed") from exc

    def away(self, obstacle: str | None = None) -> str:
        """Why nothing is confirmed, for an error's text: what a connection failed of lately, or the `obstacle`."""
        if time.monotonic() - self._trouble_at < TROUBLE_S:
            return f"no broker answered at {self._servers}: {self._trouble}"
        return obstacle or f"no broker of {self._servers} has confirmed it"

    def close(self, timeout_s: float) -> None:
        """Wait so long for deliveries; what is not confirmed by then is told so."""
        self._closing = True
        self._producer.flush(timeout_s)
        self._producer.purge()
        self._producer.flush(1)
        self._ended.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._producer.close()

    def _undelivered(self, error: KafkaError) -> HeadraceError:
        if error.code() == KafkaError._MSG_TIMED_OUT:
            return KafkaUnavailable(f"Kafka did not confirm the record in time; {self.away()}")
        return meaning(error)

    def _note(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._trouble, self._trouble_at = error.str(), time.monotonic()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._producer.poll(TICK_S)
                self._on_tick()
            except Exception:  # The thread that tells of every time limit must outlive a bug.
                log.exception("headrace_client: a callback failed")


class Tail:
    """Partitions of one topic from their ends on, read by a thread that is there while somebody waits.

    Nothing is joined or committed, so any number may read the same partitions, and nothing depends on a group.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        topic: str,
        *,
        one_partition: bool,
        busy: Callable[[], bool],
        on_record: Callable[[Message], None],
        on_failure: Callable[[HeadraceError], None],
    ) -> None:
        """`busy` says whether anybody waits. After `on_failure` nothing is read until it is asked for again.

        All three are called on the tail's thread; `busy` must not take long, nor want anything of the tail.
        """
        self.partition = -1
        """Where it reads, once it is positioned, if it reads one partition alone."""
        self.obstacle: str | None = None
        """Why it could not be positioned, when last tried; None when it is."""
        self._settings = settings
        self._topic = topic
        self._one_partition = one_partition
        self._busy = busy
        self._on_record = on_record
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._positioned = False
        self._waiting: list[Callable[[], None]] = []
        self._thread: threading.Thread | None = None
        self._trouble: KafkaError | None = None

    def when_positioned(self, then: Callable[[], None]) -> None:
        """Call `then` as soon as everything that is written from now on will be read: now, or on the tail's thread.

        Whoever waits must be `busy` already. When positioning fails, `on_failure` is called instead.
        """
        with self._lock:
            if self._ended.is_set():
                raise Closed("the client is closed")
            if not self._positioned:
                self._waiting.append(then)
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._run, name=f"headrace-client {self._topic}", daemon=True
                    )
                    self._thread.start()
                return
        then()

    def close(self) -> None:
        with self._lock:
            self._ended.set()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        failure: HeadraceError | None = None
        try:
            consumer = Consumer({**self._settings.consumer(), "error_cb": self._note})
            try:
                if self._position(consumer):
                    self._tell_positioned()
                    self._read(consumer)
            finally:
                consumer.close()
        except KafkaException as exc:
            failure = meaning(_cause(exc))
        except HeadraceError as exc:
            failure = exc
        except Exception as exc:  # Those who wait for this thread must hear of it.
            log.exception("headrace_client: the reader of %s failed", self._topic)
            failure = HeadraceError(f"the reader of {self._topic} failed: {exc!r}")
        if failure is not None:
            self._retire()
            self._on_failure(failure)

    def _retire(self) -> None:
        with self._lock:
            self._positioned = False
            self._waiting.clear()
            self._thread = None

    def _position(self, consumer: Consumer) -> bool:
        """Assign the partitions at their ends as they are now; False when the client was closed meanwhile.

        A broker that is away is waited for: those who wait have time limits of their own.
        """
        started = time.monotonic()
        while not self._ended.is_set():
            try:
                # Offsets, not OFFSET_END: that would be resolved later, after what is sent next.
                places = [self._end(consumer, partition) for partition in self._partitions(consumer)]
                consumer.assign(places)
                self.partition = places[0].partition
                return True
            except KafkaException as exc:
                error = _cause(exc)
                self.obstacle = f"{self._topic} can't be read: {error.str()}"
                consumer.poll(0)  # Tells what the connections failed of.
                is_new = error.code() in _UNKNOWN and time.monotonic() - started < KNOWN_WITHIN_S
                if (error.code() in _REFUSALS and not is_new) or error.fatal():
                    raise KafkaRefused(self.obstacle) from exc
                if self._trouble is not None and self._trouble.code() in _REFUSALS:
                    raise KafkaException(self._trouble) from exc
                self._ended.wait(TICK_S)
        return False

    def _partitions(self, consumer: Consumer) -> list[int]:
        found = consumer.list_topics(self._topic, timeout=POSITION_TRY_S).topics[self._topic]
        if found.error is not None:
            raise KafkaException(found.error)
        if not found.partitions:
            raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
        partitions = sorted(found.partitions)
        # One is enough, and spares this process the replies to others on the rest.
        return [choice(partitions)] if self._one_partition else partitions

    def _end(self, consumer: Consumer, partition: int) -> TopicPartition:
        _, end = consumer.get_watermark_offsets(TopicPartition(self._topic, partition), timeout=POSITION_TRY_S)
        return TopicPartition(self._topic, partition, end)

    def _tell_positioned(self) -> None:
        while True:
            with self._lock:
                waiting, self._waiting = self._waiting, []
                if not waiting:
                    self._positioned, self.obstacle = True, None
                    return
            for then in waiting:
                then()

    def _read(self, consumer: Consumer) -> None:
        busy_at = time.monotonic()
        while not self._ended.is_set():
            message = consumer.poll(TICK_S)
            if message is not None:
                error = message.error()
                if error is None:
                    self._on_record(message)
                elif error.fatal() or error.code() in _REFUSALS:
                    raise KafkaException(error)
                # Everything else passes by itself, or runs into the time limits of those who wait.
            if self._busy():
                busy_at = time.monotonic()
            elif time.monotonic() - busy_at > IDLE_S and self._ends_idle():
                return

    def _ends_idle(self) -> bool:
        with self._lock:
            # Whoever came since is busy already, or will find nothing positioned and start another thread.
            if self._busy():
                return False
            self._positioned = False
            self._thread = None
            return True

    def _note(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._trouble = error


def headers_of(message: Message) -> dict[str, bytes]:
    """The last header of each name; one without a value is left out."""
    found = message.headers() or []
    pairs = found.items() if isinstance(found, dict) else found
    return {name: value.encode() if isinstance(value, str) else value for name, value in pairs if value is not None}


def key_of(message: Message) -> bytes:
    key = message.key()
    return key.encode() if isinstance(key, str) else key or b""


def value_of(message: Message) -> bytes:
    value = message.value()
    return value.encode() if isinstance(value, str) else value or b""
