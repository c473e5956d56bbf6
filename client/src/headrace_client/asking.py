"""Questions and their replies: many in flight over one producer and one partition of the reply topic."""

import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

from confluent_kafka import Message

from headrace_client.errors import (
    Closed,
    HeadraceError,
    KafkaUnavailable,
    NoReply,
    UnreadableReply,
    answer_failed,
)
from headrace_client.kafka import KafkaSettings, Sender, Tail, headers_of, value_of
from headrace_client.messages import Answer, Delta, Query
from headrace_client.pending import Pending
from headrace_client.records import CORRELATION_ID, Headers, query_record, reply_headers
from headrace_client.streams import Assembly, Piece, Reset


class AnswerStream(Iterator[Piece], AsyncIterator[Piece]):
    """The pieces of an answer as they come; `for` in a thread, `async for` in a coroutine, and by one reader.

    Found first, then Deltas, then the whole Answer, which is the last. A Reset says that what came before it is void.
    Only the Answer is an answer: when the worker dies and none takes over, or headrace answers with an error, the
    iterator raises instead, whatever has been shown. `text` is what counts so far.
    """

    def __init__(self, whole: Pending[Answer]) -> None:
        self.whole = whole
        """The whole answer, for those who do not want to iterate (any more)."""
        self.text = ""
        """The text of the pieces that were handed out since the last Reset; at the end, that of the Answer."""
        self._lock = threading.Lock()
        self._pieces: deque[Piece] = deque()
        self._waiting: Pending[Piece | None] | None = None
        self._ended = False
        whole.add_done_callback(lambda _: self._offer_next())

    def __next__(self) -> Piece:
        taken = self._take()
        try:
            piece = taken.result()
        except BaseException:
            self._give_back(taken)
            raise
        if piece is None:
            raise StopIteration
        return self._shown(piece)

    async def __anext__(self) -> Piece:
        taken = self._take()
        try:
            piece = await taken
        except BaseException:
            self._give_back(taken)
            raise
        if piece is None:
            raise StopAsyncIteration
        return self._shown(piece)

    def cancel(self) -> None:
        """Wait for it no longer. Who iterates then gets a CancelledError."""
        self.whole.cancel()

    def offer(self, piece: Piece) -> None:
        """The client's own: the next piece."""
        with self._lock:
            self._pieces.append(piece)
        self._offer_next()

    def _take(self) -> Pending[Piece | None]:
        taken: Pending[Piece | None] = Pending()
        with self._lock:
            self._waiting = taken
        self._offer_next()
        return taken

    def _give_back(self, taken: Pending[Piece | None]) -> None:
        """Whoever waited was interrupted: a piece that came at the same moment is for who comes next."""
        if taken.cancel() or taken.cancelled() or taken.exception() is not None:
            return
        if (piece := taken.result()) is not None:
            with self._lock:
                self._pieces.appendleft(piece)

    def _offer_next(self) -> None:
        """Give whoever waits the next piece, or what the end is."""
        with self._lock:
            waiting = self._waiting
            if waiting is None or not (self._pieces or self.whole.done()):
                return
            self._waiting = None
            if self._pieces:
                # Given up meanwhile: the piece stays for who comes next.
                if waiting.settle(self._pieces[0]):
                    self._pieces.popleft()
            elif self.whole.cancelled():
                waiting.cancel()
            elif (error := self.whole.exception()) is not None:
                waiting.fail(error)
            elif waiting.settle(None if self._ended else self.whole.result()):
                self._ended = True

    def _shown(self, piece: Piece) -> Piece:
        match piece:
            case Delta():
                self.text += piece.delta
            case Reset():
                self.text = ""
            case Answer():
                self.text = piece.answer.text if piece.answer is not None else ""
        return piece


class _Exchange:
    """One question that waits for its answer."""

    def __init__(self, timeout_s: float, on_piece: Callable[[Piece], None] | None) -> None:
        self.whole: Pending[Answer] = Pending()
        self.on_piece = on_piece
        self.assembly = Assembly()
        self.timeout_s = timeout_s
        self.give_up = time.monotonic() + timeout_s
        self.deadline_ms = time.time_ns() // 1_000_000 + round(timeout_s * 1000)
        self.delivered = False

    def take(self, message: Message) -> None:
        try:
            pieces = self.assembly.take(headers_of(message), value_of(message))
        except ValueError as exc:
            self.whole.fail(UnreadableReply(f"the reply is not of the contract's form: {exc}"))
            return
        for piece in pieces:
            if not isinstance(piece, Answer):
                if self.on_piece is not None:
                    self.on_piece(piece)
            elif piece.error is not None:
                self.whole.fail(answer_failed(piece.error))
            else:
                self.whole.settle(piece)


class Asking:
    """The questions of one client. Thread-safe."""

    def __init__(self, settings: KafkaSettings, sender: Sender, *, queries: str, replies: str) -> None:
        self._sender = sender
        self._queries = queries
        self._replies = replies
        self._lock = threading.Lock()
        self._open: dict[bytes, _Exchange] = {}
        self._tail = Tail(
            settings,
            replies,
            one_partition=True,
            busy=lambda: bool(self._open),
            on_record=self._take,
            on_failure=self._fail_all,
        )

    def ask(self, query: Query, headers: Headers, timeout_s: float) -> Pending[Answer]:
        return self._begin(query, headers, _Exchange(timeout_s, None))

    def stream(self, query: Query, headers: Headers, timeout_s: float) -> AnswerStream:
        exchange = _Exchange(timeout_s, None)
        stream = AnswerStream(exchange.whole)
        exchange.on_piece = stream.offer
        self._begin(query, headers, exchange)
        return stream

    def expire(self) -> None:
        """Tell those whose time is over."""
        now = time.monotonic()
        with self._lock:
            late = [exchange for exchange in self._open.values() if now > exchange.give_up]
        for exchange in late:
            exchange.whole.fail(self._nothing_came(exchange))

    def close(self) -> None:
        self._tail.close()
        self._fail_all(Closed("the client was closed before the answer came"))

    def _begin(self, query: Query, headers: Headers, exchange: _Exchange) -> Pending[Answer]:
        correlation_id = uuid.uuid4().hex.encode()

        def addressed(partition: int) -> Headers:
            return (*reply_headers(correlation_id, self._replies, partition, exchange.deadline_ms), *headers)

        # Whether it can be sent is known before anything is; the partition comes in when it is known.
        record = query_record(self._queries, query, correlation_id, addressed(partition=0))

        def send() -> None:
            if exchange.whole.done():
                return
            try:
                self._sender.send(
                    replace(record, headers=addressed(self._tail.partition)),
                    lambda error, _: self._sent(exchange, error),
                )
            except HeadraceError as exc:
                exchange.whole.fail(exc)

        with self._lock:
            self._open[correlation_id] = exchange
        exchange.whole.add_done_callback(lambda _: self._forget(correlation_id))
        try:
            self._tail.when_positioned(send)
        except Closed as exc:
            exchange.whole.fail(exc)
        return exchange.whole

    def _sent(self, exchange: _Exchange, error: HeadraceError | None) -> None:
        exchange.delivered = True
        if error is not None:
            exchange.whole.fail(error)

    def _take(self, message: Message) -> None:
        with self._lock:
            exchange = self._open.get(headers_of(message).get(CORRELATION_ID, b""))
        if exchange is not None:
            exchange.take(message)

    def _nothing_came(self, exchange: _Exchange) -> HeadraceError:
        within = f"within {exchange.timeout_s:g} s"
        if not exchange.delivered:
            return KafkaUnavailable(
                f"Kafka did not take the question {within}; {self._sender.away(self._tail.obstacle)}"
            )
        return NoReply(f"no answer came {within}: is a query worker running, and does it keep up?")

    def _forget(self, correlation_id: bytes) -> None:
        with self._lock:
            self._open.pop(correlation_id, None)

    def _fail_all(self, error: HeadraceError) -> None:
        with self._lock:
            exchanges = list(self._open.values())
        for exchange in exchanges:
            exchange.whole.fail(error)
