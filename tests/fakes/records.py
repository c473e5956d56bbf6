"""Records as Kafka brings them, without Kafka."""

from typing import TypeVar

from agents.stage import Item, Record
from topics import Lane

T = TypeVar("T")
ARRIVED_MS = 1_760_000_000_000


def record(
    value: bytes | None,
    *,
    key: bytes | None = b"default/d",
    topic: str = "documents.raw",
    offset: int = 0,
    timestamp: int = ARRIVED_MS,
    headers: tuple[tuple[str, bytes], ...] = (),
    lane: Lane = "bulk",
) -> Record:
    return Record(
        topic=topic,
        partition=0,
        offset=offset,
        timestamp=timestamp,
        key=key,
        value=value,
        headers=headers,
        lane=lane,
    )


def item(message: T, *, lane: Lane = "bulk") -> Item[T]:
    return Item(record=record(b"", lane=lane), message=message)
