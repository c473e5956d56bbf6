"""What counts as standing still."""

from agents.liveness import STUCK_EXIT_CODE, Standstill
from headrace.cli.exits import Exit


def test_only_what_should_move_and_does_not_stands_still() -> None:
    standstill = Standstill()
    standstill.observe({"a": 1, "b": 1, "c": 1}, 5.0)
    assert standstill.observe({"a": 1, "b": 2, "c": 1}, 5.0) == {"a": 5.0, "b": 0.0, "c": 5.0}
    assert standstill.observe({"a": 1, "b": 2}, 5.0) == {"a": 10.0, "b": 5.0}


def test_what_need_not_move_for_a_while_begins_anew() -> None:
    standstill = Standstill()
    standstill.observe({"a": 1}, 5.0)
    standstill.observe({"a": 1}, 5.0)
    standstill.observe({}, 5.0)
    assert standstill.observe({"a": 1}, 5.0) == {"a": 0.0}


def test_being_nowhere_is_a_place_to_stand_still_at() -> None:
    standstill = Standstill()
    standstill.observe({"out of the group": None}, 5.0)
    assert standstill.observe({"out of the group": None}, 5.0) == {"out of the group": 5.0}


def test_the_exit_code_has_its_name_on_the_command_line() -> None:
    assert STUCK_EXIT_CODE == Exit.STUCK
