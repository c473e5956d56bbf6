"""How far a new generation has come, and how long the rest will take. Pure: it is given looks, and asks nobody."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from topics.table import DOCUMENT_STAGES

WINDOW_S = 60.0
"""Rates are those of the last minute: a worker that loads its model, or waits for a server, is soon forgotten."""
LEAST_S = 3.0
"""A rate over less time says nothing."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One look, at a monotonic time in seconds: by stage, messages that are done and messages that wait."""

    at: float
    done: Mapping[str, int]
    waiting: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """`fraction` of the whole work of the stage that has the most left; `seconds` is None while nothing moves.
    `slowest` is the stage that everything waits for.
    """

    documents: int
    of: int
    fraction: float
    seconds: float | None
    slowest: str
    waiting: int


@dataclass
class Filling:
    """What was seen lately."""

    _seen: deque[Seen] = field(default_factory=deque)
    moved_at: float | None = None
    """When any stage last finished something."""

    def add(self, seen: Seen) -> Estimate:
        if self.moved_at is None or (self._seen and seen.done != self._seen[-1].done):
            self.moved_at = seen.at
        self._seen.append(seen)
        while len(self._seen) > 2 and self._seen[1].at <= seen.at - WINDOW_S:
            self._seen.popleft()
        return self._estimate(seen)

    def _estimate(self, now: Seen) -> Estimate:
        first, left = DOCUMENT_STAGES[0], _left(now)
        rates = _rates(self._seen[0], now)
        times = {stage: messages / rates[stage] if rates[stage] else None for stage, messages in left.items()}
        # The one that stands still is the one that is waited for, if it has anything to do.
        slowest = max(left, key=lambda stage: (left[stage] > 0, _longest(times[stage]), left[stage]))
        shares = [now.done[stage] / (now.done[stage] + messages) for stage, messages in left.items() if messages]
        return Estimate(
            documents=now.done[first],
            of=now.done[first] + now.waiting[first],
            fraction=min(shares, default=1.0),
            seconds=0.0 if not any(left.values()) else times[slowest],
            slowest=slowest,
            waiting=sum(now.waiting.values()),
        )


def _left(now: Seen) -> dict[str, float]:
    """Of each stage: what waits for it, and what the documents that still wait will make, as those before them did."""
    first = DOCUMENT_STAGES[0]
    documents = now.done[first]
    left = {}
    for stage in DOCUMENT_STAGES:
        made = (now.done[stage] + now.waiting[stage]) / documents if documents else 1.0
        left[stage] = now.waiting[stage] + (0.0 if stage == first else made * now.waiting[first])
    return left


def _rates(before: Seen, now: Seen) -> dict[str, float]:
    """Messages a second."""
    seconds = now.at - before.at
    if seconds < LEAST_S:
        return dict.fromkeys(now.done, 0.0)
    return {stage: max(0, done - before.done.get(stage, 0)) / seconds for stage, done in now.done.items()}


def _longest(seconds: float | None) -> float:
    return float("inf") if seconds is None else seconds


def duration(seconds: float) -> str:
    """`12 s`, `3 min`, `2 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
