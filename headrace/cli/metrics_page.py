"""Workers' /metrics, as numbers: what counters grew by between two looks, and quantiles of what was observed meanwhile.

Counters are read as Prometheus reads them (https://prometheus.io/docs/prometheus/latest/querying/functions/): `rate`'s
rule for one that fell back, and `histogram_quantile`'s interpolation.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

STARTED = "process_start_time_seconds"


class Series(NamedTuple):
    """One line of a page. `labels` are in the order of their names."""

    name: str
    labels: tuple[tuple[str, str], ...]

    def label(self, name: str) -> str | None:
        return dict(self.labels).get(name)

    def fits(self, name: str, labels: Mapping[str, str]) -> bool:
        return self.name == name and labels.items() <= dict(self.labels).items()


@dataclass(frozen=True)
class Page:
    """The samples of one worker. `started_at` is Unix time; None where the page doesn't say."""

    samples: Mapping[Series, float]
    started_at: float | None = None

    def values(self, name: str, **labels: str) -> dict[Series, float]:
        return {series: value for series, value in self.samples.items() if series.fits(name, labels)}

    def total(self, name: str, **labels: str) -> float:
        return sum(self.values(name, **labels).values())

    def labels(self, name: str) -> set[str]:
        """Every value that a label has anywhere on the page."""
        return {value for series in self.samples if (value := series.label(name)) is not None}


def read_page(text: str, wanted: Collection[str]) -> Page:
    """The samples of these names, with suffixes such as `_total` and `_bucket`. Raises ValueError for what isn't in
    Prometheus' text format.
    """
    samples: dict[Series, float] = {}
    started_at = None
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == STARTED:
                started_at = sample.value
            elif sample.name in wanted:
                series = Series(sample.name, tuple(sorted(sample.labels.items())))
                # Of several workers behind one address, whatever sets them apart.
                samples[series] = sample.value
    return Page(samples, started_at)


class Look(NamedTuple):
    """A worker's page before and after."""

    before: Page
    after: Page


def look(before: Page | None, after: Page, *, before_at: float) -> Look | None:
    """A worker that started in between counts from its start. None where what it did since `before_at` (Unix time)
    can't be told: it ran by then, and its page wasn't read.
    """
    if before is not None and before.started_at == after.started_at:
        return Look(before, after)
    if before is not None or (after.started_at is not None and after.started_at >= before_at):
        return Look(Page({}), after)
    return None


def increases(looks: Iterable[Look], name: str, **labels: str) -> dict[Series, float]:
    """By how much each counter of this name grew, all workers together. One that fell back began again at 0."""
    grown: dict[Series, float] = {}
    for before, after in looks:
        for series, value in after.values(name, **labels).items():
            then = before.samples.get(series, 0.0)
            grown[series] = grown.get(series, 0.0) + (value - then if value >= then else value)
    return grown


def increase(looks: Iterable[Look], name: str, **labels: str) -> float:
    return sum(increases(looks, name, **labels).values())


def increase_by(looks: Iterable[Look], name: str, label: str) -> dict[str, float]:
    """The same by the values of one label, those that didn't grow left out."""
    grown: dict[str, float] = {}
    for series, value in increases(looks, name).items():
        of = series.label(label)
        if of is not None and value > 0:
            grown[of] = grown.get(of, 0.0) + value
    return grown


def buckets(looks: Iterable[Look], name: str, **labels: str) -> dict[float, float]:
    """Observations of a histogram that were at most each bound, all workers together."""
    counted: dict[float, float] = {}
    for series, value in increases(looks, f"{name}_bucket", **labels).items():
        bound = float(series.label("le") or "nan")
        counted[bound] = counted.get(bound, 0.0) + value
    return counted


def quantile(fraction: float, counted: Mapping[float, float]) -> float | None:
    """The value below which this fraction of the observations is, linear within its bucket; None without observations.

    As `histogram_quantile` has it: the first bucket begins at 0, and of the last one, which has no end, only where it
    begins is known.
    """
    bounds = sorted(counted)
    if len(bounds) < 2 or not math.isinf(bounds[-1]) or counted[bounds[-1]] <= 0:
        return None
    rank = fraction * counted[bounds[-1]]
    # Pages of several workers are not of one moment: a bucket may seem to hold less than the one before it.
    below, lower = 0.0, 0.0
    for bound in bounds:
        reached = max(below, counted[bound])
        if reached >= rank and reached > below:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (rank - below) / (reached - below)
        below, lower = reached, lower if math.isinf(bound) else bound
    return lower


def quantile_of(fraction: float, values: Collection[float]) -> float | None:
    """Of single values, linear between the two that it falls between; None without any."""
    ordered = sorted(values)
    if not ordered:
        return None
    place = fraction * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
