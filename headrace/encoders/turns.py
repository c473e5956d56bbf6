"""Whose turn it is where only so many can work at once."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

_Place = tuple[bool, int]


class Turns:
    """`at_once` turns at a time: of those that wait, the urgent ones first, else in the order they came."""

    def __init__(self, at_once: int = 1) -> None:
        self._changed = threading.Condition()
        self._free = at_once
        self._waiting: set[_Place] = set()
        self._numbers = count()

    @contextmanager
    def turn(self, *, urgent: bool = False) -> Iterator[Callable[[], None]]:
        """The block has a turn, and is given a function that lets those go before it who come before it: to be called
        where a long turn can be interrupted. Who has a turn may not ask for another.
        """
        place = (not urgent, next(self._numbers))
        with self._changed:
            self._take(place)
        try:
            yield lambda: self._give_way(place)
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()

    def _give_way(self, place: _Place) -> None:
        with self._changed:
            if self._waiting and min(self._waiting) < place:
                self._free += 1
                self._changed.notify_all()
                self._take(place)

    def _take(self, place: _Place) -> None:
        self._waiting.add(place)
        self._changed.wait_for(lambda: self._free and place == min(self._waiting))
        self._waiting.remove(place)
        self._free -= 1
        # Of those that were woken, the next one was not the first yet.
        self._changed.notify_all()
