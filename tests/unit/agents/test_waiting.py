"""What a stage tells while it waits for a server, and how it spaces its tries."""

import asyncio
from collections.abc import Sequence

import pytest
from prometheus_client import REGISTRY
from tenacity import RetryCallState, Retrying, wait_fixed, wait_none

from agents import stage as life_cycle
from agents.stage import Item, Outgoing, Stage, StageRunner
from headrace.calls import asking
from headrace.errors import Transient
from tests.fakes.wire import FakeSource, FakeWire


def test_a_stage_of_two_stores_waits_for_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life_cycle, "RETRY_WAIT", wait_none())
    away = ["opensearch", "milvus"]
    told: list[tuple[object, ...]] = []

    async def work(batch: Sequence[Item[bytes]]) -> list[Outgoing]:
        told.append((*(gauge(service) for service in ("opensearch", "milvus")), getattr(runner.waiting, "service", "")))
        if away:
            raise Transient(away.pop(0), "no answer")
        done.set()
        return []

    async def run() -> None:
        source.put("a")
        lane = asyncio.create_task(runner.run_lane("bulk", source))
        await done.wait()
        lane.cancel()
        await asyncio.gather(lane, return_exceptions=True)

    done = asyncio.Event()
    source = FakeSource([])
    runner = StageRunner(
        Stage(name="commit", decode=lambda record: record.value or b"", work=work, batch_messages=1, batch_bytes=1),
        FakeWire([]),
    )
    asyncio.run(run())
    assert told == [(0, 0, ""), (1, 0, "opensearch"), (0, 1, "milvus")]
    assert (gauge("opensearch"), gauge("milvus"), runner.waiting) == (0, 0, None)


async def test_a_batch_that_goes_on_ends_nobody_elses_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life_cycle, "RETRY_WAIT", wait_fixed(0.001))
    away, tried = {b"a", b"b"}, set[bytes]()

    async def work(batch: Sequence[Item[bytes]]) -> list[Outgoing]:
        [item] = batch
        tried.add(item.message)
        if item.message in away:
            raise Transient("milvus", "no answer")
        return []

    async def until(message: bytes, *, in_hand: int) -> None:
        async with asyncio.timeout(30):
            while message not in tried or runner.in_hand != in_hand:  # noqa: ASYNC110  nobody tells of it
                await asyncio.sleep(0.001)

    def waits() -> tuple[bool, float]:
        return runner.waiting is not None, gauge("milvus")

    runner = StageRunner(
        Stage(name="commit", decode=lambda record: record.value or b"", work=work, batch_messages=1, batch_bytes=1),
        FakeWire([]),
    )
    bulk, urgent = FakeSource([]), FakeSource([], "documents.embeddings.urgent")
    async with asyncio.TaskGroup() as group:
        lanes = [group.create_task(runner.run_lane("bulk", bulk)), group.create_task(runner.run_lane("urgent", urgent))]
        bulk.put("a")
        await until(b"a", in_hand=1)
        urgent.put("c")
        await until(b"c", in_hand=1)
        assert waits() == (True, 1)
        urgent.put("b")
        await until(b"b", in_hand=2)
        away.remove(b"a")
        await until(b"a", in_hand=1)
        assert waits() == (True, 1)
        away.remove(b"b")
        await until(b"b", in_hand=0)
        assert waits() == (False, 0)
        for lane in lanes:
            lane.cancel()


def test_a_server_that_keeps_a_call_waiting_is_waited_for_before_its_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(batch: Sequence[Item[bytes]]) -> list[Outgoing]:
        raise AssertionError("nothing comes")

    runner = StageRunner(
        Stage(name="commit", decode=lambda record: b"", work=work, batch_messages=1, batch_bytes=1), FakeWire([])
    )
    with asking("milvus"):
        assert runner.waiting is None
        monkeypatch.setattr(life_cycle, "SILENT_AFTER_S", 0.0)
        waiting = runner.waiting
        assert waiting is not None
        assert waiting.service == "milvus"
    assert runner.waiting is None


def test_workers_that_have_waited_for_long_do_not_try_again_in_step() -> None:
    state = RetryCallState(Retrying(), None, (), {})
    for state.attempt_number in (1, 5, 100):
        waits = {life_cycle.RETRY_WAIT(state) for _ in range(50)}
        assert len(waits) > 1
        assert 0 < min(waits) <= max(waits) <= 15


def gauge(service: str) -> float:
    return REGISTRY.get_sample_value("headrace_waiting", {"stage": "commit", "service": service}) or 0
