"""Spans as the code that is traced sees them. Nothing here imports OpenTelemetry.

No span ever has a text of a document or of a question, nor a record's key: errors are told by their class and code,
because their words may quote what they are about.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Literal, Self, TypeAlias

Attributes: TypeAlias = Mapping[str, str | int | float | bool | Sequence[str]]
Kind: TypeAlias = Literal["internal", "client", "producer"]
Headers: TypeAlias = Sequence[tuple[str, bytes]]

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
TRACESTATE_MAX_BYTES = 512
"""What W3C's recommendation asks everybody to pass on; a longer one is dropped."""
HEADERS_MAX_BYTES = 640
"""What both take in a record, names and lengths included."""
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class Span:
    """A piece of work. This one records nothing, and is what there is with tracing off: all of it costs nanoseconds.

    As a context manager it is the current span within the block and ends with it; what the block raises is noted.
    """

    __slots__ = ()

    @property
    def recording(self) -> bool:
        """Whether anybody will see it: what only costs time otherwise can be left undone."""
        return False

    @property
    def ids(self) -> tuple[str, str] | None:
        """Its trace's id and its own, in hex."""
        return None

    def headers(self) -> Headers:
        """What a record carries so that its reader's work belongs to the same trace."""
        return ()

    def child(self, name: str, attributes: Attributes | None = None, kind: Kind = "internal") -> "Span":
        """One that has begun."""
        del name, attributes, kind
        return NO_SPAN

    def set(self, attributes: Attributes) -> None: ...

    def event(self, name: str, attributes: Attributes | None = None) -> None: ...

    def link(self, other: "Span") -> None:
        """Say that the other is about the same thing, though of another trace."""

    def failed(self, error: BaseException | str) -> None:
        """By the class of the error, or by its code. The last one counts."""

    def end(self) -> None:
        """What is told of it later doesn't count."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


NO_SPAN = Span()


class PassedOn(Span):
    """Somebody else's trace, to which nothing is added."""

    __slots__ = ("_headers",)

    def __init__(self, headers: Headers) -> None:
        self._headers = headers

    def headers(self) -> Headers:
        return self._headers


_current: ContextVar[Span] = ContextVar("span", default=NO_SPAN)


def current() -> Span:
    """The innermost one around this call, in this task or thread, or in the one that began it."""
    return _current.get()


def span(name: str, attributes: Attributes | None = None, kind: Kind = "internal") -> Span:
    """A child of the current one; nothing where that one isn't recorded."""
    return _current.get().child(name, attributes, kind)


@contextmanager
def within(span: Span) -> Iterator[None]:
    """What is logged in the block belongs to this span, which goes on after it."""
    token = _current.set(span)
    try:
        yield
    finally:
        _current.reset(token)


def enter(entered: Span) -> Token[Span]:
    return _current.set(entered)


def leave(token: Token[Span]) -> None:
    _current.reset(token)


class Tracer:
    """Begins what has no parent in this process. This one records nothing, and passes on what comes."""

    __slots__ = ()

    def message(self, name: str, headers: Headers) -> Span:
        """The work on one message, of the trace that its headers tell of; without one it begins a trace."""
        del name
        came = trace_context(headers) if headers else ()
        return PassedOn(came) if came else NO_SPAN

    def batch(self, name: str, messages: Sequence[Span], attributes: Attributes) -> Span:
        """The work on several messages at once, which has a trace of its own: it and each message's span have a link
        to each other. It is recorded when one of the messages is.
        """
        del name, messages, attributes
        return NO_SPAN

    def stop(self) -> None:
        """Send what was not sent yet, for a bounded time."""


def trace_context(headers: Headers) -> Headers:
    """`traceparent`, and `tracestate` if there is one; nothing where the first isn't of its form.

    Of several with one name the last counts, as it does for every Kafka client.
    """
    parent = state = None
    for name, value in headers:
        if name == TRACEPARENT:
            parent = value
        elif name == TRACESTATE:
            state = value
    if not parent or not _TRACEPARENT.fullmatch(parent):
        return ()
    if not state or len(state) > TRACESTATE_MAX_BYTES:
        return ((TRACEPARENT, parent),)
    return ((TRACEPARENT, parent), (TRACESTATE, state))
