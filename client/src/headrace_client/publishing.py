"""Documents on their way, and what becomes of them."""

import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from confluent_kafka import Message

from headrace_client.errors import Closed, DocumentFailed, HeadraceError, KafkaUnavailable, NoReply, QueueFull
from headrace_client.kafka import TICK_S, KafkaSettings, Sender, Tail, key_of, value_of
from headrace_client.messages import Deletion, Document, DocumentEvent, decode
from headrace_client.outcomes import Outcome, Outcomes, Sent
from headrace_client.pending import Pending
from headrace_client.records import Record

IN_FLIGHT_BYTES = 64 * 1024 * 1024
"""What `publish_many` may hold of documents on their way."""

T = TypeVar("T")


class Delivery(NamedTuple):
    """Where Kafka keeps the record. `version` is what the document named, or the record's timestamp."""

    topic: str
    partition: int
    offset: int
    version: int


@dataclass(frozen=True, kw_only=True)
class Published:
    """One document of `publish_many`. `outcome` is None unless outcomes are waited for.

    `error` says why it did not get through; it is None when all went well.
    """

    document: Document | Deletion
    delivery: Delivery | None = None
    outcome: Outcome | None = None
    error: HeadraceError | None = None


class _Watch:
    """A record whose outcome somebody waits for."""

    def __init__(self, *, sent: Sent, timeout_s: float) -> None:
        self.sent = sent
        self.timeout_s = timeout_s
        self.give_up = time.monotonic() + timeout_s
        self.delivered: Pending[Delivery] = Pending()
        self.outcome: Pending[Outcome] = Pending()

    def fail(self, error: HeadraceError) -> None:
        self.delivered.fail(error)
        self.outcome.fail(error)


class Publishing:
    """The documents of one client. Thread-safe."""

    def __init__(self, settings: KafkaSettings, sender: Sender, *, events: str) -> None:
        self._sender = sender
        self._lock = threading.Lock()
        self._outcomes = Outcomes()
        self._watches: dict[Sent, _Watch] = {}
        self._tail = Tail(
            settings,
            events,
            one_partition=False,
            busy=lambda: bool(self._watches),
            on_record=self._take,
            on_failure=self._fail_watches,
        )
        self._ticks: deque[Pending[None]] = deque()
        self._ended = False

    def publish(self, record: Record, version: int | None) -> Pending[Delivery]:
        """Raises QueueFull, or another HeadraceError, when it is not sent."""
        with self._lock:
            sent = self._stamped(record, version, waited_for=False)
        delivered: Pending[Delivery] = Pending()
        self._send(record, sent, delivered)
        return delivered

    def publish_and_wait(
        self, record: Record, version: int | None, timeout_s: float
    ) -> tuple[Pending[Delivery], Pending[Outcome]]:
        """Raises QueueFull when that is known at once; what else keeps it from being sent, both results tell."""
        with self._lock:
            # Stamped now: versions are in the order of the calls, even where one waits for the events' reader.
            watch = _Watch(sent=self._stamped(record, version, waited_for=True), timeout_s=timeout_s)
            self._outcomes.expect(watch.sent)
            self._watches[watch.sent] = watch
        watch.outcome.add_done_callback(lambda _: self._forget(watch))
        caller = threading.get_ident()

        def send() -> None:
            while not (watch.outcome.done() or self._ended):
                try:
                    self._send(record, watch.sent, watch.delivered)
                    return
                except QueueFull as exc:
                    if threading.get_ident() == caller:
                        watch.fail(exc)
                    else:
                        time.sleep(TICK_S)  # Many may have waited for the reader; deliveries make room meanwhile.
                except HeadraceError as exc:
                    watch.fail(exc)
            watch.delivered.cancel()

        try:
            self._tail.when_positioned(send)
        except Closed as exc:
            watch.fail(exc)
        if watch.delivered.done() and not watch.delivered.cancelled():
            error = watch.delivered.exception()
            if isinstance(error, QueueFull):
                raise error
        return watch.delivered, watch.outcome

    def tick(self) -> Pending[None]:
        """Done in a moment, when there may be room in the queue again."""
        ticked: Pending[None] = Pending()
        self._ticks.append(ticked)
        if self._ended:
            ticked.settle(None)
        return ticked

    def expire(self) -> None:
        """Tell those whose time is over."""
        now = time.monotonic()
        with self._lock:
            late = [watch for watch in self._watches.values() if now > watch.give_up]
        for watch in late:
            watch.outcome.fail(self._nothing_came(watch))
        self._settle_ticks()

    def close(self) -> None:
        closed = Closed("the client was closed before it was known what became of the document")
        self._ended = True  # Before the reader's thread is waited for: it may wait for room to send something.
        self._tail.close()
        self._fail_watches(closed)
        self._settle_ticks()

    def _settle_ticks(self) -> None:
        while self._ticks:
            self._ticks.popleft().settle(None)

    def _stamped(self, record: Record, version: int | None, *, waited_for: bool) -> Sent:
        at_ms = self._outcomes.stamp(record.key, time.time_ns() // 1_000_000, waited_for=waited_for)
        return Sent(key=record.key, at_ms=at_ms, named=version)

    def _send(self, record: Record, sent: Sent, delivered: Pending[Delivery]) -> None:
        def confirmed(error: HeadraceError | None, message: Message) -> None:
            if error is not None:
                delivered.fail(error)
                if (watch := self._watches.get(sent)) is not None:
                    watch.fail(error)
                return
            with self._lock:  # The broker may have put a time of its own on the record.
                told = self._watched(self._outcomes.confirm(sent, message.timestamp()[1]))
            place = (message.topic() or "", message.partition() or 0, message.offset() or 0)
            delivered.settle(Delivery(*place, sent.version))
            self._tell(told)

        self._sender.send(record, confirmed, at_ms=sent.at_ms)

    def _take(self, message: Message) -> None:
        key = key_of(message)
        if key not in self._outcomes:
            return  # Most events are of what others have published; they are not even decoded.
        try:
            event = decode(value_of(message), DocumentEvent)
        except ValueError:
            return
        with self._lock:
            told = self._watched(self._outcomes.note(key, event))
        self._tell(told)

    def _watched(self, told: list[tuple[Sent, Outcome]]) -> list[tuple[_Watch, Outcome]]:
        return [(self._watches[sent], outcome) for sent, outcome in told if sent in self._watches]

    def _tell(self, told: list[tuple[_Watch, Outcome]]) -> None:
        for watch, outcome in told:
            if outcome.status == "failed":
                watch.outcome.fail(DocumentFailed(outcome))
            else:
                watch.outcome.settle(outcome)

    def _nothing_came(self, watch: _Watch) -> HeadraceError:
        within = f"within {watch.timeout_s:g} s"
        if not watch.sent.confirmed:
            return KafkaUnavailable(
                f"Kafka did not take the document {within}; {self._sender.away(self._tail.obstacle)}"
            )
        return NoReply(
            f"Kafka has the document, and {within} nothing told what became of it: do the workers run, and keep up?"
        )

    def _forget(self, watch: _Watch) -> None:
        with self._lock:
            told = self._watched(self._outcomes.forget(watch.sent))
            self._watches.pop(watch.sent, None)
        self._tell(told)

    def _fail_watches(self, error: HeadraceError) -> None:
        with self._lock:
            watches = list(self._watches.values())
        for watch in watches:
            watch.outcome.fail(error)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A document on its way, with its size as a record. `outcome` is None where nobody waits for it."""

    size: int
    delivered: Pending[Delivery]
    outcome: Pending[Outcome] | None = None


class Publications(Iterator[Published], AsyncIterator[Published]):
    """What became of each document of `publish_many`, in their order; `for` in a thread, `async for` in a coroutine.

    Nothing is sent before it is iterated, and no more documents are taken than may be on their way at once.
    """

    def __init__(
        self,
        documents: Iterable[Document | Deletion],
        submit: Callable[[Document | Deletion], Submission],
        tick: Callable[[], Pending[None]],
        *,
        in_flight: int,
    ) -> None:
        self._documents = iter(documents)
        self._submit = submit
        self._tick = tick
        self._in_flight = in_flight
        self._held: Document | Deletion | None = None
        """Taken, and not sent because the queue is full."""
        self._window: deque[tuple[Document | Deletion, Submission | HeadraceError]] = deque()
        self._bytes = 0

    def __next__(self) -> Published:
        while (awaited := self._fill()) is not None:
            _after(awaited).result()
        if not self._window:
            raise StopIteration
        return self._oldest()

    async def __anext__(self) -> Published:
        while (awaited := self._fill()) is not None:
            await _after(awaited)
        if not self._window:
            raise StopAsyncIteration
        return self._oldest()

    def _fill(self) -> Pending[Delivery] | Pending[Outcome] | Pending[None] | None:
        """Send as many as may be on their way; then what must be waited for, None when the oldest is settled."""
        while len(self._window) < self._in_flight and self._bytes < IN_FLIGHT_BYTES:
            document = self._held or next(self._documents, None)
            self._held = None
            if document is None:
                break
            try:
                submission = self._submit(document)
            except QueueFull:
                self._held = document
                if not self._window:
                    return self._tick()
                break
            except HeadraceError as exc:
                self._window.append((document, exc))
            else:
                self._window.append((document, submission))
                self._bytes += submission.size
        if not self._window or isinstance(oldest := self._window[0][1], HeadraceError):
            return None
        awaited = oldest.outcome or oldest.delivered
        return None if awaited.done() else awaited

    def _oldest(self) -> Published:
        document, submission = self._window.popleft()
        if isinstance(submission, HeadraceError):
            return Published(document=document, error=submission)
        self._bytes -= submission.size
        delivery = _result(submission.delivered)
        if submission.outcome is None:
            return Published(document=document, delivery=delivery, error=_error(submission.delivered))
        outcome, error = _result(submission.outcome), _error(submission.outcome)
        if isinstance(error, DocumentFailed):
            outcome = error.outcome
        return Published(document=document, delivery=delivery, outcome=outcome, error=error)


def _after(pending: Pending[Delivery] | Pending[Outcome] | Pending[None]) -> Pending[None]:
    """Done when the other is, however that ends; giving this up does not give up the other."""
    after: Pending[None] = Pending()
    pending.add_done_callback(lambda _: after.settle(None))
    return after


def _error(pending: Pending[T]) -> HeadraceError | None:
    error = pending.exception()
    if error is not None and not isinstance(error, HeadraceError):
        raise error
    return error


def _result(pending: Pending[T]) -> T | None:
    return pending.result() if pending.done() and not pending.cancelled() and pending.exception() is None else None
