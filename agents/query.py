"""queries -> replies: searches, answers, and says why where it can't.

Key: the request's. A replay is harmless: it reads only, and a second reply has the same correlation. Nothing is poison:
what can't be read gets an error reply, also one whose reply address can't be used.
"""

import asyncio
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import uuid4

import msgspec
import structlog

from agents.stage import Item, Outgoing, Record, Stage, check_size
from headrace import telemetry
from headrace.encoders import Encoder
from headrace.errors import Poison, Transient
from headrace.retrieval import Found, Retriever, extractive_answer
from headrace.retrieval.settings import RetrievalSettings
from schemas import Answer, AnswerError, AnswerText, Delta, ErrorCode, Query, decode, encode
from schemas.key import check_tenant
from topics import Names

log = structlog.get_logger("headrace.query")

STAGE = "query"
LINGER_S = 0.003
"""Questions that come together are embedded together; a lone one isn't kept waiting."""
BATCH_QUERIES = 64
RETRY_AFTER_MS = 1000
DELTA_CHARACTERS = 200
"""Of a streamed answer's piece."""

# The contract's header sets: Spring Kafka's and SmallRye's names for the same three things.
HEADER_SETS = (
    ("kafka_correlationId", "kafka_replyTopic", "kafka_replyPartition"),
    ("REPLY_CORRELATION_ID", "REPLY_TOPIC", "REPLY_PARTITION"),
)
DEADLINE_HEADER = "headrace.deadline"
ERROR_HEADER = "headrace.error"


class ReplyTopics(Protocol):
    """Knows how many partitions a topic has; None when there is no such topic. May be a few seconds behind."""

    def __call__(self, topic: str) -> int | None: ...


@dataclass(frozen=True, kw_only=True)
class ReplyTo:
    """Where the reply goes and what it must carry.

    `topic` is without the deployment's prefix; `refused` says why it can't be used.
    """

    topic: str
    key: bytes | None
    partition: int | None
    correlation: tuple[tuple[str, bytes], ...]
    refused: str | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """A query as it arrived, or what is wrong with it. `deadline` is in Unix milliseconds."""

    reply_to: ReplyTo
    query: Query | None = None
    error: AnswerError | None = None
    deadline: int | None = None


@dataclass(frozen=True, kw_only=True)
class QueryAnswerer:
    retriever: Retriever
    encoder: Encoder
    settings: RetrievalSettings
    names: Names
    partitions_of: ReplyTopics
    clock_ms: Callable[[], float] = lambda: time.time() * 1000

    def stage(self, *, batch_bytes: int) -> Stage[Request]:
        return Stage(
            name=STAGE,
            decode=self.decode,
            work=self.work,
            batch_messages=BATCH_QUERIES,
            batch_bytes=batch_bytes,
            linger_s=LINGER_S,
            tells_producers=False,
        )

    def decode(self, record: Record) -> Request:
        reply_to = self._reply_to(record)
        try:
            query = decode(record.value or b"", Query)
            check_tenant(query.tenant)
            return Request(reply_to=reply_to, query=query, deadline=_deadline(record))
        except (msgspec.DecodeError, ValueError) as exc:
            return Request(reply_to=reply_to, error=_bad_request(str(exc)))

    async def work(self, batch: Sequence[Item[Request]]) -> list[Outgoing]:
        started = time.perf_counter()
        requests = await asyncio.to_thread(lambda: [self._addressed(item.message) for item in batch])
        answers = await self._answers(requests)
        replies: list[Outgoing] = []
        for request, answer in zip(requests, answers, strict=True):
            replies.extend(_replies(request, answer))
            telemetry.SEARCH_LATENCY_MS.observe((time.perf_counter() - started) * 1000)
            if answer.error is not None:
                telemetry.ANSWER_ERRORS.labels(answer.error.code).inc()
            for part in answer.degraded:
                telemetry.DEGRADED.labels(part).inc()
        return replies

    async def _answers(self, requests: Sequence[Request]) -> list[Answer]:
        answers = [self._refusal(request) for request in requests]
        asked = {
            place: request.query
            for place, request in enumerate(requests)
            if request.query is not None and answers[place] is None
        }
        found = await self.retriever.search_many([*asked.values()]) if asked else []
        finished = await asyncio.gather(*map(self._answer, asked.values(), found))
        for place, answer in zip(asked, finished, strict=True):
            answers[place] = answer
        return [answer for answer in answers if answer is not None]

    def _refusal(self, request: Request) -> Answer | None:
        """The answer to what isn't worked on."""
        request_id = request.query.request_id if request.query is not None else None
        if request.error is not None:
            return Answer(request_id=request_id, error=request.error)
        if request.deadline is not None and self.clock_ms() > request.deadline:
            late = AnswerError(code="deadline_exceeded", message="the deadline had passed when the query was taken")
            return Answer(request_id=request_id, error=late)
        return None

    async def _answer(self, query: Query, found: Found | Exception) -> Answer:
        if isinstance(found, ValueError):
            return Answer(request_id=query.request_id, error=_bad_request(str(found)))
        if isinstance(found, Transient):
            away = AnswerError(code="unavailable", message=str(found), retry_after_ms=RETRY_AFTER_MS)
            return Answer(request_id=query.request_id, error=away)
        if isinstance(found, Exception):
            log.error("query_failed", request_id=query.request_id, exc_info=found)
            return Answer(request_id=query.request_id, error=AnswerError(code="internal", message=type(found).__name__))
        timings, text = dict(found.timings_ms), None
        if query.mode == "answer":
            started = time.perf_counter()
            text = await asyncio.to_thread(extractive_answer, query.query, found.hits, self.encoder, self.settings)
            timings["answer"] = round((time.perf_counter() - started) * 1000, 3)
        return Answer(
            request_id=query.request_id, hits=found.hits, answer=text, degraded=found.degraded, timings_ms=timings
        )

    def _reply_to(self, record: Record) -> ReplyTo:
        """Where the reply goes, as the headers say."""
        headers = {name: value for name, value in record.headers if value is not None}
        default = self.names.topic("replies")
        correlation: list[tuple[str, bytes]] = []
        topic, partition, refused = default, None, None
        for correlation_id, reply_topic, reply_partition in HEADER_SETS:
            if correlation_id in headers:
                correlation.append((correlation_id, headers[correlation_id]))
            if reply_topic in headers:
                topic = headers[reply_topic].decode(errors="replace")
            if reply_partition in headers:
                try:
                    [partition] = struct.unpack(">i", headers[reply_partition])
                except struct.error:
                    refused = f"{reply_partition} must be a 4-byte big-endian integer"
        if topic != default and not topic.startswith(default + "."):
            refused = f"the reply topic must be {default} or start with {default}."
        return ReplyTo(
            topic=topic[len(self.names.topic_prefix) :],
            key=record.key,
            partition=partition,
            correlation=tuple(correlation),
            refused=refused,
        )

    def _addressed(self, request: Request) -> Request:
        """The request as it is, if a reply can be sent where it says.

        Else with an error for the default topic, so that somebody learns why.
        A send to a topic or a partition that isn't there would hold up the stage.
        """
        reply_to = request.reply_to
        refused = reply_to.refused or self._unreachable(self.names.topic(reply_to.topic), reply_to.partition)
        if refused is None:
            return request
        log.warning("reply_address_refused", reason=refused)
        default = replace(reply_to, topic="replies", partition=None)
        return replace(request, reply_to=default, error=_bad_request(refused))

    def _unreachable(self, topic: str, partition: int | None) -> str | None:
        partitions = self.partitions_of(topic)
        if partitions is None:
            return f"there is no topic {topic}"
        if partition is not None and not 0 <= partition < partitions:
            return f"{topic} has no partition {partition}"
        return None


def _deadline(record: Record) -> int | None:
    """Raises ValueError when the header is not Unix milliseconds, as digits."""
    value = dict(record.headers).get(DEADLINE_HEADER)
    if value is None:
        return None
    if not value.isdigit():
        raise ValueError(f"{DEADLINE_HEADER} must be Unix milliseconds, as digits")
    return int(value)


def _bad_request(message: str) -> AnswerError:
    return AnswerError(code="bad_request", message=message)


def _replies(request: Request, answer: Answer) -> list[Outgoing]:
    """One reply, or for a streamed answer its sequence: the hits, the text in pieces, the whole."""
    whole = _reply(request, encode(answer), _error_code(answer))
    try:
        check_size(whole)
    except Poison as too_large:
        answer = Answer(request_id=answer.request_id, error=_bad_request(f"{too_large}: ask for a smaller top_k"))
        whole = _reply(request, encode(answer), _error_code(answer))
    if request.query is None or not request.query.stream:
        return [whole]
    parts: list[bytes] = []
    if answer.error is None:
        parts = [encode(msgspec.structs.replace(answer, answer=None)), *map(encode, _deltas(answer.answer))]
    stream = uuid4().hex.encode()
    return [
        _reply(
            request,
            part,
            _error_code(answer),
            (
                ("stream-id", stream),
                ("stream-index", str(index).encode()),
                ("stream-last-message", b"true" if index == len(parts) else b"false"),
            ),
        )
        for index, part in enumerate([*parts, encode(answer)])
    ]


def _error_code(answer: Answer) -> ErrorCode | None:
    return answer.error.code if answer.error is not None else None


def _deltas(text: AnswerText | None) -> list[Delta]:
    """The text in pieces; put together they are the text again."""
    if text is None:
        return []
    return [
        Delta(delta=text.text[first : first + DELTA_CHARACTERS]) for first in range(0, len(text.text), DELTA_CHARACTERS)
    ]


def _reply(
    request: Request, value: bytes, error: ErrorCode | None, stream: Sequence[tuple[str, bytes]] = ()
) -> Outgoing:
    reply_to = request.reply_to
    failed = ((ERROR_HEADER, error.encode()),) if error is not None else ()
    return Outgoing(
        topic=reply_to.topic,
        key=reply_to.key,
        value=value,
        partition=reply_to.partition,
        headers=(*reply_to.correlation, *failed, *stream),
    )
