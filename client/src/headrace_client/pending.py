"""Results that are on their way: one thing to wait for, whether a thread waits or a coroutine."""

import asyncio
import concurrent.futures
from collections.abc import Generator
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class Pending(concurrent.futures.Future[T]):
    """A result on its way: `pending.result()` waits for it in a thread, `await pending` in a coroutine.

    It is a `concurrent.futures.Future`, so `concurrent.futures.wait`, `as_completed` and `asyncio.gather` take it too.
    `result(timeout)` raises TimeoutError when the result is not there by then, and changes nothing else. `cancel()`, or
    cancelling the coroutine that awaits it, gives it up; what was sent is sent. Callbacks run on the client's threads
    and must not block them.
    """

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self).__await__()

    def settle(self, result: T) -> bool:
        """The client's own. False when it was settled or given up before."""
        with suppress(concurrent.futures.InvalidStateError):
            self.set_result(result)
            return True
        return False

    def fail(self, error: BaseException) -> bool:
        """The client's own. False when it was settled or given up before."""
        with suppress(concurrent.futures.InvalidStateError):
            self.set_exception(error)
            return True
        return False
