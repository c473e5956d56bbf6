"""How far a partition has got: what was delivered to the stage, what of it is acked, and what may be committed."""

from collections import deque
from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

Partition = TypeVar("Partition", bound=Hashable)


class PartitionProgress:
    """The messages of one assigned partition that are in the worker's hands.

    Only what was delivered counts: gaps in the offsets (compaction, transaction markers) hold nothing up. The position
    that may be committed never passes a delivered message that isn't acked, nor one that was fetched and isn't
    delivered yet.
    """

    def __init__(self) -> None:
        self._delivered: deque[int] = deque()
        self._position: int | None = None
        self._acked: set[int] = set()
        self._held: dict[int, tuple[int, float]] = {}
        """Size and age of what was delivered and isn't acked, in the order of the offsets."""
        self._last: int | None = None
        self._reached = 0
        self.held_bytes = 0
        """Bytes delivered and not acked yet."""

    def deliver(self, offset: int, size: int, since: float) -> None:
        """`since` is when the message began to wait, in Unix seconds."""
        self._delivered.append(offset)
        self._last = offset
        self._held[offset] = (size, since)
        self.held_bytes += size

    def reach(self, position: int, last: int | None) -> None:
        """The fetcher stands at `position`, and `last` is the last message that it has handed over (None: none yet).

        Unless that one was delivered, messages are on their way between the two, and this says nothing.
        """
        if last == self._last:
            self._reached = max(self._reached, position)

    def ack(self, offset: int) -> None:
        """Idempotent. An ack for what was not delivered here (of an assignment before this one) frees nothing,
        but counts: the work is done.
        """
        self._acked.add(offset)
        self.held_bytes -= self._held.pop(offset, (0, 0.0))[0]

    def committable(self) -> int | None:
        """The offset to commit: one past the last message of the acked head, and past what follows it without messages
        when all are acked; None before the first. It never goes back.
        """
        while self._delivered and self._delivered[0] in self._acked:
            offset = self._delivered.popleft()
            self._acked.discard(offset)
            self._position = offset + 1
        if not self._delivered and self._reached > (self._position or 0):
            self._position = self._reached
        return self._position

    @property
    def delivered_to(self) -> int:
        """The offset before which everything was delivered, as far as it is known."""
        return max(self._reached, 0 if self._last is None else self._last + 1)

    @property
    def unacked(self) -> int:
        return len(self._held)

    @property
    def waits_since(self) -> float | None:
        """The `since` of the first message that was delivered and isn't acked; None where all are."""
        return next((since for _, since in self._held.values()), None)


class Backlog(Generic[Partition]):
    """Since when each partition that has a lag has had one, as far as it is known here."""

    def __init__(self) -> None:
        self._stood: dict[Partition, tuple[int, float]] = {}

    def observe(self, behind: Mapping[Partition, tuple[int, float | None]], now: float) -> Mapping[Partition, float]:
        """`behind` has, of each partition with a lag, its committed offset and since when its first message in hand has
        waited, None where none is in hand. What was not delivered yet has waited for at least as long as the committed
        offset has been where it is. Times are Unix seconds.
        """
        self._stood = {
            partition: (committed, self._stood[partition][1])
            if self._stood.get(partition, ())[:1] == (committed,)
            else (committed, now)
            for partition, (committed, _) in behind.items()
        }
        return {
            partition: self._stood[partition][1] if since is None else min(since, now)
            for partition, (_, since) in behind.items()
        }
