"""What `headrace top` shows, made of readings: pure, so what it says of them can be tested."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Literal, NamedTuple

import msgspec

from headrace.cli.metrics_page import Look, buckets, increase, increase_by, look, quantile, quantile_of
from headrace.cli.top_reading import LAST_S, OLDEST, Reading
from topics import GROUPS, LANES, Lane

CHUNK_STAGES = ("chunk", "embed", "upsert-milvus", "upsert-opensearch")
"""Those that send chunks on, or receipts for them."""
FROM_METRICS = ("chunks/s", "batch", "in hand", "errors/s", "waits for")
FROM_KAFKA = ("lag", "oldest", "msgs/s", "workers")
RATES = ("msgs/s", "chunks/s", "batch", "errors/s")


class StageRow(msgspec.Struct, frozen=True, kw_only=True):
    """One stage. What is null is unknown, and `unknown` says why; or the stage has no such thing: chunks, batches.

    `workers` are the members of its consumer group, `answering` those of them whose metrics were read.
    """

    stage: str
    workers: int | None
    rebalancing: bool
    answering: int
    lag: dict[Lane, int] | None
    messages_per_s: float | None
    chunks_per_s: float | None
    batch_messages: float | None
    in_hand: int | None
    oldest_s: dict[Lane, float] | None
    """Of each lane, the age of the oldest message that is not done; 0 without lag."""
    errors_per_s: float | None
    """Dead letters, and of `query` the answers that are an error as well."""
    waits_for: list[str] | None


class Freshness(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from a document's record to its version being live. From events the lane isn't known."""

    source: Literal["metrics", "events"]
    lane: Lane | None
    documents: int
    p50_s: float
    p99_s: float


class Questions(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds from taking a question to its reply. `degraded_per_s` is by what the answers did without, and
    `errors_per_s` by code.
    """

    per_s: float | None
    p50_ms: float | None
    p99_ms: float | None
    degraded_per_s: dict[str, float] | None
    errors_per_s: dict[str, float] | None


class Unknown(msgspec.Struct, frozen=True, kw_only=True):
    """Columns that are empty, or tell of a part alone, and the reason."""

    columns: list[str]
    stages: list[str]
    why: str


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Rates are over the last `over_s` seconds, null in the first reading; freshness and latency over `recent_s`."""

    at: datetime
    over_s: float | None
    recent_s: float
    stages: list[StageRow]
    freshness: list[Freshness]
    questions: Questions
    dead_letters_per_s: float | None
    """As the topic of dead letters grows: of all workers, whether their metrics are read or not."""
    unknown: list[Unknown]


class _Interval(NamedTuple):
    """Two readings, and the workers whose counters can be told apart between them."""

    before: Reading
    after: Reading
    looks: Mapping[str, Look]

    @property
    def seconds(self) -> float:
        return max(1e-3, self.after.at - self.before.at)


def view(readings: Sequence[Reading]) -> View:
    """The last reading, with rates since the one before it and quantiles over them all."""
    now = readings[-1]
    intervals = [_interval(before, after) for before, after in pairwise(readings)]
    last = intervals[-1] if intervals else None
    stages = [_row(stage, now, last) for stage in GROUPS]
    return View(
        at=datetime.fromtimestamp(now.at, UTC),
        over_s=last and last.seconds,
        recent_s=now.at - readings[0].at,
        stages=stages,
        freshness=_freshness(intervals, now),
        questions=_questions(intervals, next(row for row in stages if row.stage == "query")),
        dead_letters_per_s=_dead_letters(last),
        unknown=_unknown(now, stages, first=last is None),
    )


def recent(readings: Iterable[Reading], now: float) -> list[Reading]:
    """Those of the last minute, and the one before them, from which it is counted."""
    ordered = list(readings)
    old = [reading for reading in ordered if reading.at < now - LAST_S]
    return old[-1:] + [reading for reading in ordered if reading.at >= now - LAST_S]


def _interval(before: Reading, after: Reading) -> _Interval:
    looks = {url: look(before.pages.get(url), page, before_at=before.at) for url, page in after.pages.items()}
    return _Interval(before, after, {url: one for url, one in looks.items() if one is not None})


def _row(stage: str, now: Reading, last: _Interval | None) -> StageRow:
    group = now.groups.groups[stage] if now.groups is not None else None
    lag = now.groups.lag(stage) if now.groups is not None else None
    pages = now.pages_of(stage)
    looks = [last.looks[url] for url in pages if url in last.looks] if last is not None else []
    workers = group.workers if group is not None else None
    # A stage without workers has nothing in hand and does nothing: that is known without asking anybody.
    idle = workers == 0 and not pages
    return StageRow(
        stage=stage,
        workers=workers,
        rebalancing=group is not None and group.rebalancing,
        answering=len(pages),
        lag=lag,
        messages_per_s=_messages(stage, last),
        chunks_per_s=_chunks(stage, looks, last, idle=idle),
        batch_messages=_batch(stage, looks),
        in_hand=round(sum(page.total("headrace_in_hand_messages", stage=stage) for page in pages.values()))
        if pages or idle
        else None,
        oldest_s=_oldest(stage, now, lag),
        errors_per_s=_errors(stage, looks, last, idle=idle),
        waits_for=sorted(
            {
                series.label("service") or ""
                for page in pages.values()
                for series, waits in page.values("headrace_waiting", stage=stage).items()
                if waits
            }
        )
        if pages or idle
        else None,
    )


def _messages(stage: str, last: _Interval | None) -> float | None:
    if last is None or last.before.groups is None or last.after.groups is None:
        return None
    return last.after.groups.done_since(last.before.groups, stage) / last.seconds


def _chunks(stage: str, looks: Sequence[Look], last: _Interval | None, *, idle: bool) -> float | None:
    if stage not in CHUNK_STAGES or last is None or not (looks or idle):
        return None
    return increase(looks, "headrace_chunks_total", stage=stage) / last.seconds


def _batch(stage: str, looks: Sequence[Look]) -> float | None:
    batches = increase(looks, "headrace_batch_messages_count", stage=stage)
    return increase(looks, "headrace_batch_messages_sum", stage=stage) / batches if batches else None


def _errors(stage: str, looks: Sequence[Look], last: _Interval | None, *, idle: bool) -> float | None:
    if last is None or not (looks or idle):
        return None
    errors = increase(looks, "headrace_dead_letters_total", stage=stage)
    if stage == "query":
        errors += increase(looks, "headrace_answer_errors_total")
    return errors / last.seconds


def _oldest(stage: str, now: Reading, lag: Mapping[Lane, int] | None) -> dict[Lane, float] | None:
    ages: dict[Lane, float] = {}
    for lane in LANES:
        if lag is not None and lag.get(lane) == 0:
            ages[lane] = 0.0
            continue
        told = [age for page in now.pages.values() for age in page.values(OLDEST, stage=stage, lane=lane).values()]
        if told:
            ages[lane] = max(told)
        elif (stage, lane) in now.oldest:
            ages[lane] = max(0.0, now.at - now.oldest[stage, lane])
    return ages or None


def _freshness(intervals: Sequence[_Interval], now: Reading) -> list[Freshness]:
    by_lane = _from_metrics(intervals)
    if by_lane:
        return by_lane
    ages = [told.freshness_s for told in now.told or ()]
    p50, p99 = quantile_of(0.5, ages), quantile_of(0.99, ages)
    if p50 is None or p99 is None:
        return []
    return [Freshness(source="events", lane=None, documents=len(ages), p50_s=p50, p99_s=p99)]


def _from_metrics(intervals: Sequence[_Interval]) -> list[Freshness]:
    found = []
    for lane in LANES:
        counted = _observed(intervals, "headrace_freshness_seconds", lane=lane)
        p50, p99 = quantile(0.5, counted), quantile(0.99, counted)
        if p50 is not None and p99 is not None:
            documents = round(max(counted.values()))
            found.append(Freshness(source="metrics", lane=lane, documents=documents, p50_s=p50, p99_s=p99))
    return found


def _questions(intervals: Sequence[_Interval], query: StageRow) -> Questions:
    last = intervals[-1] if intervals else None
    counted = _observed(intervals, "search_latency_ms")
    told = last is not None and query.errors_per_s is not None
    looks = list(last.looks.values()) if last is not None else []
    per_s = 1 / last.seconds if last is not None else 0.0
    degraded = increase_by(looks, "headrace_degraded_answers_total", "part")
    errors = increase_by(looks, "headrace_answer_errors_total", "code")
    return Questions(
        per_s=query.messages_per_s,
        p50_ms=quantile(0.5, counted),
        p99_ms=quantile(0.99, counted),
        degraded_per_s={without: count * per_s for without, count in degraded.items()} if told else None,
        errors_per_s={code: count * per_s for code, count in errors.items()} if told else None,
    )


def _observed(intervals: Iterable[_Interval], name: str, **labels: str) -> dict[float, float]:
    """A histogram's observations over all intervals: a worker that was restarted in one of them counts on."""
    counted: dict[float, float] = {}
    for interval in intervals:
        for bound, count in buckets(interval.looks.values(), name, **labels).items():
            counted[bound] = counted.get(bound, 0.0) + count
    return counted


def _dead_letters(last: _Interval | None) -> float | None:
    if last is None or last.before.groups is None or last.after.groups is None:
        return None
    return max(0, last.after.groups.dead - last.before.groups.dead) / last.seconds


def _unknown(now: Reading, stages: Sequence[StageRow], *, first: bool) -> list[Unknown]:
    found = []
    if now.groups is None:
        found.append(Unknown(columns=list(FROM_KAFKA), stages=list(GROUPS), why=now.away))
    silent = [row.stage for row in stages if not row.answering and row.workers != 0]
    if silent:
        found.append(Unknown(columns=list(FROM_METRICS), stages=silent, why=_why_silent(now)))
    else:
        found += [
            Unknown(columns=list(FROM_METRICS), stages=[], why=f"{_address(url)} {why}")
            for url, why in now.silent.items()
            if url in now.named
        ]
    for row in stages:
        if row.workers is not None and 0 < row.answering < row.workers:
            why = f"the metrics are those of {row.answering} of its {row.workers} workers"
            found.append(Unknown(columns=list(FROM_METRICS), stages=[row.stage], why=why))
    ageless = [row.stage for row in stages if row.lag is not None and set(row.lag) - set(row.oldest_s or ())]
    if ageless:
        found.append(Unknown(columns=["oldest"], stages=ageless, why="not read from Kafka in time"))
    if first:
        found.append(Unknown(columns=list(RATES), stages=list(GROUPS), why="rates need a second reading"))
    return found


def _why_silent(now: Reading) -> str:
    if not now.pages and not now.silent:
        return "the settings name servers elsewhere, so no worker was asked for its metrics; --metrics URL names them"
    told = [f"{_address(url)} {why}" for url, why in now.silent.items()]
    more = f", and {len(told) - 1} more" if len(told) > 1 else ""
    if not told:
        return "no page names them; --metrics URL adds workers"
    return f"{told[0]}{more}; --metrics URL names workers elsewhere"


def _address(url: str) -> str:
    return url.partition("://")[2].removesuffix("/metrics")
