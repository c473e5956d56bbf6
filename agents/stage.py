"""The life cycle of a message, the same in every stage: decode -> work -> write -> wait until it is confirmed -> ack.

A stage gives two functions, `decode` and `work` (for requests, `serve`), and no stage decides a message's fate: the
class of what they raise does (`headrace/errors.py`).

    Poison         -> documents.dead and documents.events, confirmed, then ack; the messages beside it go on
    Transient      -> the same batch again, with backoff and jitter, as long as it takes; nothing is acked and no
                      partition is lost
    Misconfigured  -> the worker ends
    anything else  -> a bug: the worker ends, unacked; a record that brings it down three times in a row is Poison

A worker may die between any two steps: what it had in hand is unacked, so it is read again, and every write is one that
a replay overwrites with the same.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from operator import itemgetter
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar, cast

import msgspec
import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from agents.batches import UnreadableBatch
from agents.dead_letters import MESSAGE_MAX_CHARACTERS, OWN_PREFIXES, Headers, dead_letter_headers, replays
from agents.message_spans import MessageSpans, ended_together
from headrace import telemetry, tracing
from headrace.calls import longest_unanswered
from headrace.errors import Misconfigured, Poison, Transient
from schemas import DocumentEvent, EventError, decode, encode, parse_key
from schemas.document import Version
from topics import BY_NAME, LANES, Lane

log = structlog.get_logger("headrace.stage")

T = TypeVar("T")
R = TypeVar("R")
ATTEMPTS = 3
"""Times that a record may bring a worker down before it is Poison."""
SILENT_AFTER_S = 5.0
"""A server that has not answered a call for so long is told of by readiness; the call goes on until its time-out."""
RETRY_WAIT = wait_random_exponential(multiplier=0.4, min=0.1, max=15.0)
"""Random over its whole length: workers that lost a server together don't come back to it together."""
KEY_MAX_BYTES = 1024
RECORD_OVERHEAD_BYTES = 256
"""A batch's header, a record's lengths and varints: more than Kafka's format adds to one record."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A Kafka record as it came. `timestamp` is Unix milliseconds."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    lane: Lane
    span: tracing.Span = field(default=tracing.NO_SPAN, repr=False, compare=False)
    """The work of this stage on it."""

    @property
    def sent_again(self) -> bool:
        """Whether it was a dead letter before."""
        return replays(self.headers) > 0


@dataclass(frozen=True, kw_only=True)
class Item(Generic[T]):
    """A record and what `decode` made of it."""

    record: Record
    message: T


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """A record to write. `topic` is a name of the topic table;
    `timestamp` is Unix milliseconds (None: the time of sending).

    `cause` is the record that it comes of, whose trace goes on with it. Without one its headers go out as they are.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None
    timestamp: int | None = None
    chunks: int = 0
    cause: Record | None = None
    on_confirmed: Callable[[], None] | None = None
    """Called in the event loop when the brokers have it. Must not raise."""


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[T]):
    """What a stage is, beside its name: a pure `decode`, and `work` on a batch, which returns when its own writes are
    confirmed.

    `decode` raises Poison for what can't be read, and asks no server. `work` gets messages in the order they came, of
    one lane, and may be called again with the same ones or a part of them. What it returns is gone through twice, the
    first time in a thread unless it is a sequence, so it may make its records as they are asked for and hold none of
    them.
    """

    name: str
    decode: Callable[[Record], T]
    work: Callable[[Sequence[Item[T]]], Awaitable[Iterable[Outgoing]]]
    batch_messages: int
    batch_bytes: int
    linger_s: float = 0.05
    """How long a batch that isn't full waits for more."""
    in_flight: int = 1
    """Batches of a lane that are worked on at once. What comes of them is written and acked in their order."""
    tells_producers: bool = True
    """Whether its records are versions of documents: a buried one is a `failed` event as well."""


Write: TypeAlias = Callable[[Iterable[Outgoing]], Awaitable[None]]
"""Returns when the brokers have confirmed every record."""


@dataclass(frozen=True, kw_only=True)
class RequestStage(Generic[T]):
    """A stage whose records are requests: each is served by itself, side by side with the others, and not in its turn.

    `serve` writes its replies as it makes them, and the record is acked when it returns. How many are worked on at once
    is its own business; the transport bounds how many it is given. After a Transient it is called again. A request that
    it can't answer even with an error is a dead letter: the worker goes on, for others wait for their replies.
    """

    name: str
    decode: Callable[[Record], T]
    serve: Callable[[Item[T], Write], Awaitable[None]]
    tells_producers: ClassVar[bool] = False


def reads(message_type: type[T]) -> Callable[[Record], T]:
    """The `decode` of a stage that reads what another stage wrote; what can't be read is Poison `bad_json`."""

    def decode_record(record: Record) -> T:
        try:
            return decode(record.value or b"", message_type)
        except msgspec.DecodeError as exc:
            raise Poison("bad_json", str(exc)) from exc

    return decode_record


class Wire(Protocol):
    """The transport as a stage sees it."""

    async def send(self, outgoing: Iterable[Outgoing]) -> None:
        """Return when the brokers have confirmed every record; take each when there is room for it."""

    async def commit(self) -> None: ...

    async def note_attempt(self, record: Record) -> int:
        """Count, in the group's committed offset, that this record brought the worker down;
        return how often it has by now.
        """


class Source(Protocol):
    """One lane's buffer of fetched events."""

    async def get(self) -> Any: ...
    def get_nowait(self) -> Any: ...
    def empty(self) -> bool: ...


class Waiting(msgspec.Struct, frozen=True):
    """Why a stage waits, for its readiness."""

    service: str
    reason: str
    since: float


class Gate(Protocol):
    """Decides when work may begin."""

    @property
    def waiting(self) -> Waiting | None:
        """What keeps it shut, while somebody waits for it. From any thread."""

    async def let_in(self, messages: int) -> None:
        """Return when a batch of so many messages may be begun."""


@dataclass
class StageRunner(Generic[T]):
    """Runs one stage over its lanes."""

    stage: Stage[T] | RequestStage[T]
    wire: Wire
    spans: MessageSpans = field(default_factory=lambda: MessageSpans(stage=""))
    gate: Gate | None = None
    in_hand: int = 0
    busy_since: float = field(default_factory=time.monotonic)
    """When the batch in hand was taken, or something of it last confirmed (monotonic seconds)."""
    _away: dict[object, Waiting] = field(default_factory=dict)
    """By the call that waits. Others of this stage may go on meanwhile."""
    _urgent_in_hand: int = 0
    _urgent_idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._urgent_idle.set()

    @property
    def waiting(self) -> Waiting | None:
        """What may not be begun yet, the server that was away at the last try, or that keeps a call waiting for long.
        From any thread.
        """
        if self.gate is not None and (shut := self.gate.waiting) is not None:
            return shut
        if away := next(iter(tuple(self._away.values())), None):
            return away
        asked = longest_unanswered()
        if asked is None or time.monotonic() - asked.since < SILENT_AFTER_S:
            return None
        return Waiting(asked.service, "it was asked and has not answered yet", asked.since)

    async def run_lane(self, lane: Lane, source: Source) -> None:
        """Take, process and ack batch after batch, until cancelled or broken.

        The lanes go side by side, but a batch of the bulk lane isn't begun while the urgent one has anything in hand.
        Requests are served as they come.
        """
        stage = self.stage
        try:
            if isinstance(stage, RequestStage):
                await self._serve_lane(stage, lane, source)
            else:
                await self._process_lane(stage, lane, source)
        except BaseExceptionGroup as ended:
            # The one that ended the group: Faust and the worker know it by its class.
            raise ended.exceptions[0] from None

    async def _process_lane(self, stage: Stage[T], lane: Lane, source: Source) -> None:
        urgent = lane == LANES[0]
        room = asyncio.Semaphore(stage.in_flight)
        before = asyncio.Event()
        before.set()
        async with asyncio.TaskGroup() as batches:
            while True:
                await room.acquire()
                events = await self._take(stage, source, urgent=urgent)
                if not urgent:
                    await self._urgent_idle.wait()
                if self.gate is not None:
                    # With the batch in hand: one that was let in before its first message came could begin much later.
                    await self.gate.let_in(len(events))

                def ended(_: asyncio.Task[None], count: int = len(events)) -> None:
                    self._let_go(count)
                    if urgent:
                        self._urgent_in_hand -= count
                        if not self._urgent_in_hand and source.empty():
                            self._urgent_idle.set()
                    room.release()

                acked = asyncio.Event()
                batch = [(event, self._record(event.message, lane)) for event in events]
                batches.create_task(self._process_in_turn(stage, batch, before, acked)).add_done_callback(ended)
                before = acked

    async def _process_in_turn(
        self, stage: Stage[T], batch: Sequence[tuple[Any, Record]], before: asyncio.Event, acked: asyncio.Event
    ) -> None:
        with ended_together([record.span for _, record in batch]):
            await self._process(stage, batch, before)
        acked.set()

    async def _serve_lane(self, stage: RequestStage[T], lane: Lane, source: Source) -> None:
        async with asyncio.TaskGroup() as requests:
            while True:
                event = await source.get()
                self._take_up(urgent=False)
                requests.create_task(self._serve(stage, event, self._record(event.message, lane)))

    async def _serve(self, stage: RequestStage[T], event: Any, record: Record) -> None:
        with record.span, self._let_go_afterwards(1):
            outgoing: Iterable[Outgoing] = ()

            async def reply(replies: Iterable[Outgoing]) -> None:
                await self._reply(record, replies)

            try:
                with _timed(stage.name, "decode"):
                    item = Item(record=record, message=self._decode(record))
                with _timed(stage.name, "work"):
                    await self._until_the_servers_are_there(lambda: stage.serve(item, reply), [record.span])
            except Misconfigured:
                raise
            except Exception as error:
                if isinstance(error, Poison):
                    poison = error
                else:
                    place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
                    log.exception("request_not_answered", stage=stage.name, **place)
                    poison = Poison("internal", f"{type(error).__name__}: {error}")
                outgoing = self._bury(record, poison, attempts=1)
            await self._confirm([(event, record)], outgoing)

    async def _reply(self, request: Record, outgoing: Iterable[Outgoing]) -> None:
        replies = [replace(reply, cause=request) for reply in outgoing]
        for reply in replies:
            check_size(reply)
        await self._write(replies)

    def _take_up(self, *, urgent: bool) -> None:
        if not self.in_hand:
            self.busy_since = time.monotonic()
        if urgent:
            self._urgent_in_hand += 1
            self._urgent_idle.clear()
        self.in_hand += 1
        telemetry.IN_HAND.labels(self.stage.name).set(self.in_hand)

    @contextmanager
    def _let_go_afterwards(self, count: int) -> Iterator[None]:
        try:
            yield
        finally:
            self._let_go(count)

    def _let_go(self, count: int) -> None:
        self.in_hand -= count
        telemetry.IN_HAND.labels(self.stage.name).set(self.in_hand)

    async def _take(self, stage: Stage[T], source: Source, *, urgent: bool) -> list[Any]:
        """At least one event, and what else comes until the batch is full or has lingered."""
        events = [await source.get()]
        self._take_up(urgent=urgent)
        size = len(events[0].message.value or b"")
        deadline = time.monotonic() + stage.linger_s
        while len(events) < stage.batch_messages and size < stage.batch_bytes:
            if source.empty():
                # Waiting in `get` with a time-out could drop the event that arrives just then.
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    break
                await asyncio.sleep(min(remaining, 0.005))
                continue
            event = source.get_nowait()
            self._take_up(urgent=urgent)
            events.append(event)
            size += len(event.message.value or b"")
        telemetry.BATCH_MESSAGES.labels(self.stage.name).observe(len(events))
        return events

    async def _process(self, stage: Stage[T], batch: Sequence[tuple[Any, Record]], before: asyncio.Event) -> None:
        """Everything of a batch is confirmed and acked when this returns, in order, up to the record that broke it if
        one did. Nothing is written before the batch `before` is acked.
        """
        place = {id(record): position for position, (_, record) in enumerate(batch)}
        settled: list[tuple[int, Poison | Iterable[Outgoing]]] = []
        items: list[Item[T]] = []
        crash: tuple[int, Exception] | None = None
        with _timed(self.stage.name, "decode"):
            for position, (_, record) in enumerate(batch):
                try:
                    items.append(Item(record=record, message=self._decode(record)))
                except Poison as poison:
                    settled.append((position, poison))
                except Exception as bug:
                    crash = (position, bug)
                    break
        for item, outcome in await self._work(stage, items):
            if isinstance(outcome, Exception) and not isinstance(outcome, Poison):
                crash = (place[id(item.record)], outcome)
            else:
                settled.append((place[id(item.record)], outcome))
        await before.wait()
        end = len(batch) if crash is None else crash[0]
        outgoing: list[Iterable[Outgoing]] = []
        for position, outcome in sorted(settled, key=itemgetter(0)):
            if position >= end:
                break
            if isinstance(outcome, Poison):
                outcome = self._bury(batch[position][1], outcome, attempts=1)  # noqa: PLW2901
            outgoing.append(outcome)
        await self._confirm(batch[:end], chain.from_iterable(outgoing))
        if crash is not None:
            await self._count_the_crash(batch[end], crash[1])
            await self._process(stage, batch[end + 1 :], before)

    def _record(self, message: Any, lane: Lane) -> Record:
        headers = tuple(message.headers or ())
        record = Record(
            topic=message.topic,
            partition=message.partition,
            offset=message.offset,
            timestamp=round(message.timestamp * 1000),
            key=message.key,
            value=message.value,
            headers=headers,
            lane=lane,
            span=self.spans.received(message.topic, message.partition, message.offset, headers),
        )
        if record.span.recording:
            record.span.set({f"headrace.{name}": value for name, value in self._tenant(record).items()})
        return record

    def _decode(self, record: Record) -> T:
        if isinstance(record.value, UnreadableBatch):
            raise Poison("unreadable_batch", record.value.reason)
        return self.stage.decode(record)

    async def _confirm(self, batch: Sequence[tuple[Any, Record]], outgoing: Iterable[Outgoing]) -> None:
        """Write, and ack when it is confirmed."""
        await self._write(outgoing)
        for event, record in batch:
            event.ack()
            record.span.end()
            telemetry.MESSAGES.labels(self.stage.name, record.lane, "in").inc()
        self.busy_since = time.monotonic()
        telemetry.PROGRESS.labels(self.stage.name).set_to_current_time()

    async def _write(self, outgoing: Iterable[Outgoing]) -> None:
        name = self.stage.name
        messages, chunks = Counter[Lane](), Counter[Lane]()
        told: list[Callable[[], None]] = []

        def handed_over() -> Iterator[Outgoing]:
            for record in outgoing:
                cause = record.cause
                traced = sending.headers(cause.span, record.topic) if cause is not None else ()
                yield replace(record, headers=(*record.headers, *traced)) if traced else record
                # The wire has taken it: what one document becomes may take longer than a worker may stand still.
                self.busy_since = time.monotonic()
                lane = BY_NAME[record.topic].lane if record.topic in BY_NAME else "bulk"
                messages[lane] += 1
                chunks[lane] += record.chunks
                if record.on_confirmed is not None:
                    told.append(record.on_confirmed)

        with _timed(name, "write"), self.spans.sending() as sending:
            await self.wire.send(handed_over())
        for tell in told:
            tell()
        for lane, count in messages.items():
            telemetry.MESSAGES.labels(name, lane, "out").inc(count)
            if chunks[lane]:
                telemetry.CHUNKS.labels(name, lane).inc(chunks[lane])

    async def _work(self, stage: Stage[T], items: Sequence[Item[T]]) -> list["_Outcome[T]"]:
        """Work on a batch; where something in it can't be worked on, halve it until what is wrong stands alone.

        Each outcome is that of an item and of those after it, up to the next outcome's. Stops at the first item that
        breaks the worker: nothing after it has an outcome.
        """
        if not items:
            return []
        spans = [item.record.span for item in items]
        try:
            with _timed(self.stage.name, "work"), self.spans.batch(spans) as batch:
                work = self._until_the_servers_are_there(lambda: _worked(stage, items), [batch, *spans])
                return [(items[0], await work)]
        except (Misconfigured, asyncio.CancelledError):
            raise
        except Exception as error:
            if len(items) == 1:
                return [(items[0], error)]
        middle = len(items) // 2
        outcomes = await self._work(stage, items[:middle])
        if outcomes and isinstance(outcomes[-1][1], Exception) and not isinstance(outcomes[-1][1], Poison):
            return outcomes
        return outcomes + await self._work(stage, items[middle:])

    async def _until_the_servers_are_there(self, work: Callable[[], Awaitable[R]], spans: Sequence[tracing.Span]) -> R:
        call = object()
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(Transient),
                wait=RETRY_WAIT,
                before_sleep=lambda state: self._note_wait(call, state, spans),
            ):
                with attempt:
                    return await work()
            raise AssertionError("retries have no end")
        finally:
            self._wait_ended(call)

    def _wait_ended(self, call: object) -> None:
        ended = self._away.pop(call, None)
        if ended is not None and all(other.service != ended.service for other in self._away.values()):
            telemetry.WAITING.labels(self.stage.name, ended.service).set(0)
            log.info("waiting_ended", stage=self.stage.name, server=ended.service)

    def _note_wait(self, call: object, state: RetryCallState, spans: Sequence[tracing.Span]) -> None:
        error = cast(Transient, state.outcome and state.outcome.exception())  # nothing else is retried
        before = self._away.get(call)
        if before is not None and before.service != error.service:
            # A stage of two stores: the one is back, and the other isn't.
            self._wait_ended(call)
            before = None
        since = time.monotonic() if before is None else before.since
        self._away[call] = Waiting(error.service, str(error), since)
        telemetry.RETRIES.labels(self.stage.name, error.service).inc()
        telemetry.WAITING.labels(self.stage.name, error.service).set(1)
        for span in spans:
            span.event("waiting_for_service", {"headrace.service": error.service, "attempt": state.attempt_number})
        log.warning(
            "waiting_for_service",
            stage=self.stage.name,
            server=error.service,
            reason=str(error),
            attempt=state.attempt_number,
            next_try_s=round(state.upcoming_sleep, 1),
        )

    async def _count_the_crash(self, broken: tuple[Any, Record], error: Exception) -> None:
        """Raise what broke the worker, or bury the record if it did so too often."""
        event, record = broken
        await self.wire.commit()
        attempts = await self.wire.note_attempt(record)
        with tracing.within(record.span):
            log.error(
                "record_broke_the_worker",
                stage=self.stage.name,
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                attempts=attempts,
                exc_info=error,
                **self._tenant(record),
            )
        if attempts < ATTEMPTS:
            raise error
        poison = Poison("internal", f"{type(error).__name__}: {error}")
        await self._confirm([(event, record)], self._bury(record, poison, attempts=attempts))

    def _tenant(self, record: Record) -> dict[str, str]:
        """For logs. Of a document's key alone: a request's may be anything."""
        if self.stage.tells_producers:
            with suppress(ValueError):
                return {"tenant": parse_key(record.key).tenant}
        return {}

    def _bury(self, record: Record, poison: Poison, *, attempts: int) -> list[Outgoing]:
        """The dead letter, byte for byte, and the event that tells the producer."""
        telemetry.DEAD_LETTERS.labels(self.stage.name, poison.code).inc()
        record.span.event("dead_letter", {"headrace.error.code": poison.code, "headrace.error.attempts": attempts})
        record.span.failed(poison)
        batch = record.value if isinstance(record.value, UnreadableBatch) else None
        place: dict[str, Any] = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
        told = {"code": poison.code, **self._tenant(record)}  # The reason may quote the document: the letter has it.
        with tracing.within(record.span):
            if batch is None:
                log.warning("message_dead_lettered", stage=self.stage.name, **place, **told)
            else:
                place |= {"offset": batch.first, "last_offset": batch.last}
                log.error("batch_dead_lettered", stage=self.stage.name, **place, **told, size=len(batch))
        headers = dead_letter_headers(record.headers, stage=self.stage.name, poison=poison, attempts=attempts, **place)
        dead = Outgoing(
            topic="documents.dead", key=record.key, value=record.value, headers=headers, timestamp=record.timestamp
        )
        if not _fits(dead):
            dead = _emptied(dead)
        if batch is not None or not self.stage.tells_producers:  # Whose documents a batch held nobody knows.
            return [dead]
        event = encode(_failed(record, self.stage.name, poison))
        return [dead, Outgoing(topic="documents.events", key=_reasonable(record.key), value=event, cause=record)]


async def _worked(stage: Stage[T], items: Sequence[Item[T]]) -> Iterable[Outgoing]:
    outgoing = await stage.work(items)
    if isinstance(outgoing, Sequence):
        _check_sizes(outgoing)
    else:  # They are made as they are gone through, and one document may become thousands.
        await asyncio.to_thread(_check_sizes, outgoing)
    return outgoing


def _check_sizes(outgoing: Iterable[Outgoing]) -> None:
    for record in outgoing:
        check_size(record)


_Outcome = tuple[Item[T], Iterable[Outgoing] | Exception]


class _VersionOnly(msgspec.Struct):
    """What a document and every message between the stages have of a version."""

    version: Version | None = None
    revision: "_VersionOnly | None" = None


def _emptied(dead: Outgoing) -> Outgoing:
    """A letter that its topic doesn't take, because the record came compressed: why it died, and where the original is.

    Its value is empty and not null: sent again, that would delete the document.
    """
    headers = [(name, value) for name, value in dead.headers if name.startswith(OWN_PREFIXES)]
    left_out = ("headrace.error.left_out_bytes", str(len(dead.value or b"")).encode())
    return replace(dead, key=_reasonable(dead.key), value=b"", headers=[*headers, left_out])


def _reasonable(key: bytes | None) -> bytes | None:
    """A key that can't be a document's may be as large as its record, and an event takes less."""
    return key if key is None or len(key) <= KEY_MAX_BYTES else None


def _failed(record: Record, stage: str, poison: Poison) -> DocumentEvent:
    """The event of a dead letter, with what can still be known of the document."""
    tenant = doc_id = None
    with suppress(ValueError):  # The key itself may be what can't be read: the event says so by leaving it out.
        tenant, doc_id = parse_key(record.key)
    version: int | None = record.timestamp
    with suppress(msgspec.DecodeError):  # Likewise the value: its version is then the record's timestamp.
        found = decode(record.value or b"{}", _VersionOnly)
        named = found.revision.version if found.revision is not None else found.version
        version = record.timestamp if named is None else named
    return DocumentEvent(
        status="failed",
        stage=stage,
        at=datetime.now(UTC),
        doc_id=doc_id,
        tenant=tenant,
        version=version,
        error=EventError(code=poison.code, message=str(poison)[:MESSAGE_MAX_CHARACTERS]),
    )


@contextmanager
def _timed(stage: str, step: str) -> Iterator[None]:
    with telemetry.STEP_SECONDS.labels(stage, step).time():
        yield


def check_size(outgoing: Outgoing) -> None:
    """Raise Poison if the broker would refuse this record:
    an idempotent producer is dead for good after such a refusal.
    """
    size, limit = _size(outgoing), _limit(outgoing)
    if size > limit:
        raise Poison("record_too_large", f"a record of {size} bytes for {outgoing.topic}, which takes {limit}")


def _fits(outgoing: Outgoing) -> bool:
    return _size(outgoing) <= _limit(outgoing)


def _limit(outgoing: Outgoing) -> int:
    return BY_NAME[outgoing.topic if outgoing.topic in BY_NAME else "replies"].max_bytes


def _size(outgoing: Outgoing) -> int:
    size = RECORD_OVERHEAD_BYTES + tracing.HEADERS_MAX_BYTES + len(outgoing.key or b"") + len(outgoing.value or b"")
    return size + sum(len(name) + len(value or b"") + 10 for name, value in outgoing.headers)
