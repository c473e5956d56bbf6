"""What a trace shows of Kafka's messages, in the words of OpenTelemetry's conventions for messaging."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from headrace.tracing import Attributes, Headers, Span, Tracer
from topics import Names

_SYSTEM = {"messaging.system": "kafka"}
_PROCESS = {**_SYSTEM, "messaging.operation.name": "process", "messaging.operation.type": "process"}
_SEND = {**_SYSTEM, "messaging.operation.name": "send", "messaging.operation.type": "send"}


@dataclass(frozen=True, kw_only=True)
class MessageSpans:
    """Those of one stage."""

    stage: str
    tracer: Tracer = field(default_factory=Tracer)
    names: Names = field(default_factory=Names)

    def received(self, topic: str, partition: int, offset: int, headers: Headers) -> Span:
        """The work of this stage on one message, from when it is taken until it is acked. `topic` is Kafka's name."""
        span = self.tracer.message(f"process {topic}", headers)
        if span.recording:
            span.set(
                {
                    **_PROCESS,
                    "messaging.destination.name": topic,
                    "messaging.destination.partition.id": str(partition),
                    "messaging.kafka.offset": offset,
                    "messaging.consumer.group.name": self.names.group(self.stage),
                }
            )
        return span

    def batch(self, messages: Sequence[Span]) -> Span:
        """One call of the stage's `work`."""
        attributes: Attributes = {**_PROCESS, "messaging.batch.message_count": len(messages)}
        return self.tracer.batch(f"{self.stage} batch", messages, attributes)

    def sending(self) -> "Sending":
        return Sending(self.names)


class Sending:
    """What is written at once: of each message that it comes of, one span for each topic."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._open: dict[tuple[int, str], tuple[Span, int]] = {}

    def headers(self, cause: Span, topic: str) -> Headers:
        """What a record for this topic of the topic table carries. `cause` is the work that it comes of."""
        if not cause.recording:
            return cause.headers()
        place = (id(cause), topic)
        if place not in self._open:
            name = self._names.topic(topic)
            span = cause.child(f"send {name}", {**_SEND, "messaging.destination.name": name}, "producer")
            self._open[place] = (span, 0)
        span, count = self._open[place]
        self._open[place] = (span, count + 1)
        return span.headers()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """It is confirmed, or it isn't."""
        for span, count in self._open.values():
            if count > 1:
                span.set({"messaging.batch.message_count": count})
            if isinstance(error, Exception):
                span.failed(error)
            span.end()


@contextmanager
def ended_together(spans: Sequence[Span]) -> Iterator[None]:
    """Those that haven't ended in the block end after it, with what it raised."""
    try:
        yield
    except Exception as error:
        for span in spans:
            span.failed(error)
        raise
    finally:
        for span in spans:
            span.end()
