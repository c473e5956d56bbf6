"""What a program uses: one Client, for threads and for coroutines alike."""

import asyncio
import atexit
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import msgspec

from headrace_client.asking import AnswerStream, Asking
from headrace_client.errors import Closed, Invalid
from headrace_client.kafka import KafkaSettings, Sender
from headrace_client.messages import Answer, Deletion, Document, Query
from headrace_client.outcomes import Outcome
from headrace_client.pending import Pending
from headrace_client.publishing import Delivery, Publications, Publishing, Submission
from headrace_client.records import AUTHORIZATION, Headers, Record, document_record, own_headers

ASK_TIMEOUT_S = 30.0
OUTCOME_TIMEOUT_S = 300.0
IN_FLIGHT = 1000
CLOSE_TIMEOUT_S = 10.0


class _Connection:
    """What is there while a client works: a producer, the readers, and their threads."""

    def __init__(self, settings: KafkaSettings, *, topic: Callable[[str], str], replies: str) -> None:
        self.pid = os.getpid()
        self._beats: tuple[Callable[[], None], ...] = ()
        self.sender = Sender(settings, self._tick)
        self.asking = Asking(settings, self.sender, queries=topic("queries"), replies=topic(replies))
        self.publishing = Publishing(settings, self.sender, events=topic("documents.events"))
        self._beats = (self.asking.expire, self.publishing.expire)

    def close(self, timeout_s: float) -> None:
        self.asking.close()
        self.publishing.close()
        self.sender.close(timeout_s)

    def _tick(self) -> None:
        for beat in self._beats:
            beat()


class Client:
    """Publishes documents and asks questions, over Kafka.

    One is enough for a program: it is thread-safe, and any number of questions and documents may be on their way. Its
    methods never block; each returns something to wait for, with `.result()` in a thread and `await` in a coroutine.
    What a method *raises* was not sent.

    It connects when it is first used, and not after a fork: a client that was used before belongs to the process that
    used it. `close` it, or use it as a context manager (`with`, `async with`).
    """

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        token: str | Callable[[], str] | None = None,
        headers: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None,
        topic_prefix: str = "",
        reply_topic: str = "replies",
        kafka: Mapping[str, Any] | None = None,
    ) -> None:
        """`token` and `headers` may be functions; they are called for each document and question, by whoever sends it.

        `token` is sent as `authorization: Bearer ...`. `headers` go along, such as `traceparent`. `topic_prefix` is the
        deployment's. `reply_topic` is `replies` or begins with `replies.`; it must exist. `kafka` holds settings of
        librdkafka, such as those of SASL and TLS. Raises Invalid.
        """
        if reply_topic != "replies" and not re.fullmatch(r"replies\.[A-Za-z0-9._-]+", reply_topic):
            raise Invalid(f"the reply topic must be replies or begin with replies., not {reply_topic!r}")
        self._settings = KafkaSettings(bootstrap_servers, kafka or {})
        self._token = token
        self._headers = headers
        self._prefix = topic_prefix
        self._reply_topic = reply_topic
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._closed = False

    def publish(
        self, document: Document | Deletion, *, urgent: bool = False, headers: Mapping[str, str] | None = None
    ) -> Pending[Delivery]:
        """Send a document; the result says where Kafka keeps it. It is indexed some time after.

        `urgent` takes the lane of what somebody waits for. Raises Invalid, QueueFull, KafkaRefused or Closed.
        """
        publishing = self._connected().publishing
        return publishing.publish(self._record(document, urgent, headers), document.version)

    def publish_and_wait(
        self,
        document: Document | Deletion,
        *,
        urgent: bool = False,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = OUTCOME_TIMEOUT_S,
    ) -> Pending[Outcome]:
        """Send a document; the result says what became of it: `indexed`, `deleted`, `unchanged` or `superseded`.

        One that failed raises DocumentFailed, and NoReply says that nothing was told in time.
        """
        publishing = self._connected().publishing
        return publishing.publish_and_wait(self._record(document, urgent, headers), document.version, timeout_s)[1]

    def publish_many(
        self,
        documents: Iterable[Document | Deletion],
        *,
        wait: bool = False,
        urgent: bool = False,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = OUTCOME_TIMEOUT_S,
        in_flight: int = IN_FLIGHT,
    ) -> Publications:
        """Send documents while their results are iterated, `in_flight` at once at most. With `wait`, wait for outcomes.

        Nothing is sent before it is iterated. What fails is told in its result, and does not stop the others.
        `timeout_s` is each document's, for its outcome.
        """
        if in_flight < 1:
            raise Invalid(f"in_flight must be at least 1, not {in_flight}")

        def submit(document: Document | Deletion) -> Submission:
            publishing, record = self._connected().publishing, self._record(document, urgent, headers)
            if not wait:
                return Submission(size=record.size, delivered=publishing.publish(record, document.version))
            delivered, outcome = publishing.publish_and_wait(record, document.version, timeout_s)
            return Submission(size=record.size, delivered=delivered, outcome=outcome)

        return Publications(documents, submit, self._connected().publishing.tick, in_flight=in_flight)

    def delete(
        self,
        doc_id: str,
        *,
        tenant: str | None = None,
        version: int | None = None,
        urgent: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> Pending[Delivery]:
        """Delete a document. Name a `version` if, and only if, its versions are numbers of your own."""
        return self.publish(Deletion(doc_id=doc_id, tenant=tenant, version=version), urgent=urgent, headers=headers)

    def delete_and_wait(
        self,
        doc_id: str,
        *,
        tenant: str | None = None,
        version: int | None = None,
        urgent: bool = False,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = OUTCOME_TIMEOUT_S,
    ) -> Pending[Outcome]:
        """Delete a document; the result is there when no question sees it any more."""
        deletion = Deletion(doc_id=doc_id, tenant=tenant, version=version)
        return self.publish_and_wait(deletion, urgent=urgent, headers=headers, timeout_s=timeout_s)

    def ask(
        self, question: str | Query, *, headers: Mapping[str, str] | None = None, timeout_s: float = ASK_TIMEOUT_S
    ) -> Pending[Answer]:
        """Ask; the result is the Answer, or raises what headrace answered as an AnswerFailed, or NoReply.

        A plain string asks for an answer in words from the documents of the tenant `default`. Headrace stops working on
        it when its time is over, by this machine's clock.
        """
        query = msgspec.structs.replace(_query(question), stream=False)
        asking = self._connected().asking
        return asking.ask(query, self._with_headers(headers), timeout_s)

    def stream(
        self, question: str | Query, *, headers: Mapping[str, str] | None = None, timeout_s: float = ASK_TIMEOUT_S
    ) -> AnswerStream:
        """Ask, and get the answer in pieces as they come; `timeout_s` is for the whole of it."""
        query = msgspec.structs.replace(_query(question), stream=True)
        asking = self._connected().asking
        return asking.stream(query, self._with_headers(headers), timeout_s)

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """End everything. Waits so long until Kafka has what was published; who waits for anything else gets Closed.

        Not to be called from a callback of a result.
        """
        with self._lock:
            self._closed = True
            connection, self._connection = self._connection, None
        if connection is None:
            return
        if connection.pid != os.getpid():
            _INHERITED.append(connection)
            return
        atexit.unregister(self.close)
        connection.close(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def _record(self, document: Document | Deletion, urgent: bool, headers: Mapping[str, str] | None) -> Record:
        topic = self._topic("documents.urgent" if urgent else "documents.raw")
        return document_record(topic, document, self._with_headers(headers))

    def _with_headers(self, headers: Mapping[str, str] | None) -> Headers:
        """A call's own headers win over the client's: an app may ask with its user's token."""
        token = self._token() if callable(self._token) else self._token
        always = self._headers() if callable(self._headers) else self._headers
        bearer = {AUTHORIZATION: f"Bearer {token}"} if token is not None else {}
        return own_headers(bearer, always or {}, headers or {})

    def _topic(self, name: str) -> str:
        return self._prefix + name

    def _connected(self) -> _Connection:
        with self._lock:
            if self._closed:
                raise Closed("the client is closed")
            if self._connection is None:
                self._connection = _Connection(self._settings, topic=self._topic, replies=self._reply_topic)
                atexit.register(self.close)
            elif self._connection.pid != os.getpid():
                raise Closed("the client was used before this process was forked from that one: make another here")
            return self._connection


_INHERITED: list[_Connection] = []
"""Of a parent process: its threads are not here, so librdkafka would wait for them for ever if it were taken down."""


def _query(question: str | Query) -> Query:
    return Query(query=question, mode="answer") if isinstance(question, str) else question
