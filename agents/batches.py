"""Reads what a broker sends of a partition, batch by batch: one that can't be decoded is handed on as what it is, and
what is behind it is read.

aiokafka raises instead, and takes what it had decoded of other partitions down with it: the worker ends, and ends again
after every restart (decision 0003).
"""

import struct
import time
from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import ConsumerRecord

LENGTH = struct.Struct(">8xi")
"""Where a batch of any format says how many bytes follow."""
HEADER = struct.Struct(">qiibIhiqqqhii")
"""Base offset, length, leader epoch, magic, CRC, attributes, last offset delta, two timestamps, producer id, epoch and
sequence, number of records: https://kafka.apache.org/documentation/#recordbatch. The CRC covers what comes after it."""


class UnreadableBatch(bytes):
    """A batch that can't be decoded, as it was stored; what of it could be read was delivered before.

    `first` and `last` are the offsets that can't be had.
    """

    first: int
    last: int
    reason: str


class Batches:
    """A broker's answer for one partition, divided into its batches."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._at = 0

    def size_in_bytes(self) -> int:
        return len(self._answer)

    def has_next(self) -> bool:
        """Whether another batch is here as a whole; an answer may end within one."""
        remaining = len(self._answer) - self._at
        return remaining >= LENGTH.size and LENGTH.size + self._length() <= remaining

    def take(self) -> bytes:
        start = self._at
        self._at += LENGTH.size + max(0, self._length())
        return self._answer[start : self._at]

    def next_base_offset(self) -> int | None:
        """Of the batch behind those that were taken, where there is a whole header of one."""
        if len(self._answer) - self._at < HEADER.size:
            return None
        return int(HEADER.unpack_from(self._answer, self._at)[0])

    def _length(self) -> int:
        return int(LENGTH.unpack_from(self._answer, self._at)[0])


class ReadableRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """aiokafka's own iterator over an answer's records, but one that goes on behind what can't be decoded."""

    _records: Any
    next_fetch_offset: int

    def _unpack_records(self) -> Iterator[Any]:
        batches: Batches = self._records
        while batches.has_next():
            raw = batches.take()
            self._records = MemoryRecords(raw)
            try:
                yield from super()._unpack_records()
            except MemoryError:
                raise  # Another time there may be room for it.
            except Exception as error:
                yield self._pass_over(raw, error, batches.next_base_offset())

    def _pass_over(self, raw: bytes, error: Exception, following: int | None) -> ConsumerRecord:
        first = self.next_fetch_offset
        end = end_of(raw, first, following)
        batch = UnreadableBatch(raw)
        batch.first, batch.last = first, end - 1
        batch.reason = f"{type(error).__name__}: {error}"
        self.next_fetch_offset = end
        now_ms = int(time.time() * 1000)
        place = (self._tp.topic, self._tp.partition, batch.last)
        return ConsumerRecord(*place, now_ms, 0, None, batch, None, -1, len(raw), ())


def end_of(raw: bytes, first: int, following: int | None) -> int:
    """The offset after a batch of which the records from `first` on can't be read.

    Where the header can't be trusted, it is that of the `following` batch; where there is none, the header's own if it
    is as producers write it; else a single offset is given up, and what is behind it is tried for itself.
    """
    said = None
    if len(raw) >= HEADER.size:
        fields = HEADER.unpack_from(raw)
        base, last_delta, count = fields[0], fields[6], fields[12]
        if DefaultRecordBatch(raw).validate_crc() or (following is None and last_delta == count - 1):
            said = base + last_delta + 1
    end = next((offset for offset in (said, following) if offset is not None), first + 1)
    return max(end, first + 1)


def read_past_unreadable_batches() -> None:
    """Make every aiokafka consumer of this process read so. It has no seam of its own for it."""
    fetcher.MemoryRecords = Batches
    fetcher.PartitionRecords = ReadableRecords
