"""What is remembered of manifests, for how long, and how much of it."""

from headrace.stores.known_revisions import Known, KnownRevisions

FIRST, SECOND = Known((1, 1), "r1"), Known((2, 1), None)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_was_kept_last_is_known_by_index_and_document() -> None:
    known = KnownRevisions()
    known.keep("one", {"a": FIRST, "b": FIRST})
    known.keep("one", {"a": SECOND})
    known.keep("two", {"a": FIRST})
    assert known.of("one", ["b", "a", "c"]) == {"b": FIRST, "a": SECOND}
    assert known.of("two", ["a", "b"]) == {"a": FIRST}


def test_it_is_forgotten_after_a_while() -> None:
    clock = Clock()
    known = KnownRevisions(seconds=30, clock=clock)
    known.keep("one", {"a": FIRST})
    clock.now = 29
    known.keep("one", {"b": FIRST})
    assert known.of("one", ["a", "b"]) == {"a": FIRST, "b": FIRST}
    clock.now = 30
    assert known.of("one", ["a", "b"]) == {"b": FIRST}


def test_the_oldest_make_room() -> None:
    known = KnownRevisions(most=3)
    known.keep("one", {"a": FIRST, "b": FIRST, "c": FIRST})
    known.keep("one", {"a": SECOND})
    known.keep("one", {"d": FIRST, "e": FIRST})
    assert known.of("one", "abcde") == {"a": SECOND, "d": FIRST, "e": FIRST}
