"""What the scaling benchmark makes of what it has seen."""

from bench.keda import Pace, Scaled, Trigger
from bench.scaling import COURSE, MOST, Change, Look, changes, faster, longest, pauses, rate


def test_a_pause_is_only_counted_while_there_is_work() -> None:
    came, done = [0.0, 1.0, 10.0], [0.5, 1.5, 12.0]
    assert pauses(came, done) == [(0.0, 0.5), (1.0, 0.5), (10.0, 2.0)]


def test_with_a_backlog_a_pause_is_the_time_between_two_that_were_done() -> None:
    assert pauses([0.0, 0.0, 0.0], [1.0, 1.0, 4.0]) == [(0.0, 1.0), (1.0, 0.0), (1.0, 3.0)]


def test_a_pause_belongs_to_a_change_if_a_part_of_it_does() -> None:
    found = [(0.0, 2.0), (5.0, 1.0)]
    assert longest(found, 1.0, 4.0) == 2.0
    assert longest(found, 2.5, 4.0) == 0.0


def test_a_change_is_over_when_all_are_members() -> None:
    looks = [
        Look(at=at, lag=lag, wanted=wanted, members=members)
        for at, lag, wanted, members in [(0, 0, 1, 1), (1, 900, 3, 1), (2, 800, 3, 2), (3, 700, 3, 3), (4, 0, 2, 3)]
    ]
    assert changes(looks) == [
        Change(at=1, lag=900, before=1, after=3, settled=3),
        Change(at=4, lag=0, before=3, after=2, settled=4),
    ]


def test_a_rate_counts_while_all_work_and_have_something_to_do() -> None:
    looks = [
        Look(at=at, lag=lag, wanted=3, members=members)
        for at, lag, members in [(0, 5_000, 1), (2, 5_000, 3), (4, 5_000, 3), (6, 5_000, 3), (8, 0, 3)]
    ]
    assert rate(looks, [1.0, 2.5, 3.0, 5.0, 7.0], 3) == 3 / 4
    assert rate(looks, [1.0], 2) == 0


def test_times_are_divided_and_nothing_else_of_a_pace_is_changed() -> None:
    scaled = Scaled(
        target="headrace-embed",
        least=0,
        most=12,
        cooldown_s=300,
        polling_s=15,
        failure_threshold=3,
        fallback=1,
        up=Pace(stabilization_s=0, policies=[(12, 15)]),
        down=Pace(stabilization_s=300, policies=[(1, 60)]),
        triggers=[Trigger(topic="t", group="g", earliest=True)],
    )
    its = faster(scaled, COURSE)
    assert (its.polling_s, its.cooldown_s, its.most) == (15 / COURSE.divisor, 300 / COURSE.divisor, MOST)
    assert its.down == Pace(stabilization_s=300 / COURSE.divisor, policies=[(1, 60 / COURSE.divisor)])
    assert its.triggers[0].earliest
