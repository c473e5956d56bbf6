import asyncio

import pytest

from headrace.serving.errors import RateLimited
from headrace.serving.slots import Slots


class Work:
    """Holders of slots, which let go when told to. `begun` has them in the order in which they got theirs."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.begun: list[str] = []
        self.holding: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, *names: str) -> None:
        for name in names:
            self.tasks[name] = asyncio.create_task(self.hold(name))
            await settled()

    async def hold(self, name: str) -> None:
        async with self.slots:
            self.begun.append(name)
            self.holding[name] = asyncio.Event()
            try:
                await self.holding[name].wait()
            finally:
                del self.holding[name]

    async def let_go(self, name: str) -> None:
        self.holding[name].set()
        await self.tasks[name]
        await settled()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_no_more_than_its_size_work_at_once_and_all_come_in() -> None:
    work = Work(Slots(2, 10))
    await work.ask("a", "b", "c", "d", "e")
    assert set(work.holding) == {"a", "b"}
    while work.holding:
        assert len(work.holding) <= 2
        await work.let_go(next(iter(work.holding)))
    assert sorted(work.begun) == ["a", "b", "c", "d", "e"]


async def test_the_newest_that_waits_is_next() -> None:
    work = Work(Slots(1, 10))
    await work.ask("a", "old", "new")
    await work.let_go("a")
    assert work.begun == ["a", "new"]


async def test_where_too_many_wait_the_oldest_is_turned_away() -> None:
    work = Work(Slots(1, 2))
    await work.ask("a", "old", "b", "c")
    with pytest.raises(RateLimited) as refused:
        await work.tasks["old"]
    assert refused.value.retry_after_s > 0
    for name in ("a", "c", "b"):
        await work.let_go(name)
    assert work.begun == ["a", "c", "b"]


async def test_who_gave_up_waiting_is_passed_over() -> None:
    work = Work(Slots(1, 10))
    await work.ask("a", "b", "gone")
    work.tasks["gone"].cancel()
    await settled()
    await work.let_go("a")
    assert work.begun == ["a", "b"]


async def test_the_oldest_that_gives_up_as_another_one_comes_leaves_all_slots_in_use() -> None:
    work = Work(Slots(1, 1))
    await work.ask("a", "late")
    work.tasks["new"] = asyncio.create_task(work.hold("new"))
    # Its turn is given up before `new` comes for one, and it runs after that.
    work.tasks["late"].cancel()
    await settled()
    for name in ("a", "new"):
        await work.let_go(name)
    await work.ask("b")
    assert work.begun == ["a", "new", "b"]


async def test_who_gives_up_in_the_moment_in_which_a_slot_is_free_is_passed_over() -> None:
    work = Work(Slots(1, 10))
    await work.ask("a", "b", "gone")
    work.holding["a"].set()
    work.tasks["gone"].cancel()
    await settled()
    assert work.tasks["gone"].cancelled()
    assert work.begun == ["a", "b"]


async def test_a_slot_that_comes_as_its_holder_gives_up_is_not_lost() -> None:
    work = Work(Slots(1, 10))
    await work.ask("a", "b")
    work.holding["a"].set()
    while not work.tasks["a"].done():  # noqa: ASYNC110  not a turn of the loop more
        await asyncio.sleep(0)
    # The slot is b's now, and b hasn't run since.
    work.tasks["b"].cancel()
    await settled()
    await work.ask("c")
    assert work.begun[-1] == "c"


async def test_a_slot_whose_holder_fails_is_free_again() -> None:
    slots = Slots(1, 0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with slots:
                raise ZeroDivisionError
