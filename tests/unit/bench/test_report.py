"""What the benchmarks say of what they measured."""

from pathlib import Path

import msgspec
import pytest

from bench.report import Plot, Report, Table, Target, markdown, percentile, save, spread


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.1, 1), (0.11, 2), (0.5, 5), (0.9, 9), (0.99, 10), (1.0, 10)]
)
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(share: float, expected: int) -> None:
    assert percentile([3, 1, 2, 10, 9, 8, 7, 6, 5, 4], share) == expected


def test_a_spread_is_the_median_between_the_lowest_and_the_highest() -> None:
    assert spread([0.9, 0.7, 0.8]).text() == "0.80 (0.70-0.90)"
    assert spread([1234.5]).text(0) == "1,234"


@pytest.mark.parametrize(
    ("bound", "measured", "met"),
    [("at least", 0.9, True), ("at least", 0.89, False), ("at most", 0.9, True), ("at most", 0.91, False)],
)
def test_a_target_is_met_at_its_bound_and_not_beyond(bound: str, measured: float, met: bool) -> None:
    target = msgspec.convert({"what": "x", "bound": bound, "wanted": 0.9, "measured": measured}, Target)
    assert target.met is met


def test_a_report_is_kept_as_figures_and_plots_and_shown_as_tables(tmp_path: Path) -> None:
    report = Report(
        name="one",
        what="What it is.",
        tables=[Table("Rates", ["side", "per s"], [["here", "12"]])],
        figures={"rounds": [1.5]},
        targets=[Target("here", "at least", 10.0, 12.0)],
        plots=[Plot("Rates", "x", "y", {"here": [(1.0, 2.0)]})],
        command="python -m bench.one",
    )
    save(report, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.json", "one.png"]
    assert msgspec.json.decode((tmp_path / "one.json").read_bytes(), type=Report) == report
    shown = markdown(report)
    assert "| side | per s |\n| --- | ---: |\n| here | 12 |" in shown
    assert "| here | at least 10 | 12.00 | yes |" in shown
    assert "(results/one.png)" in shown
