"""The transport as a stage sees it, in memory. `journal` has what happened, in order, on all of them together."""

import asyncio
import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from agents.stage import Outgoing, Record
from tests.fakes.records import ARRIVED_MS


class FakeWire:
    """A Wire. While `confirming` is cleared the brokers are silent; set `failing`, and they refuse."""

    def __init__(self, journal: list[str], *, crashes_before: int = 0) -> None:
        self.journal = journal
        self.sent: list[Outgoing] = []
        self.confirming = asyncio.Event()
        self.confirming.set()
        self.failing: Exception | None = None
        self.crashes = crashes_before

    async def send(self, outgoing: Iterable[Outgoing]) -> None:
        taken = list(outgoing)
        self.journal += [f"send {one.topic}" for one in taken]
        await self.confirming.wait()
        if self.failing is not None:
            raise self.failing
        self.sent += taken
        self.journal.append("confirmed")

    async def commit(self) -> None:
        self.journal.append("commit")

    async def note_attempt(self, record: Record) -> int:
        self.crashes += 1
        self.journal.append(f"note {(record.value or b'').decode()}")
        return self.crashes

    def of(self, topic: str) -> list[Outgoing]:
        return [one for one in self.sent if one.topic == topic]


@dataclass
class FakeMessage:
    topic: str
    offset: int
    key: bytes | None
    value: bytes | None
    partition: int = 3
    timestamp: float = ARRIVED_MS / 1000
    headers: list[tuple[str, bytes]] = field(default_factory=lambda: [("trace", b"\xff\x00")])


@dataclass
class FakeEvent:
    message: FakeMessage
    journal: list[str]

    def ack(self) -> None:
        self.journal.append(f"ack {(self.message.value or b'').decode(errors='replace')}")


class FakeSource:
    """A lane's Source. Each text that is put becomes a record's value."""

    def __init__(self, journal: list[str], topic: str = "documents.embeddings") -> None:
        self._journal = journal
        self._topic = topic
        self._events: deque[FakeEvent] = deque()
        self._more = asyncio.Event()
        self._offset = 0

    def put(self, *values: str) -> None:
        for value in values:
            message = FakeMessage(self._topic, self._offset, f"default/{value}".encode(), value.encode())
            self._events.append(FakeEvent(message, self._journal))
            self._offset += 1
        self._more.set()

    def put_message(self, value: bytes, *, offset: int) -> None:
        self._events.append(FakeEvent(FakeMessage(self._topic, offset, None, value), self._journal))
        self._more.set()

    async def get(self) -> Any:
        while not self._events:
            self._more.clear()
            await self._more.wait()
        return self._events.popleft()

    def get_nowait(self) -> Any:
        return self._events.popleft()

    def empty(self) -> bool:
        return not self._events


def position(header: bytes) -> int:
    """A big-endian offset, as Spring Kafka writes it."""
    [offset] = struct.unpack(">q", header)
    return int(offset)
