"""A server as the retrieval asks it: on threads of its own, for a bounded time, and not while it keeps failing."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from headrace.errors import Transient
from headrace.retrieval.breakers import Asking, Breaker

T = TypeVar("T")


class Service:
    """Its threads are bounded and nobody else's, so that however long it hangs, it holds up nothing but itself."""

    def __init__(self, name: str, service: str, *, threads: int, timeout_s: float, breaker: Breaker) -> None:
        self._service = service
        self._timeout_s = timeout_s
        self._breaker = breaker
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def ask(self, call: Callable[[], T]) -> T:
        """What the call returns or raises, from a thread.

        Raises Transient too when there is no answer within the time-out, whose time begins now and includes waiting for
        a thread and connecting; and at once when the server has failed too often.
        """
        asking = self._breaker.ask()
        loop = asyncio.get_running_loop()
        made = self._threads.submit(_made, asking, call)
        answer = asyncio.wrap_future(made)
        late = Transient(self._service, f"no answer within {self._timeout_s:g} s")
        try:
            await asyncio.wait([answer], timeout=self._timeout_s)
            if answer.done():
                return answer.result()
            asking.failed(late)
        except asyncio.CancelledError:
            # Its asker has gone, and the call may still be a trial that others wait for.
            loop.call_later(self._timeout_s, asking.failed, late)
            raise
        finally:
            made.cancel()  # If no thread has begun it, none will.
            answer.cancel()  # Nobody looks at it any more; the event loop would complain of what it raises.
        raise late

    def close(self) -> None:
        """Takes no more; calls that are open are not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _made(asking: Asking, call: Callable[[], T]) -> T:
    asking.begin()
    try:
        answer = call()
    except Transient as exc:
        asking.failed(exc)
        raise
    except BaseException:
        asking.answered()
        raise
    asking.answered()
    return answer
