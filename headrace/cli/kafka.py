"""Reading topics as the command line does: from known positions, without a consumer group, within bounds.

Every function raises Transient while no broker answers, and Misconfigured when one refuses or a topic is missing.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import groupby
from operator import itemgetter
from typing import Any, Self, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition, murmur2

from headrace.errors import HeadraceError, Misconfigured, Transient
from topics.reaching import check_token, metadata, no_answer

ANSWER_WITHIN_S = 10.0
"""How long a broker may take to answer before it counts as away."""
POLL_S = 0.25
LARGEST_WINDOW = 10_000
READ_THROUGH = 500
"""Records between two wanted ones that are read and passed over; it is quicker than to seek."""
Place = tuple[int, int]
"""A partition and an offset in it."""

QUIET: dict[str, Any] = {"log_level": 0}
"""librdkafka would write each failed connection to stderr; what matters comes as an exception with one clear line."""

_REFUSALS = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError._AUTHENTICATION,
    KafkaError._INVALID_ARG,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._SSL,
    KafkaError.INVALID_CONFIG,
    KafkaError.MSG_SIZE_TOO_LARGE,
}
_SILENCE = {KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._RESOLVE}
_PASSING = {KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE}

T = TypeVar("T")


def meaning(error: KafkaError, kafka: dict[str, Any]) -> HeadraceError:
    """What a Kafka error means to whoever typed the command."""
    if error.code() in _REFUSALS:
        return Misconfigured(f"Kafka at {kafka['bootstrap.servers']} refuses: {error.str()}")
    if error.code() in _SILENCE:
        return no_answer(kafka, error)
    return Transient("kafka", error.str())


@contextmanager
def translated(kafka: dict[str, Any]) -> Iterator[None]:
    """Kafka's errors leave the block as ours."""
    try:
        yield
    except KafkaException as exc:
        error = exc.args[0]
        if not isinstance(error, KafkaError):
            raise
        raise meaning(error, kafka) from exc


def _consumer(kafka: dict[str, Any], **differently: Any) -> Consumer:
    check_token(kafka)
    return Consumer(
        {
            **kafka,
            **QUIET,
            # librdkafka wants a name even where nobody joins a group; partitions are assigned and nothing is committed.
            "group.id": "headrace-cli",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            # A fetch that waits at an end holds up the one that an assignment to earlier offsets needs.
            "fetch.wait.max.ms": 100,
            # Only where retention took the records that were to be read: go on with what is left.
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            # Records are up to 10 MiB; the default would let 64 MiB of them wait in this process.
            "queued.max.messages.kbytes": 16_384,
            **differently,
        }
    )


def _raise_if_final(error: KafkaError, kafka: dict[str, Any]) -> None:
    """Everything but a refusal passes by itself, or runs into the caller's time limit."""
    if error.fatal() or error.code() in _REFUSALS:
        raise meaning(error, kafka)


def partitions_of(consumer: Consumer, kafka: dict[str, Any], topic: str) -> list[int]:
    found = metadata(consumer, kafka, topic, timeout_s=ANSWER_WITHIN_S).topics[topic]
    if found.error is not None or not found.partitions:
        raise Misconfigured(f"topic {topic} does not exist; `headrace topics create` makes it")
    return sorted(found.partitions)


def partitions_of_topic(kafka: dict[str, Any], topic: str) -> list[int]:
    """Raises Misconfigured when there is no such topic."""
    with translated(kafka):
        consumer = _consumer(kafka)
        try:
            return partitions_of(consumer, kafka, topic)
        finally:
            consumer.close()


def watermarks(kafka: dict[str, Any], topic: str) -> dict[int, tuple[int, int]]:
    """The first offset and the next one, by partition. Raises Misconfigured when there is no such topic."""
    with translated(kafka):
        consumer = _consumer(kafka)
        try:
            return {
                partition: _watermarks(consumer, topic, partition)
                for partition in partitions_of(consumer, kafka, topic)
            }
        finally:
            consumer.close()


class Tail:
    """Partitions of one topic from their ends on, or from `since_ms` (Unix time, milliseconds): what is written after
    it was opened is read, whenever `poll` comes.

    Nothing is joined or committed, so any number may read the same partitions.
    """

    def __init__(
        self,
        kafka: dict[str, Any],
        topic: str,
        partitions: Collection[int] | None = None,
        *,
        since_ms: int | None = None,
    ) -> None:
        self._kafka = kafka
        with translated(kafka):
            self._consumer = _consumer(kafka)
            try:
                self.partitions = sorted(partitions or partitions_of(self._consumer, kafka, topic))
                # Offsets, not OFFSET_END: that would be resolved later, after what the caller sends next.
                starts = []
                for partition in self.partitions:
                    _, end = _watermarks(self._consumer, topic, partition)
                    starts.append(TopicPartition(topic, partition, end))
                if since_ms is not None:
                    starts = _places_at(self._consumer, starts, since_ms)
                self._consumer.assign(starts)
            except BaseException:
                self._consumer.close()
                raise

    def poll(self, timeout: float = 0.0) -> Message | None:
        """The next record, or None when none came in time. While brokers are away it waits for them."""
        message = self._consumer.poll(timeout)
        if message is None:
            return None
        error = message.error()
        if error is None:
            return message
        _raise_if_final(error, self._kafka)
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()


class Positions:
    """What groups have committed, asked by one consumer for each, which joins nothing and is kept.

    Not by an AdminClient: where a group's coordinator has just moved, or a cluster has its first group, librdkafka's
    call ends the process (https://github.com/confluentinc/librdkafka/issues/5040).
    """

    def __init__(self, kafka: dict[str, Any]) -> None:
        self._kafka = kafka
        self._consumers: dict[str, Consumer] = {}

    def committed(self, group: str, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """Of these partitions (topic, number), those of which the group has committed something."""
        wanted = [TopicPartition(*place) for place in places]
        with translated(self._kafka):
            if group not in self._consumers:
                self._consumers[group] = _consumer(self._kafka, **{"group.id": group})
            found = self._consumers[group].committed(wanted, timeout=ANSWER_WITHIN_S) if wanted else []
            if (error := next((place.error for place in found if place.error is not None), None)) is not None:
                raise KafkaException(error)
        return {(place.topic, place.partition): place.offset for place in found if place.offset >= 0}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for consumer in self._consumers.values():
            consumer.close()


def _places_at(consumer: Consumer, ends: list[TopicPartition], since_ms: int) -> list[TopicPartition]:
    """The first record since then of each partition; its end where there is none."""
    asked = [TopicPartition(end.topic, end.partition, since_ms) for end in ends]
    found = consumer.offsets_for_times(asked, timeout=ANSWER_WITHIN_S)
    at = {(place.topic, place.partition): place.offset for place in found if place.error is None and place.offset >= 0}
    return [TopicPartition(end.topic, end.partition, at.get((end.topic, end.partition), end.offset)) for end in ends]


def newest_first(
    kafka: dict[str, Any],
    topic: str,
    keep: Callable[[Message], T | None],
    *,
    key: bytes | None = None,
    window: int = 1000,
    within_s: float = ANSWER_WITHIN_S,
) -> Generator[T, None, None]:
    """What `keep` makes of the topic's records, newest first, until the beginning is reached or the time is up.

    Read backwards in windows of so many records a partition, each twice as large as the one before up to a limit; only
    what `keep` returns is held. With a `key`, only its partition is read. Between partitions the order is right within
    a window.
    """
    give_up = time.monotonic() + within_s
    with translated(kafka):
        consumer = _consumer(kafka)
        try:
            bounds = _bounds(consumer, kafka, topic, key)
            while any(low < high for low, high in bounds.values()) and time.monotonic() < give_up:
                spans = {p: (max(low, high - window), high) for p, (low, high) in bounds.items() if low < high}
                kept = _read_spans(consumer, kafka, topic, spans, keep, give_up)
                yield from (item for _, item in sorted(kept, key=lambda pair: pair[0], reverse=True))
                bounds = {p: (bounds[p][0], start) for p, (start, _) in spans.items()}
                window = max(window, min(2 * window, LARGEST_WINDOW))
        finally:
            consumer.close()


def _read_spans(
    consumer: Consumer,
    kafka: dict[str, Any],
    topic: str,
    spans: dict[int, tuple[int, int]],
    keep: Callable[[Message], T | None],
    give_up: float,
) -> list[tuple[tuple[int, int, int], T]]:
    kept: list[tuple[tuple[int, int, int], T]] = []
    unread = set(spans)
    consumer.assign([TopicPartition(topic, partition, start) for partition, (start, _) in spans.items()])
    while unread and time.monotonic() < give_up:
        message = consumer.poll(POLL_S)
        if message is None:
            continue
        partition, offset = message.partition() or 0, message.offset() or 0
        error = message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                unread.discard(partition)
            _raise_if_final(error, kafka)
            continue
        end = spans[partition][1]
        if offset >= end - 1:
            unread.discard(partition)
        if offset < end and (item := keep(message)) is not None:
            kept.append(((message.timestamp()[1], partition, offset), item))
    return kept


def oldest_first(
    kafka: dict[str, Any], topic: str, *, key: bytes | None = None, begins: Mapping[int, int] = {}
) -> Generator[Message, None, None]:
    """Every record that the topic holds at the start, in each partition the oldest first.

    With a `key`, only its partition is read; `begins` are offsets to begin at, by partition.
    """
    with translated(kafka):
        consumer = _consumer(kafka)
        try:
            bounds = {
                partition: (max(low, begins.get(partition, low)), high)
                for partition, (low, high) in _bounds(consumer, kafka, topic, key).items()
            }
            ends = {partition: high for partition, (low, high) in bounds.items() if low < high}
            consumer.assign([TopicPartition(topic, partition, bounds[partition][0]) for partition in ends])
            unread = set(ends)
            while unread:
                partition, message = _next(consumer, kafka, topic)
                if message is None or (message.offset() or 0) >= ends[partition] - 1:
                    unread.discard(partition)
                if message is not None and (message.offset() or 0) < ends[partition]:
                    yield message
        finally:
            consumer.close()


def read_places(kafka: dict[str, Any], topic: str, places: Iterable[Place]) -> Generator[Message, None, None]:
    """The records at these places that are (still) there, by partition and offset."""
    with translated(kafka):
        consumer = _consumer(kafka)
        try:
            there = set(partitions_of(consumer, kafka, topic))
            for partition, group in groupby(sorted(places), key=itemgetter(0)):
                if partition in there:
                    low, high = _watermarks(consumer, topic, partition)
                    wanted = [offset for _, offset in group if low <= offset < high]
                    yield from _read_offsets(consumer, kafka, topic, partition, wanted)
        finally:
            consumer.close()


def _read_offsets(
    consumer: Consumer, kafka: dict[str, Any], topic: str, partition: int, wanted: list[int]
) -> Generator[Message, None, None]:
    left = deque(wanted)
    position: int | None = None
    while left:
        if position is None or left[0] - position > READ_THROUGH:
            consumer.assign([TopicPartition(topic, partition, left[0])])
        _, message = _next(consumer, kafka, topic)
        if message is None:
            return
        position = message.offset() or 0
        while left and left[0] < position:
            left.popleft()
        if left and left[0] == position:
            left.popleft()
            yield message


def _next(consumer: Consumer, kafka: dict[str, Any], topic: str) -> tuple[int, Message | None]:
    """The next record and its partition, or None at the partition's end."""
    give_up = time.monotonic() + ANSWER_WITHIN_S
    while time.monotonic() < give_up:
        message = consumer.poll(POLL_S)
        if message is None:
            continue
        error = message.error()
        if error is None:
            return message.partition() or 0, message
        if error.code() == KafkaError._PARTITION_EOF:
            return message.partition() or 0, None
        _raise_if_final(error, kafka)
    raise Transient("kafka", f"{topic} could not be read: nothing came for {ANSWER_WITHIN_S:.0f} s")


def has_records(kafka: dict[str, Any], positions: Mapping[tuple[str, int], int]) -> bool:
    """Whether any of these partitions (topic, number) has a record from its offset on: a transaction's mark is none."""
    with translated(kafka):
        consumer = _consumer(kafka)
        try:
            consumer.assign([TopicPartition(*place, offset) for place, offset in positions.items()])
            unread = set(positions)
            give_up = time.monotonic() + ANSWER_WITHIN_S
            while unread and time.monotonic() < give_up:
                message = consumer.poll(POLL_S)
                if message is None:
                    continue
                error = message.error()
                if error is None:
                    return True
                if error.code() == KafkaError._PARTITION_EOF:
                    unread.discard((message.topic() or "", message.partition() or 0))
                _raise_if_final(error, kafka)
        finally:
            consumer.close()
    return bool(unread)


def first_timestamps(
    kafka: dict[str, Any], positions: Mapping[tuple[str, int], int], *, within_s: float
) -> dict[tuple[str, int], int | None]:
    """When the first record from each of these partitions' (topic, number) offsets on was sent, Unix milliseconds.

    None where no record comes after it; what could not be read in time is left out.
    """
    found: dict[tuple[str, int], int | None] = {}
    if not positions:
        return found
    with translated(kafka):
        # One record a partition is wanted, so little more than that is fetched.
        consumer = _consumer(kafka, **{"fetch.message.max.bytes": 1000})
        try:
            consumer.assign([TopicPartition(*place, offset) for place, offset in positions.items()])
            give_up = time.monotonic() + within_s
            while len(found) < len(positions) and time.monotonic() < give_up:
                message = consumer.poll(POLL_S)
                if message is None:
                    continue
                place = (message.topic() or "", message.partition() or 0)
                error = message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    _raise_if_final(error, kafka)
                elif place not in found:
                    found[place] = None if error is not None else message.timestamp()[1]
                    consumer.incremental_unassign([TopicPartition(*place)])
        finally:
            consumer.close()
    return found


def read_one(kafka: dict[str, Any], topic: str, partition: int, offset: int) -> Message | None:
    """The record at this place; None when there is none (any more)."""
    with closing(read_places(kafka, topic, [(partition, offset)])) as found:
        return next(found, None)


def partition_of(key: bytes, partitions: int) -> int:
    """Where Java's, Faust's and this project's producers put a key."""
    return murmur2(key, partitions)


def _bounds(consumer: Consumer, kafka: dict[str, Any], topic: str, key: bytes | None) -> dict[int, tuple[int, int]]:
    """Where each partition begins and ends; with a `key`, of its partition alone."""
    partitions = partitions_of(consumer, kafka, topic)
    if key is not None:
        partitions = [partitions[partition_of(key, len(partitions))]]
    return {partition: _watermarks(consumer, topic, partition) for partition in partitions}


def _watermarks(consumer: Consumer, topic: str, partition: int) -> tuple[int, int]:
    give_up = time.monotonic() + ANSWER_WITHIN_S
    while True:
        try:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=ANSWER_WITHIN_S)
            return low, high
        except KafkaException as exc:
            # Right after a topic was made, or its leader moved, a broker may not know yet that it leads.
            if exc.args[0].code() not in _PASSING or time.monotonic() > give_up:
                raise
            time.sleep(0.1)


def headers_of(message: Message) -> list[tuple[str, bytes]]:
    """The headers in their order, as bytes; one without a value is empty."""
    return [(name, value or b"") for name, value in raw_headers(message)]


def raw_headers(message: Message) -> list[tuple[str, bytes | None]]:
    """The headers in their order, as they came: names may come twice, and values be absent."""
    found = message.headers() or []
    pairs = found.items() if isinstance(found, dict) else found
    return [(name, value.encode() if isinstance(value, str) else value) for name, value in pairs]


def header(message: Message, name: str) -> bytes | None:
    """The last header of this name."""
    return next((value for found, value in reversed(headers_of(message)) if found == name), None)


def raw_key(message: Message) -> bytes | None:
    key = message.key()
    return key.encode() if isinstance(key, str) else key


def raw_value(message: Message) -> bytes | None:
    value = message.value()
    return value.encode() if isinstance(value, str) else value
