"""How many pods follow from a lag, by KEDA's and the HorizontalPodAutoscaler's rules."""

from collections.abc import Mapping
from typing import Any

import pytest

from bench.keda import Autoscaler, Pace, Reported, Scaled, Trigger, scaled_objects

PARTITIONS = 12


def behind(lag: int, *, partitions: int = PARTITIONS) -> dict[int, tuple[int | None, int]]:
    """All of it on one partition."""
    return {number: (5, 5 if number else 5 + lag) for number in range(partitions)}


def trigger(**fields: Any) -> Trigger:
    return Trigger(topic="t", group="g", **{"lag_threshold": 100, "earliest": True, "even_distribution": True} | fields)


def scaled(**fields: Any) -> Scaled:
    return Scaled(
        **{
            "target": "headrace-embed",
            "least": 0,
            "most": 12,
            "cooldown_s": 300,
            "polling_s": 15,
            "failure_threshold": 3,
            "fallback": 1,
            "up": Pace(stabilization_s=0, policies=[(12, 15)]),
            "down": Pace(stabilization_s=300, policies=[(1, 60)]),
            "triggers": [trigger()],
        }
        | fields
    )


def told(lag: int) -> list[Reported]:
    return [trigger().reported(behind(lag))]


@pytest.mark.parametrize(
    ("lag", "pods"), [(0, 0), (1, 1), (100, 1), (101, 2), (300, 3), (401, 6), (601, 12), (1201, 12), (10**6, 12)]
)
def test_a_lag_gets_as_many_pods_as_share_the_partitions_evenly(lag: int, pods: int) -> None:
    assert scaled().pods(told(lag), current=0) == pods


@pytest.mark.parametrize(("lag", "pods"), [(401, 5), (1101, 12), (10**6, 12)])
def test_without_even_shares_it_is_the_lag_over_the_threshold_and_never_more_than_partitions(
    lag: int, pods: int
) -> None:
    one = trigger(even_distribution=False)
    assert scaled(triggers=[one], most=100).pods([one.reported(behind(lag))], current=0) == pods


def test_idle_consumers_may_be_more_than_partitions() -> None:
    one = trigger(even_distribution=False, allow_idle_consumers=True)
    assert scaled(triggers=[one], most=100).pods([one.reported(behind(2_000))], current=0) == 20


def test_pods_may_be_limited_to_partitions_that_have_lag() -> None:
    one = trigger(even_distribution=False, limit_to_partitions_with_lag=True)
    assert scaled(triggers=[one]).pods([one.reported(behind(2_000))], current=0) == 1


def test_the_larger_of_two_lanes_counts_and_one_message_of_either_wakes_the_stage() -> None:
    both = scaled(triggers=[trigger(), trigger(lag_threshold=10)])
    reports = [both.triggers[0].reported(behind(0)), both.triggers[1].reported(behind(25))]
    assert both.pods(reports, current=0) == 3
    reports = [both.triggers[0].reported(behind(150)), both.triggers[1].reported(behind(1))]
    assert both.pods(reports, current=0) == 2
    reports = [both.triggers[0].reported(behind(0)), both.triggers[1].reported(behind(1))]
    assert both.pods(reports, current=0) == 1


@pytest.mark.parametrize(
    ("fields", "lag"),
    [
        ({"earliest": True}, 40),
        ({"earliest": True, "zero_on_invalid_offset": True}, 0),
        ({"earliest": False}, 1),
        ({"earliest": False, "zero_on_invalid_offset": True}, 0),
    ],
)
def test_a_partition_without_a_committed_offset_counts_by_the_reset_policy(
    fields: Mapping[str, bool], lag: int
) -> None:
    assert trigger(**fields).reported({0: (None, 40), 1: (7, 7)}).lag == lag


def test_a_position_that_stands_still_counts_for_waking_but_not_for_pods_if_so_asked() -> None:
    one = trigger(exclude_persistent_lag=True)
    before, now = {0: (5, 400), 1: (5, 300)}, {0: (5, 400), 1: (205, 405)}
    report = one.reported(now, before)
    assert (report.lag, one.pods(report.metric, 1), report.active) == (595, 2, True)
    assert trigger(even_distribution=False, allow_idle_consumers=True).reported(now, before).metric == 595


def test_below_the_activation_threshold_nothing_wakes() -> None:
    one = trigger(activation_lag_threshold=5)
    assert scaled(triggers=[one]).pods([one.reported(behind(5))], current=0) == 0
    assert scaled(triggers=[one]).pods([one.reported(behind(6))], current=0) == 1


def test_what_is_within_a_tenth_is_left_as_it_is() -> None:
    assert scaled().pods(told(1_200), current=11) == 11
    assert scaled().pods(told(1_200), current=10) == 12


def test_where_somebody_waits_there_is_always_a_pod() -> None:
    assert scaled(least=1).pods(told(0), current=1) == 1


def test_pods_come_at_once_and_go_one_by_one_and_the_last_after_the_cooldown() -> None:
    keda = Autoscaler(scaled(), pods=0)
    assert keda.look(0, told(0)) == 0
    assert keda.look(15, told(10_000)) == 1
    assert keda.look(30, told(10_000)) == 12
    at = {now: keda.look(now, told(1)) for now in range(45, 1_200, 15)}
    assert at[330] == 12
    assert [at[now] for now in (345, 390, 405, 465)] == [11, 11, 10, 9]
    assert at[1_185] == 1
    assert [keda.look(now, told(0)) for now in (1_200, 1_485, 1_500)] == [1, 1, 0]


def test_without_any_lag_all_pods_go_together_after_the_cooldown() -> None:
    keda = Autoscaler(scaled(), pods=12)
    keda.look(0, told(10_000))
    assert [keda.look(now, told(0)) for now in (150, 300, 315)] == [12, 12, 0]


def test_pods_that_lose_their_lag_stay_until_the_window_has_passed_and_a_new_lag_keeps_them() -> None:
    keda = Autoscaler(scaled(), pods=3)
    keda.look(0, told(300))
    assert {keda.look(now, told(1)) for now in range(15, 300, 15)} == {3}
    assert keda.look(300, told(300)) == 3
    assert keda.look(420, told(1)) == 3
    assert keda.look(615, told(1)) == 2


def test_a_lag_that_cannot_be_asked_for_takes_no_pods_and_after_some_tries_gives_the_fallback() -> None:
    keda = Autoscaler(scaled(least=1, fallback=2), pods=1)
    assert [keda.look(15 * number, None) for number in range(4)] == [1, 1, 1, 2]
    assert Autoscaler(scaled(), pods=5).look(0, None) == 5


def test_a_stage_that_sleeps_is_woken_by_the_fallback_and_by_nothing_before() -> None:
    keda = Autoscaler(scaled(fallback=1), pods=0)
    assert [keda.look(15 * number, None) for number in range(5)] == [0, 0, 0, 1, 1]
    assert [keda.look(now, told(0)) for now in (75, 345, 375)] == [1, 1, 0]


def test_the_fields_of_a_scaled_object_are_read_as_keda_reads_them() -> None:
    metadata = {"topic": "t", "consumerGroup": "g", "lagThreshold": "7", "offsetResetPolicy": "earliest"}
    behavior = {
        "scaleUp": {"policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}]},
        "scaleDown": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]},
    }
    spec = {
        "scaleTargetRef": {"name": "headrace-embed"},
        "triggers": [{"type": "kafka", "metadata": metadata}, {"type": "prometheus", "metadata": {}}],
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": behavior}},
    }
    (one,) = scaled_objects([{"kind": "ScaledObject", "metadata": {"name": "x"}, "spec": spec}, {"kind": "Deployment"}])
    assert one.triggers == [Trigger(topic="t", group="g", lag_threshold=7, earliest=True)]
    assert (one.least, one.most, one.polling_s, one.down.stabilization_s) == (0, 100, 30, 300)
