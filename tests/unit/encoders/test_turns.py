import threading
import time
from collections.abc import Callable

import pytest

from headrace.encoders.turns import Turns


class Askers:
    """Threads that ask for a turn one after the other, while all turns are taken, and note when they have it."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.had: list[str] = []
        self._threads: list[threading.Thread] = []

    def ask(self, name: str, *, urgent: bool = False) -> None:
        waiting = len(self.turns._waiting)

        def work() -> None:
            with self.turns.turn(urgent=urgent):
                self.had.append(name)

        self._threads.append(threading.Thread(target=work))
        self._threads[-1].start()
        until(lambda: len(self.turns._waiting) > waiting)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(10)


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_urgent_ones_go_first_and_the_rest_in_the_order_they_came() -> None:
    turns = Turns()
    askers = Askers(turns)
    with turns.turn():
        askers.ask("first")
        askers.ask("second")
        askers.ask("urgent", urgent=True)
        askers.ask("also urgent", urgent=True)
    askers.join()
    assert askers.had == ["urgent", "also urgent", "first", "second"]


@pytest.mark.parametrize("at_once", [1, 3])
def test_no_more_than_so_many_have_a_turn_at_once(at_once: int) -> None:
    turns = Turns(at_once)
    lock = threading.Lock()
    now, most = 0, 0

    def work() -> None:
        nonlocal now, most
        for _ in range(20):
            with turns.turn():
                with lock:
                    now += 1
                    most = max(most, now)
                time.sleep(0.0005)
                with lock:
                    now -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (now, most) == (0, at_once)


def test_a_long_turn_gives_way_to_what_is_urgent_and_to_nothing_else() -> None:
    turns = Turns()
    askers = Askers(turns)
    with turns.turn() as give_way:
        askers.ask("next")
        give_way()
        askers.had.append("first, once more")
        askers.ask("urgent", urgent=True)
        give_way()
        askers.had.append("first, at last")
    askers.join()
    assert askers.had == ["first, once more", "urgent", "first, at last", "next"]


def test_an_urgent_turn_gives_way_to_no_other_urgent_one() -> None:
    turns = Turns()
    askers = Askers(turns)
    with turns.turn(urgent=True) as give_way:
        askers.ask("also urgent", urgent=True)
        give_way()
        askers.had.append("urgent")
    askers.join()
    assert askers.had == ["urgent", "also urgent"]


def test_a_turn_that_fails_is_given_up() -> None:
    turns = Turns()
    with pytest.raises(ValueError), turns.turn():
        raise ValueError
    with turns.turn():
        pass
