"""docs/capacity.md, docs/kubernetes.md, k8s/ and what was measured say the same."""

import msgspec
import pytest

from bench import capacity, overlays
from bench.keda import scaled_objects
from bench.overlays import K8S, Objects
from tests.tables import number, pods_of_lags, table
from topics import GROUPS


@pytest.fixture(scope="module")
def base() -> Objects:
    if overlays.kustomize() is None:
        pytest.skip("no kustomize, kubectl or Go here")
    objects, _ = overlays.built(K8S / "base")
    return objects


@pytest.fixture(scope="module")
def measured(base: Objects) -> dict[str, float]:
    """Messages a second of a pod, by stage, of the kept figures."""
    kept = {name: found for name in capacity.KEPT if (found := capacity.kept_figures(name)) is not None}
    assert kept.keys() == set(capacity.KEPT)
    figures = capacity.kept_figures(capacity.NAME)
    assert figures is not None
    cost = msgspec.convert(figures["cost"], capacity.Cost, strict=False)
    return capacity.pod_rates(cost, kept, base)


def test_capacity_says_of_each_stage_what_was_measured_of_its_pod(measured: dict[str, float]) -> None:
    _, *rows = table("capacity.md", "What a pod clears, of messages with")
    assert {row[0]: number(row[2]) for row in rows} == {stage: round(rate) for stage, rate in measured.items()}
    assert [row[0] for row in rows] == [*GROUPS]


@pytest.mark.parametrize("stage", GROUPS)
def test_a_threshold_counts_with_what_was_measured_rounded_down(stage: str, measured: dict[str, float]) -> None:
    """By less than a third, and a little more than was measured is within what two measurements differ by."""
    _, *rows = table("kubernetes.md", "## Thresholds")
    (told,) = [float(rate) for name, rate, *_ in rows if name == stage]
    assert measured[stage] * 2 / 3 < told < measured[stage] * 1.1


def test_capacity_tells_the_pods_of_a_lag_by_the_thresholds_of_the_base(base: Objects) -> None:
    scaled = {one.target.removeprefix("headrace-"): one for one in scaled_objects(base)}
    thresholds = {f"{stage}, {t.name}": t.lag_threshold for stage, one in scaled.items() for t in one.triggers}
    told = pods_of_lags()
    assert {name: threshold for name, (threshold, _) in told.items()} == thresholds
    for name, (threshold, pods) in told.items():
        for lag, count in pods.items():
            # What that many pods clear is the lag at least, or there are as many as partitions.
            assert count * threshold >= lag or count == scaled[name.partition(",")[0]].most
            assert 12 % count == 0
