"""What a worker may do now, as the record of `documents.generations` says: begin a batch, tell, answer.

It goes by what it read of the record a moment ago; what is older than `Generations.lease_s` it does not go by, and
waits. Waiting here is no standing still.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import structlog

from agents.stage import Waiting
from headrace import telemetry
from headrace.serving import GenerationCorpora
from schemas.generations import Generations
from topics import Names
from topics.table import UNTOLD

log = structlog.get_logger("headrace.generations")

POLL_S = 0.05
SERVICE = "kafka"
COMMAND = "headrace reindex"
RATE = "generation.rate"


class Watch(Protocol):
    """Keeps what the record says (`topics.generations.GenerationWatch`)."""

    @property
    def away(self) -> tuple[str, float] | None: ...
    def start(self) -> Generations: ...
    def fresh(self) -> Generations | None: ...
    def follow(self, listener: Callable[[Generations], None]) -> None: ...


class Standing(Protocol):
    """What a worker may do now."""

    def start(self) -> None:
        """Read the record for the first time. Raises Transient when nobody answers, and Misconfigured when the worker
        can do nothing with what it says.
        """

    @property
    def waiting(self) -> Waiting | None:
        """What keeps the worker waiting here, if anything does. From any thread."""

    async def let_in(self, messages: int) -> None:
        """Return when a batch of so many messages may be begun."""

    async def topic(self, name: str) -> str:
        """Where a record for this topic of the table goes."""


class DocumentStanding:
    """A worker of a document stage: `commit` begins nothing while its generation is held, `chunk` takes no more than
    `rate` documents a second while it isn't live, and what a generation doesn't tell stays in its own topics.
    """

    def __init__(self, stage: str, names: Names, watch: Watch, *, rate: float = 0.0) -> None:
        self._stage = stage
        self._names = names
        self._generation = names.generation
        self._watch = watch
        self._rate = rate
        self._next_batch = 0.0
        self._reasons: list[Waiting] = []

    def start(self) -> None:
        self._watch.start()

    @property
    def waiting(self) -> Waiting | None:
        return next(iter(tuple(self._reasons)), None)

    async def let_in(self, messages: int) -> None:
        if self._stage == "commit":
            await self._until_not_held()
        elif self._stage == "chunk" and self._rate:
            await self._in_turn(messages)

    async def topic(self, name: str) -> str:
        if name not in UNTOLD:
            return self._names.topic(name)
        telling = (await self._record()).telling
        return self._names.topic(name) if telling == self._generation else self._names.untold(name)

    async def _record(self) -> Generations:
        record = self._watch.fresh()
        if record is not None:
            return record
        with self._noted(_unread(self._watch)):
            while True:
                await asyncio.sleep(POLL_S)
                if (record := self._watch.fresh()) is not None:
                    return record

    async def _until_not_held(self) -> None:
        if self._generation not in (await self._record()).held:
            return
        with self._noted(Waiting(COMMAND, f"{_said(self._generation)} is held until another one is live", _now())):
            while True:
                await asyncio.sleep(POLL_S)
                if self._generation not in (await self._record()).held:
                    return

    async def _in_turn(self, messages: int) -> None:
        """Spreads batches so that no more than the rate is begun. Once live, there is no rate."""
        now = _now()
        turn = max(now, self._next_batch)
        self._next_batch = turn + messages / self._rate
        if turn == now or (await self._record()).live == self._generation:
            return
        rated = f"{_said(self._generation)} isn't live and takes {self._rate:g} documents a second"
        with self._noted(Waiting(RATE, rated, now)):
            while (left_s := turn - _now()) > 0:
                await asyncio.sleep(min(POLL_S, left_s))
                if (await self._record()).live == self._generation:
                    return

    @contextmanager
    def _noted(self, reason: Waiting) -> Iterator[None]:
        self._reasons.append(reason)
        try:
            if reason.service == RATE:  # No server is away, and it goes on for as long as the rate does.
                yield
                return
            gauge = telemetry.WAITING.labels(self._stage, reason.service)
            gauge.set(1)
            log.warning("waiting_for_service", stage=self._stage, server=reason.service, reason=reason.reason)
            try:
                yield
            finally:
                gauge.set(sum(other.service == reason.service for other in self._reasons) > 1)
                log.info("waiting_ended", stage=self._stage, server=reason.service)
        finally:
            self._reasons.remove(reason)


class QueryStanding:
    """A query worker: it is of no generation, and answers from the one that is live."""

    def __init__(self, names: Names, watch: Watch, corpora: GenerationCorpora) -> None:
        self._names = names
        self._watch = watch
        self._corpora = corpora

    def start(self) -> None:
        self._corpora.load_live(self._watch.start())
        # It begins with what was read while the model was loaded.
        self._watch.follow(self._corpora.follow)

    @property
    def waiting(self) -> Waiting | None:
        record = self._watch.fresh()
        if record is None:
            return _unread(self._watch)
        missing = self._corpora.missing(record)
        return None if missing is None else Waiting(_said(record.live), *missing)

    async def let_in(self, messages: int) -> None:
        pass

    async def topic(self, name: str) -> str:
        return self._names.topic(name)


def _unread(watch: Watch) -> Waiting:
    reason, since = watch.away or ("no answer yet", _now())
    return Waiting(SERVICE, f"documents.generations was not read in time: {reason}", since)


def _said(generation: str) -> str:
    return f"generation {generation or 1}"


_now = time.monotonic
