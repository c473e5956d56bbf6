"""One reading for `headrace top`: Kafka's groups, the metrics of those workers that answer, and what was told of
documents lately.
"""

import http.client
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from headrace.cli.groups import GroupReader, Groups
from headrace.cli.kafka import QUIET, Tail, first_timestamps
from headrace.cli.local import is_local, worker_url
from headrace.cli.metrics_page import Page, read_page
from headrace.cli.readiness import metrics
from headrace.config import Settings
from headrace.errors import Transient
from schemas import DocumentEvent, decode
from topics import GROUPS, Lane
from topics.settings import KafkaSettings
from topics.table import CLOCK_AHEAD_MS, DAY_MS

LAST_S = 60.0
"""How far back freshness and latency go."""
QUIET_S = 0.3
"""When no event has come for so long, all have been read."""
EVENTS_WITHIN_S = 2.0
OLDEST_WITHIN_S = 2.0
METRICS = "/metrics"
OLDEST = "headrace_oldest_unprocessed_seconds"
SAMPLES = frozenset(
    {
        "headrace_answer_errors_total",
        "headrace_batch_messages_count",
        "headrace_batch_messages_sum",
        "headrace_chunks_total",
        "headrace_consumer_lag_messages",
        "headrace_dead_letters_total",
        "headrace_degraded_answers_total",
        "headrace_freshness_seconds_bucket",
        "headrace_in_hand_messages",
        OLDEST,
        "headrace_waiting",
        "search_latency_ms_bucket",
    }
)
"""What is kept of a page."""


class Told(NamedTuple):
    """An event of a version that went live: when (Unix time), and how many seconds after its document was sent."""

    at: float
    freshness_s: float


@dataclass(frozen=True, kw_only=True)
class Reading:
    """`at` is Unix time. `groups` is None while Kafka is away, and `away` then says why."""

    at: float
    groups: Groups | None = None
    away: str = ""
    pages: Mapping[str, Page] = field(default_factory=dict)
    """By address."""
    silent: Mapping[str, str] = field(default_factory=dict)
    """Why an address gave no page."""
    named: frozenset[str] = frozenset()
    """The addresses that somebody asked for by name."""
    told: Sequence[Told] | None = None
    """Of the last minute; None where it was not asked for."""
    oldest: Mapping[tuple[str, Lane], float] = field(default_factory=dict)
    """When the oldest message that isn't done was sent (Unix time), of stages and lanes whose workers don't tell it."""

    def pages_of(self, stage: str) -> dict[str, Page]:
        """The pages, by address, that tell of a stage."""
        return {url: page for url, page in self.pages.items() if stage in page.labels("stage")}


class Reader:
    """Keeps its connections. What is away is tried again with each reading."""

    def __init__(self, settings: Settings, urls: Collection[str] = (), *, always_events: bool = False) -> None:
        """The events are read where no metrics tell freshness, or `always_events`."""
        self._kafka = settings.kafka
        self._named = frozenset(urls)
        self.urls = list(dict.fromkeys([*local_urls(settings), *urls]))
        self._always_events = always_events
        self._groups: GroupReader | None = None
        self._events: Events | None = None
        self._kafka_answered = False

    def read(self) -> Reading:
        """Raises Transient if Kafka is away at the first reading, and Misconfigured at any."""
        at = time.time()
        with ThreadPoolExecutor(max_workers=max(1, len(self.urls))) as pool:
            asked = pool.map(_page, self.urls)
            groups, away = self._read_groups()
            answers = dict(zip(self.urls, asked, strict=True))
        pages = {url: answer for url, answer in answers.items() if isinstance(answer, Page)}
        silent = {url: answer for url, answer in answers.items() if isinstance(answer, str)}
        reading = Reading(at=at, groups=groups, away=away, pages=pages, silent=silent, named=self._named)
        if groups is None:
            return reading
        told = None
        if self._always_events or not reading.pages_of("commit"):
            told = self._read_events()
        elif self._events is not None:
            self._events.close()
            self._events = None
        return replace(reading, told=told, oldest=self._read_oldest(reading, groups))

    def _read_groups(self) -> tuple[Groups | None, str]:
        try:
            self._groups = self._groups or GroupReader(self._kafka)
            groups = self._groups.read()
        except Transient as exc:
            if self._groups is not None:
                self._groups.close()
                self._groups = None
            if not self._kafka_answered:
                raise
            return None, str(exc)
        self._kafka_answered = True
        return groups, ""

    def _read_oldest(self, reading: Reading, groups: Groups) -> dict[tuple[str, Lane], float]:
        """Where workers run they know it; of a stage without any, nobody else would tell for how long that is so."""
        untold = {
            (stage, lane): groups.unfinished(stage, lane)
            for stage in GROUPS
            for lane in groups.topics[stage]
            if not any(page.values(OLDEST, stage=stage, lane=lane) for page in reading.pages.values())
        }
        oldest: dict[tuple[str, Lane], float] = {}
        # The same topic may be at different places for different stages.
        for of, positions in untold.items():
            if not positions:
                continue
            try:
                sent = first_timestamps(self._kafka.confluent(), positions, within_s=OLDEST_WITHIN_S)
            except Transient:
                break
            if len(sent) == len(positions):
                # Without a record it is the mark of a transaction that is not done: there is nothing to do.
                oldest[of] = min((when / 1000 for when in sent.values() if when is not None), default=reading.at)
        return oldest

    def _read_events(self) -> Sequence[Told] | None:
        try:
            self._events = self._events or Events(self._kafka)
            return self._events.last()
        except Transient:
            self._events = None
            return None


class Events:
    """Versions that went live, as documents.events tells of them."""

    def __init__(self, kafka: KafkaSettings) -> None:
        since = time.time() - LAST_S
        self._told: deque[Told] = deque()
        self._tail = Tail(
            {**kafka.confluent(), **QUIET}, kafka.names.topic("documents.events"), since_ms=round(since * 1000)
        )

    def last(self) -> list[Told]:
        """Those of the last minute. Of very many at once, what can be read in two seconds; the next call goes on."""
        give_up = time.monotonic() + EVENTS_WITHIN_S
        last = time.monotonic()
        while time.monotonic() < min(give_up, last + QUIET_S):
            message = self._tail.poll(QUIET_S)
            if message is None:
                continue
            last = time.monotonic()
            value = message.value()
            told = told_of(message.timestamp()[1], value if isinstance(value, bytes) else b"")
            if told is not None:
                self._told.append(told)
        since = time.time() - LAST_S
        while self._told and self._told[0].at < since:
            self._told.popleft()
        return list(self._told)

    def close(self) -> None:
        self._tail.__exit__()


def told_of(at_ms: int, event: bytes) -> Told | None:
    """None for what says nothing of freshness: other events, and versions that aren't a record's time.

    A version is its record's time unless its producer named one; a named one that looks like a time of the last day is
    taken for it.
    """
    try:
        told = decode(event, DocumentEvent)
    except msgspec.DecodeError:
        return None
    if told.stage != "commit" or told.status not in ("indexed", "deleted") or told.version is None:
        return None
    age_ms = at_ms - told.version
    if not -CLOCK_AHEAD_MS <= age_ms <= DAY_MS:
        return None
    return Told(at_ms / 1000, max(0, age_ms) / 1000)


def local_urls(settings: Settings) -> list[str]:
    """Where the workers of the local stack answer; none where the settings name servers elsewhere: what listens on this
    machine may then be of another deployment.
    """
    if not is_local(settings) or settings.worker.port == 0:
        return []
    return [worker_url(settings, stage, METRICS) for stage in GROUPS]


def metrics_url(given: str) -> str:
    """A whole URL of `host:port` and the like. Raises ValueError for what can't be one."""
    url = given if "://" in given else f"http://{given}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError(f"{given!r} is no URL of a worker, such as http://127.0.0.1:9100/metrics")
    return url if parts.path not in ("", "/") else url.rstrip("/") + METRICS


def _page(url: str) -> Page | str:
    """The page, or why there is none."""
    try:
        return read_page(metrics(url), SAMPLES)
    except (OSError, http.client.HTTPException) as exc:
        return f"does not answer ({getattr(exc, 'reason', exc)})"
    except ValueError:
        return "answers, but not with Prometheus' metrics"
