import asyncio

import pytest

from headrace.serving.remembered import Remembered
from schemas import Answer, AnswerError


class Work:
    """Counts how often it is done. While `go_on` is cleared it takes its time."""

    def __init__(self, **answer: object) -> None:
        self.answer = Answer(**answer)  # type: ignore[arg-type]
        self.done = 0
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self) -> Answer:
        self.done += 1
        await self.go_on.wait()
        return self.answer


async def is_current(answer: Answer) -> bool:
    return True


async def is_outdated(answer: Answer) -> bool:
    return False


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_the_same_again_is_answered_without_the_work() -> None:
    remembered, work = Remembered(seconds=60, size_bytes=10_000), Work(request_id="r")
    assert (
        await remembered.answer("r", work, is_current) == await remembered.answer("r", work, is_current) == work.answer
    )
    await remembered.answer("another", work, is_current)
    assert work.done == 2


async def test_those_that_come_meanwhile_share_the_work() -> None:
    remembered, work = Remembered(seconds=60, size_bytes=10_000), Work(request_id="r")
    work.go_on.clear()
    asked = [asyncio.create_task(remembered.answer("r", work, is_current)) for _ in range(5)]
    await asyncio.sleep(0)
    work.go_on.set()
    assert await asyncio.gather(*asked) == [work.answer] * 5
    assert work.done == 1


async def test_it_is_forgotten_when_its_time_is_over() -> None:
    clock, work = Clock(), Work()
    remembered = Remembered(seconds=60, size_bytes=10_000, clock=clock)
    await remembered.answer("r", work, is_current)
    clock.now = 59
    await remembered.answer("r", work, is_current)
    assert work.done == 1
    clock.now = 61
    await remembered.answer("r", work, is_current)
    assert work.done == 2


async def test_what_is_no_longer_true_is_found_anew() -> None:
    remembered, work, anew = Remembered(seconds=60, size_bytes=10_000), Work(), Work(request_id="anew")
    await remembered.answer("r", work, is_current)
    assert await remembered.answer("r", anew, is_outdated) == anew.answer
    assert await remembered.answer("r", work, is_current) == anew.answer
    assert (work.done, anew.done) == (1, 1)


@pytest.mark.parametrize(
    "answer", [{"degraded": ["milvus"]}, {"error": AnswerError(code="unavailable", message="")}], ids=str
)
async def test_what_may_be_better_the_next_time_is_not_kept(answer: dict[str, object]) -> None:
    remembered, work = Remembered(seconds=60, size_bytes=10_000), Work(**answer)
    await remembered.answer("r", work, is_current)
    await remembered.answer("r", work, is_current)
    assert work.done == 2


async def test_who_waits_for_work_that_is_given_up_does_it() -> None:
    remembered, given_up, work = Remembered(seconds=60, size_bytes=10_000), Work(), Work()
    given_up.go_on.clear()
    first = asyncio.create_task(remembered.answer("r", given_up, is_current))
    await asyncio.sleep(0)
    second = asyncio.create_task(remembered.answer("r", work, is_current))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == work.answer
    assert (given_up.done, work.done) == (1, 1)


@pytest.mark.parametrize("bounds", [{"seconds": 0, "size_bytes": 10_000}, {"seconds": 60, "size_bytes": 10}], ids=str)
async def test_what_has_no_room_is_answered_all_the_same(bounds: dict[str, int]) -> None:
    remembered, work = Remembered(**bounds), Work(request_id="r" * 100)
    await remembered.answer("r", work, is_current)
    assert await remembered.answer("r", work, is_current) == work.answer
    assert work.done == 2
