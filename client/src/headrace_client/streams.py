"""A streamed answer, put together from its replies. Pure: no Kafka, no clock."""

from collections.abc import Mapping
from typing import Literal

import msgspec

from headrace_client.messages import Answer, Delta, Hit, decode

STREAM_ID, STREAM_INDEX, STREAM_LAST = "stream-id", "stream-index", "stream-last-message"


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The first piece: the hits that the answer will rest on."""

    hits: list[Hit]
    degraded: list[str]


class Reset(msgspec.Struct, frozen=True, kw_only=True):
    """What came so far is void: show it no longer.

    `another_stream`: the worker died, and another answers from the start; Found comes again. `missing_piece`: a piece
    was lost; what follows is the whole answer, or another stream.
    """

    reason: Literal["another_stream", "missing_piece"]


Piece = Found | Delta | Reset | Answer


class Assembly:
    """The replies to one question, in the order in which they came.

    Whatever comes twice, late or with gaps, these hold: the Answer comes from one reply that says it is the last; and
    the deltas since the last Found or Reset, put together, are the beginning of one stream's text, and when the Answer
    comes they are its text, or there are none.
    """

    def __init__(self) -> None:
        self._stream: bytes | None = None
        self._seen: set[bytes | None] = set()
        self._next = 0
        self._broken = False
        self._shown = False
        self._text: list[str] = []

    def take(self, headers: Mapping[str, bytes], value: bytes) -> list[Piece]:
        """What this reply adds; an Answer, maybe one with an error, is the last. Raises ValueError for a bad one."""
        index = headers.get(STREAM_INDEX)
        stream = headers.get(STREAM_ID)
        if index is None or headers.get(STREAM_LAST) == b"true":
            return self._whole(stream, decode(value, Answer))
        return self._piece(stream, int(index), value)

    def _whole(self, stream: bytes | None, answer: Answer) -> list[Piece]:
        """It holds everything, so it is taken whatever came before it."""
        text = answer.answer.text if answer.answer is not None else ""
        if not self._text or answer.error is not None or "".join(self._text) == text:
            return [answer]
        return [Reset(reason="missing_piece" if stream == self._stream else "another_stream"), answer]

    def _piece(self, stream: bytes | None, index: int, value: bytes) -> list[Piece]:
        pieces: list[Piece] = []
        if stream not in self._seen:
            pieces += self._void("another_stream")
            self._seen.add(stream)
            self._stream, self._next, self._broken = stream, 0, False
        if stream != self._stream or index < self._next or self._broken:
            return pieces
        if index > self._next:
            self._broken = True
            return pieces + self._void("missing_piece")
        self._next += 1
        self._shown = True
        if index == 0:
            first = decode(value, Answer)
            return [*pieces, Found(hits=first.hits, degraded=first.degraded)]
        delta = decode(value, Delta)
        self._text.append(delta.delta)
        return [delta]

    def _void(self, reason: Literal["another_stream", "missing_piece"]) -> list[Piece]:
        if not self._shown:
            return []
        self._shown = False
        self._text.clear()
        return [Reset(reason=reason)]
