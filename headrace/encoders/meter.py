"""How much an encoder reads, and for how long it is busy with it: the one place for every backend."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from headrace import telemetry


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
