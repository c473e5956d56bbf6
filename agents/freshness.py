"""How long documents take from their record's timestamp until their version is live and their producer told.

Each version is counted once: when the event of the worker that made it live is confirmed, or not at all where that
worker died in between. Not counted is what is live already and comes again (a redelivery, a repair, the same record
under other settings), what has no `published` (it was backfilled, or replayed from the dead letters), and what another
generation makes live beside the one that tells.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from headrace import telemetry
from schemas import Key, Live, Receipt, Revision
from topics import Lane

UNTOLD = 10_000
"""Versions that became live and whose events are not confirmed: of batches that were never finished the oldest go."""


class _Published(NamedTuple):
    at_ms: int
    lane: Lane


class Freshness:
    """Of the versions that this worker makes live, while it is the one whose events producers see. From any thread."""

    def __init__(self, telling: Callable[[], bool] = lambda: True) -> None:
        self._telling = telling
        self._untold: dict[tuple[Key, Revision], _Published] = {}

    def becomes_live(self, key: Key, live: Live, receipts: Sequence[Receipt]) -> None:
        """This worker is about to make it live. `receipts` are those that came with it, of any version."""
        its = [receipt for receipt in receipts if receipt.revision == live.revision]
        at_ms = None if any(receipt.published is None for receipt in its) else its[0].published
        was_live = any(swept.revision.order == live.revision.order for swept in live.swept)
        if was_live or at_ms is None:
            return
        lane: Lane = "urgent" if any(receipt.urgent for receipt in its) else "bulk"
        self._untold[key, live.revision] = _Published(at_ms, lane)
        while len(self._untold) > UNTOLD:
            self._untold.pop(next(iter(self._untold)), None)

    def did_not(self, key: Key, live: Live) -> None:
        """Somebody else was first."""
        self._untold.pop((key, live.revision), None)

    def told(self, key: Key, revision: Revision) -> None:
        """Its event is confirmed."""
        published = self._untold.pop((key, revision), None)
        if published is not None and self._telling():
            telemetry.FRESHNESS.labels(published.lane).observe(max(0.0, time.time() - published.at_ms / 1000))
