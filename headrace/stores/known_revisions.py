"""Which revision of a document is live, as its manifest said when it was last read."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import NamedTuple

MOST = 50_000
"""Documents that are remembered, about 500 bytes each."""
SECONDS = 30.0
"""For so long. Under one `seq_no` a manifest says one thing, but in an index that somebody dropped and filled again the
numbers begin anew."""


class Known(NamedTuple):
    """`state` is the manifest's (seq_no, primary_term); `revision` the live one's id, None for none."""

    state: tuple[int | None, int | None]
    revision: str | None


class KnownRevisions:
    """To be held against the states that manifests have now. Safe to use from any thread.

    What was read first is forgotten first: a query looks up hundreds, so a look-up must cost no more than a dict's.
    """

    def __init__(
        self, *, most: int = MOST, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._known: dict[tuple[str, str], tuple[float, Known]] = {}
        self._lock = threading.Lock()

    def of(self, index: str, doc_ids: Iterable[str]) -> dict[str, Known]:
        """Those of these that are remembered."""
        now = self._clock()
        found: dict[str, Known] = {}
        for doc_id in doc_ids:
            noted = self._known.get((index, doc_id))
            if noted is not None and noted[0] > now:
                found[doc_id] = noted[1]
        return found

    def keep(self, index: str, known: Mapping[str, Known]) -> None:
        until = self._clock() + self._seconds
        with self._lock:
            for doc_id, one in known.items():
                self._known.pop((index, doc_id), None)  # So that it stands last.
                self._known[index, doc_id] = until, one
            for oldest in list(islice(self._known, max(0, len(self._known) - self._most))):
                del self._known[oldest]
