"""Requests are served side by side; what becomes of each is as sure as a batch's fate."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agents.batches import UnreadableBatch
from agents.stage import Item, Outgoing, Record, RequestStage, StageRunner, Write
from headrace.errors import Misconfigured, Transient
from tests.fakes.wire import FakeSource, FakeWire


class Bench:
    """A stage that replies with what it was sent. What begins with `slow` waits until `go_on`; `failing` is raised."""

    def __init__(self) -> None:
        self.journal: list[str] = []
        self.wire = FakeWire(self.journal)
        self.source = FakeSource(self.journal, "queries")
        self.go_on = asyncio.Event()
        self.failing: dict[str, list[Exception]] = {}
        self.runner = StageRunner(RequestStage(name="query", decode=self.decode, serve=self.serve), self.wire)

    def decode(self, record: Record) -> str:
        return (record.value or b"").decode()

    async def serve(self, item: Item[str], write: Write) -> None:
        if self.failing.get(item.message):
            raise self.failing[item.message].pop()
        if item.message.startswith("slow"):
            await self.go_on.wait()
        await write([Outgoing(topic="replies", key=None, value=item.message.encode())])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        lane = asyncio.create_task(self.runner.run_lane("bulk", self.source))
        yield
        lane.cancel()
        with pytest.raises(asyncio.CancelledError):
            await lane

    async def until(self, *entries: str) -> None:
        async with asyncio.timeout(5):
            while not set(entries) <= set(self.journal):  # noqa: ASYNC110  whatever is written
                await asyncio.sleep(0.001)

    def replies(self) -> list[bytes | None]:
        return [reply.value for reply in self.wire.of("replies")]


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_a_slow_request_holds_nobody_up_and_is_acked_when_it_is_answered(bench: Bench) -> None:
    async with bench.running():
        bench.source.put("slow", "a", "b")
        await bench.until("ack a", "ack b")
        assert "ack slow" not in bench.journal
        assert bench.runner.in_hand == 1
        bench.go_on.set()
        await bench.until("ack slow")
        assert bench.runner.in_hand == 0
    assert bench.replies() == [b"a", b"b", b"slow"]


async def test_nothing_is_acked_before_its_reply_is_confirmed(bench: Bench) -> None:
    bench.wire.confirming.clear()
    async with bench.running():
        bench.source.put("a")
        await bench.until("send replies")
        await asyncio.sleep(0.01)
        assert "ack a" not in bench.journal
        bench.wire.confirming.set()
        await bench.until("ack a")


async def test_a_request_waits_for_a_server_that_is_away_and_the_others_go_on(bench: Bench) -> None:
    bench.failing["a"] = [Transient("kafka", "away")]
    async with bench.running():
        bench.source.put("a", "b")
        await bench.until("ack b", "ack a")
    assert bench.replies() == [b"b", b"a"]


async def test_a_request_that_cannot_be_answered_is_a_dead_letter_and_the_worker_goes_on(bench: Bench) -> None:
    bench.failing["a"] = [ZeroDivisionError("division by zero")]
    async with bench.running():
        bench.source.put("a", "b")
        await bench.until("ack a", "ack b")
    [dead] = bench.wire.of("documents.dead")
    assert (dead.value, dict(dead.headers)["headrace.error.code"]) == (b"a", b"internal")
    assert bench.wire.of("documents.events") == []
    assert bench.replies() == [b"b"]


async def test_a_reply_that_no_broker_takes_is_never_sent(bench: Bench) -> None:
    async with bench.running():
        bench.source.put("x" * 1_000_001)
        await bench.until("send documents.dead")
    [dead] = bench.wire.of("documents.dead")
    assert dict(dead.headers)["headrace.error.code"] == b"record_too_large"
    assert bench.replies() == []


async def test_a_batch_that_cannot_be_read_is_dead(bench: Bench) -> None:
    batch = UnreadableBatch(b"raw")
    batch.first, batch.last, batch.reason = 0, 3, "CorruptRecordException"
    async with bench.running():
        bench.source.put_message(batch, offset=3)
        await bench.until("ack raw")
    [dead] = bench.wire.of("documents.dead")
    assert dict(dead.headers)["headrace.error.code"] == b"unreadable_batch"


async def test_what_does_not_fit_together_ends_the_worker_under_its_own_name(bench: Bench) -> None:
    bench.failing["a"] = [Misconfigured("another encoder")]
    bench.source.put("slow", "a")
    with pytest.raises(Misconfigured):
        await bench.runner.run_lane("bulk", bench.source)
    assert not any(entry.startswith("ack") for entry in bench.journal)
