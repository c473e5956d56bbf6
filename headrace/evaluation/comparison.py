"""Whether a run is worse than an earlier one."""

from collections.abc import Iterator, Mapping

import msgspec

from headrace.evaluation.intervals import Interval, mean_interval
from headrace.evaluation.report import Measured, Report


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """How a measure of a setting has changed. `paired` is False where the values of the same questions were not at hand
    and the earlier mean's interval alone tells.
    """

    setting: str
    measure: str
    before: float
    after: float
    by: Interval
    paired: bool

    @property
    def fell(self) -> bool:
        """By more than chance explains: the whole interval is below nothing."""
        return self.by.high < 0

    @property
    def rose(self) -> bool:
        return self.by.low > 0


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """`missing` are settings and measures of the earlier run that this one has not: nothing can be said of them."""

    changes: list[Change]
    missing: list[str]

    @property
    def fell(self) -> list[Change]:
        return [change for change in self.changes if change.fell]


def compare(report: Report, baseline: Report) -> Compared:
    """Each measure of each setting that both have, by name."""
    settings = {one.setting.name: one for one in report.settings}
    changes: list[Change] = []
    missing: list[str] = []
    for earlier in baseline.settings:
        name = earlier.setting.name
        for measure, before in earlier.measures.items():
            after = settings[name].measures.get(measure) if name in settings else None
            if after is None:
                missing.append(f"{name} {measure}")
            else:
                changes.append(_change(name, measure, before, after))
    return Compared(changes=changes, missing=missing)


def difference(before: Mapping[str, float], after: Mapping[str, float]) -> Interval:
    """Paired by question; raises ValueError where no question is in both."""
    return mean_interval(list(_differences(before, after)))


def _change(setting: str, measure: str, before: Measured, after: Measured) -> Change:
    shared = before.values.keys() & after.values.keys()
    earlier, now = before.interval, after.interval
    if shared:
        return Change(
            setting=setting,
            measure=measure,
            before=sum(before.values[name] for name in shared) / len(shared),
            after=sum(after.values[name] for name in shared) / len(shared),
            by=difference(before.values, after.values),
            paired=True,
        )
    by = Interval(mean=now.mean - earlier.mean, low=now.mean - earlier.high, high=now.mean - earlier.low)
    return Change(setting=setting, measure=measure, before=earlier.mean, after=now.mean, by=by, paired=False)


def _differences(before: Mapping[str, float], after: Mapping[str, float]) -> Iterator[float]:
    return (after[name] - value for name, value in before.items() if name in after)
