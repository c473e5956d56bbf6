"""How far a partition has got: what was delivered to the stage, what of it is acked, and what may be committed."""

from collections import deque


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
        self._sizes: dict[int, int] = {}
        self._last: int | None = None
        self._reached = 0
        self.held_bytes = 0
        """Bytes delivered and not acked yet."""

    def deliver(self, offset: int, size: int) -> None:
        self._delivered.append(offset)
        self._last = offset
        self._sizes[offset] = size
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
        self.held_bytes -= self._sizes.pop(offset, 0)

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
        return len(self._sizes)
