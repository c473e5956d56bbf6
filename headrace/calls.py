"""Which server owes an answer: one that is frozen looks like work that takes long, until its time-out has passed."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Unanswered(NamedTuple):
    """A call that has no answer yet. `since` is in monotonic seconds."""

    service: str
    since: float


_open: dict[object, Unanswered] = {}
_lock = threading.Lock()


@contextmanager
def asking(service: str) -> Iterator[None]:
    """The block waits for this server. From any thread."""
    call = object()
    with _lock:
        _open[call] = Unanswered(service, time.monotonic())
    try:
        yield
    finally:
        with _lock:
            del _open[call]


def longest_unanswered() -> Unanswered | None:
    """The oldest call of this process that is still open."""
    with _lock:
        return min(_open.values(), key=lambda call: call.since, default=None)
