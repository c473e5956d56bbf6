"""How many questions are worked on at once, and which of those that wait is next."""

import asyncio
from collections import deque
from contextlib import suppress
from types import TracebackType

from headrace.serving.errors import RateLimited

RETRY_AFTER_S = 1.0


class Slots:
    """At most `size` hold one; of the others the newest is next.

    Under a backlog the oldest are nearest to their deadlines: taken first, each would be given up half-way, and none
    would be answered in time. Those that wait too long end by their deadlines; beyond `waiting` of them the oldest is
    turned away with RateLimited. To be used from one event loop: `async with slots: ...`.
    """

    def __init__(self, size: int, waiting: int) -> None:
        self._free = size
        self._most = waiting
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def __aenter__(self) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        if len(self._waiting) > self._most:
            oldest = self._waiting.popleft()
            if not oldest.done():  # Its deadline may have passed just now, and it hasn't run since.
                busy = RateLimited("too many questions wait for their turn", retry_after_s=RETRY_AFTER_S)
                oldest.set_exception(busy)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):  # It was passed over already.
                    self._waiting.remove(turn)
            elif turn.exception() is None:
                self._hand_on()  # It was this one's turn in the moment in which it was given up.
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hand_on()

    def _hand_on(self) -> None:
        while self._waiting:
            turn = self._waiting.pop()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
