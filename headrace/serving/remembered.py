"""The same request again gets the same answer, and the work is done once."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable

from cachetools import TTLCache

from schemas import Answer, encode


class Remembered:
    """Answers by request, for `seconds` after they were given and in `size_bytes` of memory (as JSON).

    An answer that is an error, or that had to do without something, is forgotten at once: the next try may do better.
    To be used from one event loop.
    """

    def __init__(self, *, seconds: float, size_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._size_bytes = size_bytes if seconds else 0
        self._kept: TTLCache[Hashable, Answer] = TTLCache(self._size_bytes, seconds, clock, _size)
        self._running: dict[Hashable, asyncio.Future[None]] = {}

    async def answer(
        self,
        request: Hashable,
        work: Callable[[], Awaitable[Answer]],
        is_current: Callable[[Answer], Awaitable[bool]],
    ) -> Answer:
        """The answer that is there and current, or that somebody else is working on, or else what `work` gives."""
        while True:
            if (kept := self._kept.get(request)) is not None:
                if await is_current(kept):
                    return kept
                if self._kept.get(request) is kept:
                    del self._kept[request]
            running = self._running.get(request)
            if running is None:
                break
            await asyncio.wait([running])
        done = self._running[request] = asyncio.get_running_loop().create_future()
        try:
            answer = await work()
            if answer.error is None and not answer.degraded and _size(answer) <= self._size_bytes:
                self._kept[request] = answer
            return answer
        finally:
            del self._running[request]
            done.set_result(None)


def _size(answer: Answer) -> int:
    return len(encode(answer))
