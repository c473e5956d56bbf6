"""The commit position never passes a delivered message that isn't acked."""

from agents.progress import Backlog, PartitionProgress


def delivered(*offsets: int) -> PartitionProgress:
    progress = PartitionProgress()
    for offset in offsets:
        progress.deliver(offset, 10, float(offset))
    return progress


def test_nothing_is_committable_before_the_first_ack() -> None:
    assert delivered(0, 1).committable() is None


def test_the_position_stops_before_the_first_unacked_message() -> None:
    progress = delivered(0, 1, 2, 3)
    for offset in (0, 1, 3):
        progress.ack(offset)
    assert progress.committable() == 2
    progress.ack(2)
    assert progress.committable() == 4


def test_gaps_between_offsets_hold_nothing_up() -> None:
    progress = delivered(3, 17, 18, 40)
    for offset in (3, 17, 18, 40):
        progress.ack(offset)
    assert progress.committable() == 41


def test_a_position_stays_until_it_moves_on() -> None:
    progress = delivered(5, 6)
    progress.ack(5)
    assert [progress.committable(), progress.committable()] == [6, 6]


def test_bytes_are_held_until_they_are_acked_whatever_the_order() -> None:
    progress = delivered(0, 1, 2)
    progress.ack(2)
    progress.ack(2)
    assert (progress.unacked, progress.held_bytes) == (2, 20)


def test_an_ack_from_the_assignment_before_frees_nothing_but_counts() -> None:
    progress = PartitionProgress()
    progress.ack(7)
    assert progress.held_bytes == 0
    progress.deliver(7, 10, float(7))
    assert progress.committable() == 8


def test_what_follows_without_messages_is_passed_when_all_is_acked() -> None:
    progress = delivered(3, 4)
    progress.reach(9, last=4)
    progress.ack(3)
    assert progress.committable() == 4
    progress.ack(4)
    assert progress.committable() == 9


def test_nothing_is_passed_while_messages_are_on_their_way() -> None:
    progress = delivered(3, 4)
    progress.ack(3)
    progress.ack(4)
    progress.reach(9, last=6)  # 5 and 6 were fetched and aren't delivered yet.
    assert progress.committable() == 5
    progress.deliver(5, 10, float(5))
    progress.deliver(6, 10, float(6))
    progress.reach(9, last=6)
    assert progress.committable() == 5
    progress.ack(5)
    progress.ack(6)
    assert progress.committable() == 9


def test_a_partition_of_nothing_but_markers_is_passed() -> None:
    progress = PartitionProgress()
    assert progress.committable() is None
    progress.reach(12, last=None)
    assert progress.committable() == 12
    assert progress.delivered_to == 12


def test_an_empty_partition_has_nothing_to_commit() -> None:
    progress = PartitionProgress()
    progress.reach(0, last=None)
    assert progress.committable() is None


def test_what_was_delivered_counts_as_delivered_before_it_is_acked() -> None:
    assert delivered(3, 7).delivered_to == 8


def test_the_first_message_that_is_not_acked_says_since_when_there_is_something_to_do() -> None:
    progress = delivered(3, 5, 9)
    assert progress.waits_since == 3.0
    progress.ack(5)
    assert progress.waits_since == 3.0
    progress.ack(3)
    assert progress.waits_since == 9.0
    progress.ack(9)
    assert progress.waits_since is None


class TestBacklog:
    def test_what_is_in_hand_has_waited_since_its_own_time(self) -> None:
        assert Backlog[str]().observe({"a": (7, 40.0)}, 100.0) == {"a": 40.0}

    def test_a_time_that_is_ahead_is_now(self) -> None:
        assert Backlog[str]().observe({"a": (7, 140.0)}, 100.0) == {"a": 100.0}

    def test_what_was_not_delivered_has_waited_since_the_position_came_to_stand(self) -> None:
        backlog = Backlog[str]()
        assert backlog.observe({"a": (7, None)}, 100.0) == {"a": 100.0}
        assert backlog.observe({"a": (7, None), "b": (0, None)}, 110.0) == {"a": 100.0, "b": 110.0}
        assert backlog.observe({"a": (8, None), "b": (0, None)}, 120.0) == {"a": 120.0, "b": 110.0}

    def test_what_had_no_lag_in_between_begins_anew(self) -> None:
        backlog = Backlog[str]()
        backlog.observe({"a": (7, None)}, 100.0)
        backlog.observe({}, 110.0)
        assert backlog.observe({"a": (7, None)}, 120.0) == {"a": 120.0}
