"""A server that failed several times in a row is not asked for a while: its time-out is not everybody's wait."""

import threading
import time
from collections.abc import Callable
from typing import NoReturn

import pybreaker
import structlog

from headrace import telemetry
from headrace.errors import Transient
from headrace.stores.ports import TenantAway

log = structlog.get_logger("headrace.retrieval")


class Breaker:
    """Closed: everybody may ask. Open: nobody. Half-open: one trial is under way, and its outcome decides.

    The states, the count of failures and the changes are pybreaker's. Its `call` is used for outcomes alone: it holds a
    lock while the call lasts, so searches would wait for one another. And the time is ours: pybreaker's is the wall
    clock, which may be set back. Safe to use from any thread.
    """

    def __init__(
        self, name: str, service: str, *, failures: int, reset_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`name` is the metric's label, `service` what the Transient of a call that is refused names."""
        self._name = name
        self._service = service
        self._reset_s = reset_s
        self._clock = clock
        self._tried_from = 0.0
        self._lock = threading.Lock()
        self._circuit = pybreaker.CircuitBreaker(fail_max=failures, throw_new_error_on_trip=False)
        telemetry.BREAKER_OPEN.labels(name).set(0)

    def ask(self) -> "Asking":
        """A call that is to be made. Nothing is counted before `Asking.begin`."""
        return Asking(self)

    def _admit(self) -> bool:
        """Whether the call is the trial. Raises Transient when it must not be made."""
        with self._lock:
            state = self._circuit.current_state
            if state == pybreaker.STATE_CLOSED:
                return False
            if state == pybreaker.STATE_OPEN and self._clock() >= self._tried_from:
                self._circuit.half_open()
                return True
        raise Transient(self._service, f"it failed again and again, and is asked again within {self._reset_s:g} s")

    def _settle(self, failure: Transient | None, *, trial: bool) -> None:
        with self._lock:
            # The outcome of a call that began before the others failed says nothing new.
            if not trial and self._circuit.current_state != pybreaker.STATE_CLOSED:
                return
            if failure is None:
                self._circuit.call(_answered)
            else:
                self._count(failure)
            is_open = self._circuit.current_state == pybreaker.STATE_OPEN
            if is_open:
                self._tried_from = self._clock() + self._reset_s
        telemetry.BREAKER_OPEN.labels(self._name).set(is_open)
        if is_open and not trial:
            log.warning("breaker_opened", server=self._name, reason=str(failure), reset_s=self._reset_s)
        elif trial and not is_open:
            log.info("breaker_closed", server=self._name)

    def _count(self, failure: Transient) -> None:
        try:
            self._circuit.call(_failed, failure)
        except Transient:
            return


class Asking:
    """One call. It counts once, however it ends: also when its asker gives up before the server does."""

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self._lock = threading.Lock()
        self._trial: bool | None = None
        """None until the call is made, and again when its outcome is known."""

    def begin(self) -> None:
        """Raises Transient when the call must not be made."""
        self._trial = self._breaker._admit()

    def failed(self, failure: Transient) -> None:
        """The server is away. One that can't serve just one tenant has answered."""
        self._settle(None if isinstance(failure, TenantAway) else failure)

    def answered(self) -> None:
        """The server did what was asked, or said why not."""
        self._settle(None)

    def given_up(self, reason: Transient) -> None:
        """Nobody waits for it any more, which says nothing of the server; but others wait for what a trial says."""
        with self._lock:
            trial = self._trial
        if trial:
            self._settle(reason)

    def _settle(self, failure: Transient | None) -> None:
        with self._lock:
            trial, self._trial = self._trial, None
        if trial is not None:
            self._breaker._settle(failure, trial=trial)


def _answered() -> None:
    """What pybreaker is to take for a success."""


def _failed(failure: Transient) -> NoReturn:
    raise failure
