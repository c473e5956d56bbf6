"""How much an encoder reads, and for how long it is busy with it: the one place for every backend."""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from headrace import telemetry

RATE_OVER_S = 60.0


class Meter:
    """Counts tokens, and the seconds in which at least one call was under way: tokens a second of them are what the
    model does, however many call it at once. From any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._counted_to = 0.0

    @contextmanager
    def reading(self, rows: Sequence[Sequence[int]]) -> Iterator[None]:
        """The block reads these rows of tokens; they count when it is done well."""
        self._change(1)
        try:
            yield
            telemetry.ENCODER_TOKENS.inc(sum(map(len, rows)))
        finally:
            self._change(-1)

    def _change(self, calls: int) -> None:
        with self._lock:
            now = time.perf_counter()
            if self._calls:
                telemetry.ENCODER_SECONDS.inc(now - self._counted_to)
            self._counted_to = now
            self._calls += calls


class RecentRate:
    """How many were done a second, over the last minute: none when nothing came for so long. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done: deque[tuple[float, int]] = deque()

    def count(self, done: int) -> None:
        with self._lock:
            self._done.append((time.monotonic(), done))
            self._forget()

    def a_second(self) -> float:
        with self._lock:
            self._forget()
            return sum(done for _, done in self._done) / RATE_OVER_S

    def _forget(self) -> None:
        while self._done and self._done[0][0] <= time.monotonic() - RATE_OVER_S:
            self._done.popleft()
