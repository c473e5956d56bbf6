from collections.abc import Mapping

import msgspec
import numpy as np
import pytest

from headrace.evaluation import (
    PREDEFINED,
    Measured,
    Report,
    RetrievalSetting,
    SettingReport,
    compare,
    mean_interval,
    measured,
    parse_setting,
)
from schemas import Fusion


def report(values: Mapping[str, float], *, name: str = "convex") -> Report:
    setting = SettingReport(setting=RetrievalSetting(name=name), measures={"nDCG@10": measured(values)})
    return Report(name="x", documents="d", encoder="e", chunking="c", questions=len(values), settings=[setting])


def scores(shift: float = 0.0, questions: int = 100) -> dict[str, float]:
    random = np.random.default_rng(7)
    return {str(number): float(np.clip(random.random() + shift, 0, 1)) for number in range(questions)}


def test_the_interval_has_the_mean_and_is_always_the_same() -> None:
    values = list(scores().values())
    interval = mean_interval(values)
    assert interval == mean_interval(values)
    assert interval.low < interval.mean < interval.high
    assert interval.mean == pytest.approx(np.mean(values))
    # The textbook's: 1.96 standard errors to each side.
    error = np.std(values) / np.sqrt(len(values))
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_no_values_have_no_interval() -> None:
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_a_small_loss_on_every_question_is_a_fall_though_the_intervals_overlap() -> None:
    before, after = report(scores()), report(scores(shift=-0.03))
    [change] = compare(after, before).changes
    assert change.paired
    assert change.fell
    assert after.settings[0].measures["nDCG@10"].interval.high > before.settings[0].measures["nDCG@10"].interval.low


def test_as_large_a_loss_by_chance_is_none() -> None:
    lucky = dict(zip(scores(), list(reversed(scores().values())), strict=True))
    lucky["0"] = 0.0
    [change] = compare(report(lucky), report(scores())).changes
    assert change.by.mean < 0
    assert not change.fell


def test_a_gain_is_no_fall() -> None:
    [change] = compare(report(scores(shift=0.05)), report(scores())).changes
    assert change.rose
    assert not change.fell


def test_only_questions_of_both_runs_are_compared() -> None:
    before = scores()
    [change] = compare(report({**before, "new": 0.0}), report({**before, "old": 1.0})).changes
    assert change.by.mean == 0
    assert change.before == change.after == pytest.approx(np.mean(list(before.values())))


@pytest.mark.parametrize(("shift", "fell"), [(-0.02, False), (-0.3, True)])
def test_without_the_questions_values_the_earlier_interval_decides(shift: float, fell: bool) -> None:
    before = report(scores())
    bare = Measured(interval=before.settings[0].measures["nDCG@10"].interval, questions=100)
    told = msgspec.structs.replace(
        before, settings=[msgspec.structs.replace(before.settings[0], measures={"nDCG@10": bare})]
    )
    [change] = compare(report(scores(shift=shift)), told).changes
    assert not change.paired
    assert change.fell is fell


def test_what_only_the_baseline_has_is_named() -> None:
    compared = compare(report(scores(), name="rrf"), report(scores()))
    assert (compared.changes, compared.missing) == ([], ["convex nDCG@10"])


def test_a_saved_run_is_read_as_it_was() -> None:
    run = report(scores())
    assert msgspec.json.decode(msgspec.json.encode(run), type=Report) == run


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("zscore", RetrievalSetting(name="zscore", fusion=Fusion(method="zscore", alpha=0.5))),
        ("rrf+rerank", RetrievalSetting(name="rrf+rerank", fusion=Fusion(method="rrf"), rerank=True)),
        ("mine=zscore:0.4", RetrievalSetting(name="mine", fusion=Fusion(method="zscore", alpha=0.4))),
        ("mine=rrf", RetrievalSetting(name="mine", fusion=Fusion(method="rrf"))),
        ("a=convex:1+rerank", RetrievalSetting(name="a", fusion=Fusion(method="convex", alpha=1), rerank=True)),
    ],
)
def test_a_setting_is_a_known_name_or_says_what_it_is(given: str, expected: RetrievalSetting) -> None:
    assert parse_setting(given) == expected


@pytest.mark.parametrize("given", ["nothing", "a=best", "a=convex:2", "a=convex:much", "a=convex:"])
def test_what_is_no_setting_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match=given.split("=", maxsplit=1)[0]):
        parse_setting(given)


def test_the_deployments_own_way_is_left_to_it() -> None:
    default = PREDEFINED[-1]
    assert (default.name, default.fusion, default.rerank) == ("default", None, None)
