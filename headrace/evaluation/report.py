"""What an evaluation found, as it is saved."""

from collections.abc import Mapping

import msgspec

from headrace.evaluation.intervals import Interval, mean_interval
from headrace.evaluation.relevance import Relevance
from headrace.evaluation.settings import RetrievalSetting


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A measure's mean over the questions. `values` by the question's id are what a comparison is paired by."""

    interval: Interval
    questions: int
    values: dict[str, float] = {}


class SettingReport(msgspec.Struct, frozen=True, kw_only=True):
    """`seconds` is what asking took."""

    setting: RetrievalSetting
    measures: dict[str, Measured]
    seconds: float = 0.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`documents` names what was searched: a data set's digest, or the tenant. `relevance` is there where unanswerable
    questions were given.
    """

    name: str
    documents: str
    encoder: str
    chunking: str
    questions: int
    settings: list[SettingReport]
    relevance: Relevance | None = None


def measured(values: Mapping[str, float]) -> Measured:
    """Raises ValueError where there are none."""
    return Measured(interval=mean_interval(list(values.values())), questions=len(values), values=dict(values))
