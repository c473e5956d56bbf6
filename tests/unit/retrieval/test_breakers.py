import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from headrace.errors import Misconfigured, Transient
from headrace.retrieval.breakers import Breaker
from headrace.retrieval.service import Service
from headrace.stores.ports import TenantAway

RESET_S = 10.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def breaker(clock: Callable[[], float], *, failures: int = 3) -> Breaker:
    return Breaker("test", "milvus", failures=failures, reset_s=RESET_S, clock=clock)


def away() -> Transient:
    return Transient("milvus", "connection refused")


def failing(guard: Breaker, times: int) -> None:
    for _ in range(times):
        asking = guard.ask()
        asking.begin()
        asking.failed(away())


def is_refused(guard: Breaker) -> bool:
    try:
        guard.ask().begin()
    except Transient as exc:
        return exc.service == "milvus"
    return False


def test_after_so_many_failures_in_a_row_it_is_not_asked(clock: Clock) -> None:
    guard = breaker(clock)
    failing(guard, 2)
    assert not is_refused(guard)
    failing(guard, 1)
    assert is_refused(guard)
    assert REGISTRY.get_sample_value("headrace_breaker_open", {"service": "test"}) == 1


def test_an_answer_in_between_starts_the_count_anew(clock: Clock) -> None:
    guard = breaker(clock)
    failing(guard, 2)
    answered = guard.ask()
    answered.begin()
    answered.answered()
    failing(guard, 2)
    assert not is_refused(guard)


def test_a_tenant_that_cannot_be_served_is_no_failure_of_the_server(clock: Clock) -> None:
    guard = breaker(clock)
    for _ in range(10):
        asking = guard.ask()
        asking.begin()
        asking.failed(TenantAway("milvus", "collection not loaded"))
    assert not is_refused(guard)


def test_when_its_time_has_passed_one_may_try_and_the_others_wait_for_what_that_one_finds(clock: Clock) -> None:
    guard = breaker(clock)
    failing(guard, 3)
    clock.now = RESET_S - 0.001
    assert is_refused(guard)
    clock.now = RESET_S
    trial = guard.ask()
    trial.begin()
    assert is_refused(guard)
    trial.answered()
    assert not is_refused(guard)
    assert REGISTRY.get_sample_value("headrace_breaker_open", {"service": "test"}) == 0


def test_a_trial_that_fails_opens_it_for_as_long_again(clock: Clock) -> None:
    guard = breaker(clock)
    failing(guard, 3)
    clock.now = RESET_S
    failing(guard, 1)
    clock.now = 2 * RESET_S - 0.001
    assert is_refused(guard)
    clock.now = 2 * RESET_S
    assert not is_refused(guard)


def test_a_trial_that_is_given_up_is_no_trial_for_ever(clock: Clock) -> None:
    guard = breaker(clock)
    failing(guard, 3)
    clock.now = RESET_S
    trial = guard.ask()
    trial.begin()
    trial.given_up(away())
    clock.now = 2 * RESET_S
    assert not is_refused(guard)


def test_giving_up_says_nothing_of_a_server_that_is_well(clock: Clock) -> None:
    guard = breaker(clock, failures=1)
    asking = guard.ask()
    asking.begin()
    asking.given_up(away())
    assert not is_refused(guard)


@pytest.mark.parametrize("late", ["answered", "failed"])
def test_what_was_asked_before_it_opened_neither_closes_nor_prolongs_it(clock: Clock, late: str) -> None:
    guard = breaker(clock)
    early = guard.ask()
    early.begin()
    failing(guard, 3)
    clock.now = RESET_S - 1
    early.answered() if late == "answered" else early.failed(away())
    assert is_refused(guard)
    clock.now = RESET_S
    assert not is_refused(guard)


def test_a_call_counts_once(clock: Clock) -> None:
    guard = breaker(clock)
    asking = guard.ask()
    asking.begin()
    for _ in range(5):
        asking.failed(away())
    assert not is_refused(guard)


@given(st.lists(st.sampled_from(["fails", "answers", "time passes"]), max_size=40))
def test_it_is_open_just_after_failures_in_a_row_and_until_its_time_has_passed(history: list[str]) -> None:
    clock = Clock()
    guard = breaker(clock)
    in_a_row, opened_at = 0, None
    for event in history:
        if event == "time passes":
            clock.now += RESET_S / 2
            continue
        asking = guard.ask()
        open_still = opened_at is not None and clock.now < opened_at + RESET_S
        try:
            asking.begin()
        except Transient:
            assert open_still
            continue
        assert not open_still
        if event == "answers":
            asking.answered()
            in_a_row, opened_at = 0, None
        else:
            asking.failed(away())
            in_a_row += 1
            opened_at = clock.now if in_a_row >= 3 else None


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    """Calls that wait for it hang until the test's end."""
    let_go = threading.Event()
    yield let_go
    let_go.set()


def service(guard: Breaker, *, threads: int = 4, timeout_s: float = 30.0) -> Service:
    return Service("test", "milvus", threads=threads, timeout_s=timeout_s, breaker=guard)


async def test_a_server_that_hangs_is_given_up_on_and_then_not_asked(clock: Clock, hang: threading.Event) -> None:
    hanging = service(breaker(clock), timeout_s=0.05)
    for _ in range(3):
        with pytest.raises(Transient, match="no answer within"):
            await hanging.ask(hang.wait)
    with pytest.raises(Transient, match="asked again within"):
        await hanging.ask(hang.wait)


async def test_calls_that_find_no_thread_are_given_up_on_too_and_never_made(
    clock: Clock, hang: threading.Event
) -> None:
    made: list[int] = []
    hanging = service(breaker(clock, failures=100), threads=1, timeout_s=0.05)
    with pytest.raises(Transient):
        await hanging.ask(hang.wait)
    with pytest.raises(Transient, match="no answer within"):
        await hanging.ask(lambda: made.append(1))
    hang.set()
    assert await hanging.ask(lambda: "answer") == "answer"
    assert made == []


async def test_of_fifty_that_come_at_once_those_without_a_thread_do_not_wait_once_it_is_open(clock: Clock) -> None:
    asked: list[int] = []

    def refused() -> None:
        asked.append(1)
        time.sleep(0.01)
        raise away()

    hanging = service(breaker(clock), threads=2)
    outcomes = await asyncio.gather(*(hanging.ask(refused) for _ in range(50)), return_exceptions=True)
    assert all(isinstance(outcome, Transient) for outcome in outcomes)
    assert len(asked) <= 4


async def test_calls_are_made_side_by_side_also_through_the_breaker(clock: Clock) -> None:
    together = threading.Barrier(3, timeout=10)
    shared = service(breaker(clock))
    assert sorted(await asyncio.gather(*(shared.ask(together.wait) for _ in range(3)))) == [0, 1, 2]


@pytest.mark.parametrize("error", [Misconfigured("another encoder"), KeyError("a bug")])
async def test_an_error_that_is_not_the_servers_absence_does_not_count(clock: Clock, error: Exception) -> None:
    guard = breaker(clock, failures=1)
    asked = service(guard)

    def wrong() -> None:
        raise error

    for _ in range(3):
        with pytest.raises(type(error)):
            await asked.ask(wrong)
    assert await asked.ask(lambda: 1) == 1


async def test_a_trial_whose_asker_has_gone_is_settled_by_the_call(clock: Clock, hang: threading.Event) -> None:
    guard = breaker(clock)
    failing(guard, 3)
    clock.now = RESET_S
    asked = service(guard)
    begun = threading.Event()

    def slow() -> None:
        begun.set()
        hang.wait()

    trial = asyncio.ensure_future(asked.ask(slow))
    await asyncio.to_thread(begun.wait)
    trial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trial
    hang.set()
    give_up = time.monotonic() + 10
    while is_refused(guard):
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)


async def test_a_trial_that_hangs_after_its_asker_has_gone_ends_with_the_time_out(
    clock: Clock, hang: threading.Event
) -> None:
    guard = breaker(clock)
    failing(guard, 3)
    clock.now = RESET_S
    asked = service(guard, timeout_s=0.2)
    begun = threading.Event()
    trial = asyncio.ensure_future(asked.ask(lambda: (begun.set(), hang.wait())))
    await asyncio.to_thread(begun.wait)
    trial.cancel()
    give_up = time.monotonic() + 10
    clock.now = 2 * RESET_S
    while is_refused(guard):
        assert time.monotonic() < give_up
        clock.now += RESET_S
        await asyncio.sleep(0.02)
