"""queries -> replies: every request is answered, side by side with the others, and told why where it can't be.

Key: the request's. A replay is harmless: it reads only, and a second reply has the same correlation. Nothing is poison:
what can't be read gets an error reply, also one whose reply address can't be used.
"""

import asyncio
import math
import secrets
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import uuid4

import msgspec
import structlog
from structlog.contextvars import bound_contextvars

from agents.stage import Item, Outgoing, Record, RequestStage, Write, check_size
from headrace import telemetry, tracing
from headrace.auth import authorization_of
from headrace.errors import Poison
from headrace.serving import Answerer, Question
from schemas import Answer, AnswerError, Delta, Query, decode, encode
from schemas.key import check_tenant
from topics import Names

log = structlog.get_logger("headrace.query")

STAGE = "query"
FIRST_PIECE_CHARACTERS = 24
"""Of a streamed text. Each piece is half as long again as the one before it, up to the largest: the first words are
read at once, and a long text costs few messages."""
PIECE_CHARACTERS = 600
REQUEST_ID_CHARACTERS = 128
"""Of an asker's own id, in a line of the log and in a span."""
TOPIC_CHARACTERS = 249
"""No topic has a longer name."""
DEADLINE_DIGITS = 19
"""The largest of 64 bits, which some send for "none"."""
PIECE_SECONDS = 0.3
"""A text that comes slowly is passed on all the same."""

# The contract's header sets: Spring Kafka's and SmallRye's names for the same three things.
HEADER_SETS = (
    ("kafka_correlationId", "kafka_replyTopic", "kafka_replyPartition"),
    ("REPLY_CORRELATION_ID", "REPLY_TOPIC", "REPLY_PARTITION"),
)
DEADLINE_HEADER = "headrace.deadline"
ERROR_HEADER = "headrace.error"


class ReplyTopics(Protocol):
    """Knows how many partitions a topic has; None when there is no such topic. May be a few seconds behind."""

    async def __call__(self, topic: str) -> int | None: ...


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
    authorization: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Responder:
    answerer: Answerer
    names: Names
    partitions_of: ReplyTopics
    clock_ms: Callable[[], float] = lambda: time.time() * 1000

    def stage(self) -> RequestStage[Request]:
        return RequestStage(name=STAGE, decode=self.decode, serve=self.serve)

    def decode(self, record: Record) -> Request:
        reply_to = self._reply_to(record)
        try:
            query = decode(record.value or b"", Query)
            check_tenant(query.tenant)
            return Request(
                reply_to=reply_to,
                query=query,
                deadline=_deadline(dict(record.headers).get(DEADLINE_HEADER)),
                authorization=authorization_of(record.headers),
            )
        except (msgspec.DecodeError, ValueError) as exc:
            return Request(reply_to=reply_to, error=_bad_request(str(exc)))

    async def serve(self, item: Item[Request], write: Write) -> None:
        with bound_contextvars(**_about(item.message)):
            await self._serve(item, write)

    async def _serve(self, item: Item[Request], write: Write) -> None:
        started = time.perf_counter()
        request = await self._addressed(item.message)
        replies = Replies(request, write)
        answer = await self._answer(request, replies)
        _tell(item.record.span, request, answer)
        await replies.finish(answer)
        telemetry.SEARCH_LATENCY_MS.observe((time.perf_counter() - started) * 1000)
        telemetry.ANSWERS.inc()
        if answer.error is not None:
            telemetry.ANSWER_ERRORS.labels(answer.error.code).inc()
        for part in answer.degraded:
            telemetry.DEGRADED.labels(part).inc()

    async def _answer(self, request: Request, replies: "Replies") -> Answer:
        query = request.query
        if query is None or request.error is not None:
            return Answer(request_id=None if query is None else query.request_id, error=request.error)
        left = math.inf if request.deadline is None else (request.deadline - self.clock_ms()) / 1000
        question = Question(query=query, authorization=request.authorization, seconds=left)
        return await self.answerer.answer(question, replies)

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
        elif len(topic) > TOPIC_CHARACTERS:
            refused = f"the reply topic's name has more than {TOPIC_CHARACTERS} characters"
        return ReplyTo(
            topic=topic[len(self.names.topic_prefix) :],
            key=record.key,
            partition=partition,
            correlation=tuple(correlation),
            refused=refused,
        )

    async def _addressed(self, request: Request) -> Request:
        """The request as it is, if a reply can be sent where it says.

        Else with an error for the default topic, so that somebody learns why.
        A send to a topic or a partition that isn't there would hold up the stage.
        """
        reply_to = request.reply_to
        partitions, refused = None, reply_to.refused
        if refused is None:
            topic = self.names.topic(reply_to.topic)
            partitions = await self.partitions_of(topic)
            refused = _unreachable(topic, reply_to.partition, partitions)
        if refused is not None:
            telemetry.REPLY_ADDRESSES_REFUSED.inc()
            log.warning("reply_address_refused", reason=refused)
            default = replace(reply_to, topic="replies", partition=None)
            return replace(request, reply_to=default, error=_bad_request(refused))
        if partitions and reply_to.partition is None and reply_to.key is None:
            # A producer spreads what has no key, and a stream's messages would not stay in order.
            return replace(request, reply_to=replace(reply_to, partition=secrets.randbelow(partitions)))
        return request


def _unreachable(topic: str, partition: int | None, partitions: int | None) -> str | None:
    if partitions is None:
        return f"there is no topic {topic}"
    if partition is not None and not 0 <= partition < partitions:
        return f"{topic} has no partition {partition}"
    return None


def _about(request: Request) -> dict[str, str]:
    """What every line that is logged meanwhile says."""
    query = request.query
    if query is None:
        return {}
    named = {} if query.request_id is None else {"request_id": query.request_id[:REQUEST_ID_CHARACTERS]}
    return {"tenant": query.tenant, **named}


def _tell(span: tracing.Span, request: Request, answer: Answer) -> None:
    if not span.recording:
        return
    if request.query is not None:
        span.set({"headrace.tenant": request.query.tenant, "headrace.mode": request.query.mode})
    if answer.request_id is not None:
        span.set({"headrace.request_id": answer.request_id[:REQUEST_ID_CHARACTERS]})
    if answer.degraded:
        span.set({"headrace.degraded": answer.degraded})
    if answer.error is not None:
        span.failed(answer.error.code)


def _deadline(value: bytes | None) -> int | None:
    """Raises ValueError when the header is not Unix milliseconds, as digits."""
    if value is None:
        return None
    if not value.isdigit() or len(value) > DEADLINE_DIGITS:
        raise ValueError(f"{DEADLINE_HEADER} must be Unix milliseconds, as at most {DEADLINE_DIGITS} digits")
    return int(value)


def _bad_request(message: str) -> AnswerError:
    return AnswerError(code="bad_request", message=message)


class Replies:
    """What goes back for one request, in order: a message, or for a streamed answer its sequence, which is the hits,
    the text in pieces, the whole.

    A stream that begins again has a new `stream-id`: nobody takes the end of the one for the end of the other.
    """

    def __init__(self, request: Request, write: Write) -> None:
        self._request = request
        self._streams = request.query is not None and request.query.stream
        self._write = write
        self._writing: asyncio.Future[None] | None = None
        self.begin_again()

    def begin_again(self) -> None:
        self._stream = uuid4().hex.encode()
        self._index = 0
        self._told = 0
        self._untold = ""
        self._piece = float(FIRST_PIECE_CHARACTERS)
        self._told_at = time.monotonic()

    async def hits(self, answer: Answer) -> None:
        if self._streams and not self._too_large(answer):
            await self._send([self._next(encode(answer))])

    async def text(self, piece: str) -> None:
        if not self._streams:
            return
        self._untold += piece
        if len(self._untold) >= self._piece or time.monotonic() - self._told_at > PIECE_SECONDS:
            await self._send(list(self._pieces(self._untold)))
            self._untold = ""

    async def finish(self, answer: Answer) -> None:
        """Send what was not told of it yet, and the end."""
        if self._writing is not None:
            await self._writing  # It goes on when its deadline has passed, and stands before what follows.
        if too_large := self._too_large(answer):
            answer = Answer(request_id=answer.request_id, error=_bad_request(f"{too_large}: ask for a smaller top_k"))
        messages: list[Outgoing] = []
        if self._streams and answer.error is None:
            if self._index == 0:
                messages.append(self._next(encode(msgspec.structs.replace(answer, answer=None))))
            messages += self._pieces(answer.answer.text[self._told :] if answer.answer is not None else "")
        messages.append(self._next(encode(answer), answer.error, last=True))
        await self._send(messages)

    def _too_large(self, answer: Answer) -> Poison | None:
        try:
            check_size(self._message(encode(answer), answer.error, last=True))
        except Poison as too_large:
            return too_large
        return None

    def _pieces(self, text: str) -> Iterator[Outgoing]:
        while text:
            length = round(self._piece)
            yield self._next(encode(Delta(delta=text[:length])))
            self._told += len(text[:length])
            self._piece = min(self._piece * 1.5, PIECE_CHARACTERS)
            text = text[length:]

    async def _send(self, messages: Sequence[Outgoing]) -> None:
        self._told_at = time.monotonic()
        # Given up half-way it would leave a hole in the sequence, or none: nobody could tell.
        self._writing = asyncio.ensure_future(self._write(messages))
        await asyncio.shield(self._writing)

    def _next(self, value: bytes, error: AnswerError | None = None, *, last: bool = False) -> Outgoing:
        message = self._message(value, error, last=last)
        self._index += 1
        return message

    def _message(self, value: bytes, error: AnswerError | None, *, last: bool) -> Outgoing:
        """As it is when it is the sequence's next one."""
        reply_to = self._request.reply_to
        headers = list(reply_to.correlation)
        if error is not None:
            headers.append((ERROR_HEADER, error.code.encode()))
        if self._streams:
            headers += [
                ("stream-id", self._stream),
                ("stream-index", str(self._index).encode()),
                ("stream-last-message", b"true" if last else b"false"),
            ]
        return Outgoing(
            topic=reply_to.topic, key=reply_to.key, value=value, partition=reply_to.partition, headers=tuple(headers)
        )
