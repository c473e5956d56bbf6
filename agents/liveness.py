"""Ends a worker that stands still, whatever the reason, so that whoever started it starts it again.

It watches from a thread of its own and asks the brokers over a connection of its own: what it watches may be just what
no longer works.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any

import structlog
from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]
from faust.types import TP

from headrace import telemetry
from headrace.errors import Misconfigured, Transient
from topics.reaching import check_token, no_answer, until_let_in_again

log = structlog.get_logger("headrace.liveness")

STUCK_EXIT_CODE = 5
STOP_GRACE_S = 10.0
"""On top of the time to drain: for the last commit and for leaving the group."""
TICK_S = 1.0
ASK_EVERY_S = 10.0
ANSWER_TIMEOUT_S = 5.0
LOCKED_OUT_S = 60.0
"""On top of the time after which a worker counts as stuck: how long this thread may not have run at all."""


class Standstill:
    """For how long each thing that should move has been where it is."""

    def __init__(self) -> None:
        self._still: dict[str, tuple[Hashable, float]] = {}

    def observe(self, should_move: Mapping[str, Hashable], passed_s: float) -> Mapping[str, float]:
        """Seconds of standing still, of each thing that should move now. `should_move` says where each of them is, and
        `passed_s` for how long this process has run since the last observation: a frozen one has missed nothing.
        """
        self._still = {
            thing: (place, self._still[thing][1] + passed_s if self._still.get(thing, ())[:1] == (place,) else 0.0)
            for thing, place in should_move.items()
        }
        return {thing: still_s for thing, (_, still_s) in self._still.items()}


class Brokers:
    """How far partitions go, as the brokers say, without the messages of transactions that are still open."""

    def __init__(self, kafka: dict[str, Any]) -> None:
        self._kafka = kafka | {"log_level": 0}
        self._admin: AdminClient | None = None

    def ends(self, partitions: Collection[TP]) -> dict[TP, int]:
        """Raises Transient when no broker answers, and when one refuses: this worker was let in before, and waits."""
        try:
            if self._admin is None:
                check_token(self._kafka)
                self._admin = AdminClient(self._kafka)
            if not partitions:
                self._admin.list_topics(timeout=ANSWER_TIMEOUT_S)
                return {}
            wanted = {TopicPartition(tp.topic, tp.partition): OffsetSpec.latest() for tp in partitions}  # type: ignore[no-untyped-call]
            answers = self._admin.list_offsets(
                wanted, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=ANSWER_TIMEOUT_S
            )
            ends = {TP(tp.topic, tp.partition): answer.result().offset for tp, answer in answers.items()}
        except KafkaException as exc:
            # After a broker was frozen the same client went on with what it knew of leaders before.
            self._admin = None
            raise until_let_in_again(no_answer(self._kafka, exc.args[0])) from exc
        except Misconfigured as exc:
            raise until_let_in_again(exc) from exc
        # librdkafka tells of a leader that didn't answer in time by offsets that no partition has, and by no error.
        if min(ends.values()) < 0:
            raise Transient("kafka", f"the leaders of partitions did not answer within {ANSWER_TIMEOUT_S:g} s")
        return ends


class Watchdog:
    """Watches a worker, and ends its process when it stands still or takes too long to stop.

    `should_move` says what should move and where it is, in words that complete "stuck: ..."; it is called in a thread.
    `ask` is called about every ten seconds, and asks the brokers; it raises Transient where they don't answer, and
    while they don't, nothing counts as standing still.
    """

    def __init__(
        self,
        stage: str,
        *,
        stuck_after_s: float,
        stop_within_s: float,
        should_move: Callable[[], Mapping[str, Hashable]],
        ask: Callable[[], None],
    ) -> None:
        self.brokers_away: tuple[str, float] | None = None
        """Why no broker can be asked, and since when (monotonic seconds)."""
        self._stage = stage
        self._stuck_after_s = stuck_after_s
        self._stop_within_s = stop_within_s
        self._should_move = should_move
        self._ask = ask
        self._standstill = Standstill()
        self._longest = ("", 0.0)
        self._stop_since: float | None = None

    def start(self) -> None:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop_is_asked(self) -> None:
        """From now on the process has so long to end. May be called from a signal handler."""
        if self._stop_since is None:
            self._stop_since = time.monotonic()

    @property
    def stopping(self) -> bool:
        return self._stop_since is not None

    def stuck(self) -> str | None:
        """Why this process should be replaced, or None."""
        thing, still_s = self._longest
        return f"{thing} for {still_s:.0f} s" if still_s > self._stuck_after_s else None

    def _watch(self) -> None:
        asked = time.monotonic()
        tick_s = min(TICK_S, self._stuck_after_s / 4)
        while True:
            # Where a call holds the interpreter's lock for good no thread of Python runs: this one needs none.
            faulthandler.dump_traceback_later(self._stuck_after_s + LOCKED_OUT_S, exit=True)
            time.sleep(tick_s)
            now = time.monotonic()
            if self._stop_since is not None:
                if now - self._stop_since > self._stop_within_s:
                    log.warning("stop_too_slow", stage=self._stage, limit_s=self._stop_within_s)
                    self._end(0)
                continue
            if now - asked > min(ASK_EVERY_S, self._stuck_after_s / 4):
                self._ask_the_brokers()
                asked = time.monotonic()
            # Not by the clock, which goes on while the process is frozen.
            self._look(tick_s)

    def _look(self, passed_s: float) -> None:
        should_move = {} if self.brokers_away else self._should_move()
        still = self._standstill.observe(should_move, passed_s)
        self._longest = max(still.items(), key=lambda thing: thing[1], default=("", 0.0))
        telemetry.STANDSTILL.labels(self._stage).set(self._longest[1])
        if (reason := self.stuck()) is not None:
            log.error("worker_stuck", stage=self._stage, reason=reason)
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
            self._end(STUCK_EXIT_CODE)

    def _ask_the_brokers(self) -> None:
        try:
            self._ask()
        except Transient as exc:
            if self.brokers_away is None:
                self.brokers_away = (str(exc), time.monotonic())
                telemetry.WAITING.labels(self._stage, exc.service).set(1)
                log.warning("waiting_for_service", stage=self._stage, server=exc.service, reason=str(exc))
            return
        if self.brokers_away is not None:
            self.brokers_away = None
            telemetry.WAITING.labels(self._stage, "kafka").set(0)
            log.info("waiting_ended", stage=self._stage, server="kafka")

    def _end(self, code: int) -> None:
        log.info("worker_stopped", stage=self._stage, exit_code=code)
        sys.stderr.flush()
        os._exit(code)
