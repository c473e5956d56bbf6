"""Asking over the request and reply topics, as any app would."""

import random
import struct
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Self

import msgspec
from confluent_kafka import KafkaError, Message, Producer

from headrace.auth import NO_TOKEN, Bearer
from headrace.cli.kafka import QUIET, Tail, header, meaning, partitions_of_topic, raw_value, translated
from headrace.errors import HeadraceError, Misconfigured, Transient
from schemas import Answer, Delta, Query, decode, encode
from topics import RECORD_MAX_BYTES
from topics.settings import KafkaSettings

CORRELATION_ID = "kafka_correlationId"
REPLY_TOPIC = "kafka_replyTopic"
REPLY_PARTITION = "kafka_replyPartition"
DEADLINE = "headrace.deadline"
STREAM_ID, STREAM_INDEX, STREAM_LAST = "stream-id", "stream-index", "stream-last-message"


class Asker:
    """A place to send queries from and to read their replies at: one partition of the reply topic, from now on.

    It is positioned when it is made, before anything is asked, so no reply can be missed.
    """

    def __init__(self, settings: KafkaSettings, bearer: Bearer = NO_TOKEN) -> None:
        self._kafka = settings.confluent()
        self._bearer = bearer
        self._queries = settings.names.topic("queries")
        self._replies = settings.names.topic("replies")
        partitions_of_topic(self._kafka, self._queries)
        with ExitStack() as opened, translated(self._kafka):
            # One partition is enough, and spares this process the replies to others on the rest.
            self._partition = random.choice(partitions_of_topic(self._kafka, self._replies))
            self._tail = opened.enter_context(Tail(self._kafka, self._replies, [self._partition]))
            self._producer = Producer(
                {**self._kafka, **QUIET, "acks": "all", "partitioner": "murmur2_random", "linger.ms": 0}
            )
            self._opened = opened.pop_all()

    def ask(
        self, query: Query, *, timeout_s: float, on_piece: Callable[[Answer | Delta], None] | None = None
    ) -> Answer:
        """The reply, which may be an error of the other side's. The pieces of a streamed one are shown as they come.

        Raises Transient when no reply comes in time; the query stage is told not to work on it any longer.
        """
        correlation_id = uuid.uuid4().hex.encode()
        give_up = time.monotonic() + timeout_s
        failures: list[KafkaError] = []
        with translated(self._kafka):
            self._send(query, correlation_id, timeout_s, failures)
            reply = _Reply(on_piece)
            while time.monotonic() < give_up:
                self._producer.poll(0)
                if failures:
                    raise meaning(failures[0], self._kafka)
                message = self._tail.poll(min(0.1, timeout_s))
                if message is None or header(message, CORRELATION_ID) != correlation_id:
                    continue
                if (answer := reply.take(message)) is not None:
                    return answer
            delivered = self._producer.flush(0) == 0
        if not delivered:
            raise Transient("kafka", f"did not take the query within {timeout_s:g} s")
        raise Transient(
            "query", f"no reply within {timeout_s:g} s; `headrace status` says whether the query worker is running"
        )

    def ask_many(
        self,
        queries: Sequence[Query],
        *,
        timeout_s: float,
        in_flight: int = 16,
        answered: Callable[[int], None] = lambda _: None,
    ) -> list[Answer | None]:
        """The replies in the order of the queries, None where none came in time; so many are on their way at once, each
        with a deadline of its own. `answered` is told how many have come.

        Raises Transient when Kafka doesn't take a query.
        """
        answers: list[Answer | None] = [None] * len(queries)
        waiting: dict[bytes, tuple[int, float, _Reply]] = {}
        failures: list[KafkaError] = []
        sent = came = 0
        with translated(self._kafka):
            while sent < len(queries) or waiting:
                while sent < len(queries) and len(waiting) < in_flight:
                    correlation_id = uuid.uuid4().hex.encode()
                    self._send(queries[sent], correlation_id, timeout_s, failures)
                    waiting[correlation_id] = (sent, time.monotonic() + timeout_s, _Reply(None))
                    sent += 1
                self._producer.poll(0)
                if failures:
                    raise meaning(failures[0], self._kafka)
                message = self._tail.poll(0.1)
                found = waiting.get(header(message, CORRELATION_ID) or b"") if message is not None else None
                if message is not None and found is not None and (answer := found[2].take(message)) is not None:
                    answers[found[0]] = answer
                    del waiting[header(message, CORRELATION_ID) or b""]
                    came += 1
                    answered(came)
                now = time.monotonic()
                for late in [name for name, (_, give_up, _) in waiting.items() if now > give_up]:
                    del waiting[late]
        return answers

    def _send(self, query: Query, correlation_id: bytes, timeout_s: float, failures: list[KafkaError]) -> None:
        """Hand a query to the producer; whatever keeps it from being delivered comes to `failures`."""
        value = encode(query)
        if len(value) > RECORD_MAX_BYTES - 1000:
            raise HeadraceError(f"the query has {len(value):,} bytes; less than {RECORD_MAX_BYTES:,} are allowed")
        self._producer.produce(
            self._queries,
            value,
            correlation_id,
            headers=[
                (CORRELATION_ID, correlation_id),
                (REPLY_TOPIC, self._replies.encode()),
                (REPLY_PARTITION, struct.pack(">i", self._partition)),
                (DEADLINE, str(time.time_ns() // 1_000_000 + round(timeout_s * 1000)).encode()),
                *self._bearer.headers(),
            ],
            on_delivery=lambda error, _: failures.append(error) if error else None,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


class _Reply:
    """One reply, whole or in pieces. A worker that dies half-way is followed by another that begins again."""

    def __init__(self, on_piece: Callable[[Answer | Delta], None] | None) -> None:
        self._on_piece = on_piece
        self._stream: bytes | None = None
        self._next = 0

    def take(self, message: Message) -> Answer | None:
        """The answer when this record completes it."""
        index, value = header(message, STREAM_INDEX), raw_value(message) or b""
        try:
            if index is None or header(message, STREAM_LAST) == b"true":
                return decode(value, Answer)
            if self._follows(header(message, STREAM_ID), int(index)) and self._on_piece is not None:
                self._on_piece(decode(value, Answer) if int(index) == 0 else decode(value, Delta))
        except (ValueError, msgspec.DecodeError) as exc:
            raise Misconfigured(f"the reply is not of the contract's form: {exc}") from exc
        return None

    def _follows(self, stream: bytes | None, index: int) -> bool:
        if index == 0 and stream != self._stream:
            self._stream, self._next = stream, 0
        if stream != self._stream or index != self._next:
            return False
        self._next += 1
        return True
