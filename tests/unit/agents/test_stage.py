"""The life cycle of a message, over a transport in memory: what is written, what is acked, and in which order."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import ClassVar

import pytest
from tenacity import wait_none

from agents.batches import UnreadableBatch
from agents.stage import Item, Outgoing, Record, Stage, StageRunner
from headrace.errors import Misconfigured, Poison, Transient
from schemas import DocumentEvent, decode
from tests.fakes.records import ARRIVED_MS
from tests.fakes.wire import FakeSource, FakeWire, position
from topics import RECORD_MAX_BYTES, Lane
from topics.table import DEAD_MAX_BYTES

# What a record's value asks of the stage below; any other text is written on as it is.
UNREADABLE, POISON, LARGE, BUG, MISFIT = "unreadable", "poison", "large", "bug", "misfit"


class Bug(Exception):
    """Nobody expected it."""


class Works:
    """A stage's two functions. `away` is how many more calls find the store away."""

    def __init__(self, journal: list[str]) -> None:
        self.journal = journal
        self.away = 0
        self.go = asyncio.Event()
        self.go.set()
        self.slow: dict[str, asyncio.Event] = {}
        """Messages whose work ends when their event is set."""
        self.on_call: Callable[[], None] = lambda: None
        self.told: list[str] = []
        """Messages of which the brokers have what became of them."""

    def decode(self, record: Record) -> str:
        value = (record.value or b"").decode()
        if value == UNREADABLE:
            raise Poison("bad_json", "no JSON")
        return value

    async def work(self, batch: Sequence[Item[str]]) -> list[Outgoing]:
        messages = [item.message for item in batch]
        self.journal.append(f"work {' '.join(messages)}")
        self.on_call()
        await self.go.wait()
        for message in messages:
            if message in self.slow:
                await self.slow[message].wait()
        if self.away:
            self.away -= 1
            raise Transient("milvus", "no answer")
        for message in messages:
            if message == POISON:
                raise Poison("bad_vectors", "they do not fit")
            if message == BUG:
                raise Bug("division by zero")
            if message == MISFIT:
                raise Misconfigured("another model")
        size = RECORD_MAX_BYTES if LARGE in messages else 1
        return [
            Outgoing(
                topic="documents.stored",
                key=m.encode(),
                value=m.encode() * size,
                on_confirmed=partial(self.told.append, m),
            )
            for m in messages
        ]


class Bench:
    """A runner on fakes."""

    def __init__(self, *, crashes_before: int = 0, batch_messages: int = 64, in_flight: int = 1) -> None:
        self.journal: list[str] = []
        self.works = Works(self.journal)
        self.wire = FakeWire(self.journal, crashes_before=crashes_before)
        self.urgent = FakeSource(self.journal, "documents.embeddings.urgent")
        self.bulk = FakeSource(self.journal)
        stage = Stage(
            name="upsert-milvus",
            decode=self.works.decode,
            work=self.works.work,
            batch_messages=batch_messages,
            batch_bytes=1_000_000,
            linger_s=0.0,
            in_flight=in_flight,
        )
        self.runner = StageRunner(stage, self.wire)

    @asynccontextmanager
    async def running(self, *lanes: Lane) -> AsyncIterator[None]:
        sources = {"urgent": self.urgent, "bulk": self.bulk}
        tasks = [asyncio.create_task(self.runner.run_lane(lane, sources[lane])) for lane in lanes or ("bulk",)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task

    async def process(self, *values: str) -> None:
        """Put them, and return when they are done; raises what ended the runner."""
        self.bulk.put(*values)
        lane = asyncio.create_task(self.runner.run_lane("bulk", self.bulk))
        await until(lambda: lane.done() or (self.bulk.empty() and not self.runner.in_hand))
        lane.cancel()
        with suppress(asyncio.CancelledError):
            await lane

    @property
    def acked(self) -> list[str]:
        return [entry.removeprefix("ack ") for entry in self.journal if entry.startswith("ack ")]

    @property
    def written(self) -> list[str]:
        return [(one.value or b"").decode() for one in self.wire.of("documents.stored")]

    @property
    def failures(self) -> list[DocumentEvent]:
        return [decode(one.value or b"", DocumentEvent) for one in self.wire.of("documents.events")]


def unreadable_record(_: Record) -> str:
    raise Poison("bad_json", "no JSON")


async def until(holds: Callable[[], object]) -> None:
    """Wait until it holds; what it looks at has no event of its own to wait for."""
    for _ in range(10_000):
        if holds():
            return
        await asyncio.sleep(0)
    raise AssertionError("still not so")


async def settled() -> None:
    """Everything that can go on has gone on."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.stage.RETRY_WAIT", wait_none())


class TestAcks:
    async def test_a_message_is_worked_on_written_confirmed_and_acked_in_this_order(self) -> None:
        bench = Bench()
        await bench.process("a", "b")
        assert bench.journal == [
            "work a b",
            "send documents.stored",
            "send documents.stored",
            "confirmed",
            "ack a",
            "ack b",
        ]
        assert bench.runner.in_hand == 0

    async def test_nothing_is_acked_before_its_writes_are_confirmed(self) -> None:
        bench = Bench()
        bench.wire.confirming.clear()
        bench.bulk.put("a")
        async with bench.running():
            await until(lambda: "send documents.stored" in bench.journal)
            await settled()
            assert bench.acked == []
            assert bench.runner.in_hand == 1
            bench.wire.confirming.set()
            await until(lambda: bench.acked == ["a"])

    async def test_writes_that_are_refused_end_the_worker_unacked(self) -> None:
        bench = Bench()
        bench.wire.failing = ConnectionError("no broker")
        with pytest.raises(ConnectionError):
            await bench.process("a", "b")
        assert bench.acked == []

    async def test_a_worker_that_is_stopped_in_its_work_acks_nothing_of_it(self) -> None:
        bench = Bench()
        bench.works.go.clear()
        bench.bulk.put("a")
        async with bench.running():
            await until(lambda: bench.journal == ["work a"])
        assert bench.journal == ["work a"]

    async def test_a_batch_is_full_at_its_messages(self) -> None:
        bench = Bench(batch_messages=2)
        await bench.process("a", "b", "c")
        assert [entry for entry in bench.journal if entry.startswith("work")] == ["work a b", "work c"]


class TestPoison:
    @pytest.mark.parametrize(
        ("value", "code"), [(UNREADABLE, "bad_json"), (POISON, "bad_vectors"), (LARGE, "record_too_large")]
    )
    @pytest.mark.parametrize("place", [0, 3, 6])
    async def test_what_cannot_be_processed_is_buried_and_its_neighbours_go_on(
        self, value: str, code: str, place: int
    ) -> None:
        bench = Bench()
        neighbours = list("abcdef")
        values = [*neighbours[:place], value, *neighbours[place:]]
        await bench.process(*values)
        assert bench.written == neighbours
        assert bench.acked == values
        [letter] = bench.wire.of("documents.dead")
        assert dict(letter.headers)["headrace.error.code"] == code.encode()
        [failure] = bench.failures
        assert failure.error is not None
        assert (failure.status, failure.stage, failure.error.code) == ("failed", "upsert-milvus", code)

    async def test_a_dead_letter_is_the_record_byte_for_byte_and_says_where_it_was(self) -> None:
        bench = Bench()
        await bench.process("a", POISON)
        [letter] = bench.wire.of("documents.dead")
        assert (letter.key, letter.value, letter.timestamp) == (b"default/poison", b"poison", ARRIVED_MS)
        assert letter.headers[0] == ("trace", b"\xff\x00")
        headers = dict(letter.headers)
        assert headers["headrace.error.stage"] == b"upsert-milvus"
        assert headers["headrace.error.message"] == b"they do not fit"
        assert headers["headrace.error.attempts"] == b"1"
        assert headers["__connect.errors.topic"] == b"documents.embeddings"
        assert headers["__connect.errors.partition"] == b"3"
        assert position(headers["kafka_dlt-original-offset"]) == 1

    async def test_a_record_too_large_for_a_dead_letter_is_buried_without_its_value_which_is_not_null(self) -> None:
        bench = Bench()
        large = POISON * (DEAD_MAX_BYTES // len(POISON))
        bench.runner.stage = replace(bench.runner.stage, decode=unreadable_record)
        await bench.process(large)
        [letter] = bench.wire.of("documents.dead")
        assert (letter.key, letter.value, letter.timestamp) == (None, b"", ARRIVED_MS)
        headers = dict(letter.headers)
        assert headers["headrace.error.left_out_bytes"] == str(len(large)).encode()
        assert headers["__connect.errors.topic"] == b"documents.embeddings"
        assert "trace" not in headers
        [event] = bench.wire.of("documents.events")
        assert (event.key, len(bench.failures)) == (None, 1)

    async def test_a_dead_letter_is_confirmed_before_the_record_is_acked(self) -> None:
        bench = Bench()
        await bench.process(UNREADABLE)
        assert bench.journal == ["send documents.dead", "send documents.events", "confirmed", "ack unreadable"]

    async def test_several_in_one_batch_are_found_by_halving(self) -> None:
        bench = Bench()
        await bench.process("a", POISON, "b", "c", "d", POISON, UNREADABLE, LARGE)
        assert bench.written == ["a", "b", "c", "d"]
        assert len(bench.wire.of("documents.dead")) == len(bench.failures) == 4
        assert len(bench.acked) == 8


class TestTransient:
    async def test_a_server_that_is_away_is_waited_for_and_nothing_is_acked_meanwhile(self) -> None:
        bench = Bench()
        bench.works.away = 3
        await bench.process("a", "b")
        assert bench.journal[:4] == ["work a b"] * 4
        assert bench.written == bench.acked == ["a", "b"]
        assert bench.wire.of("documents.dead") == []

    async def test_readiness_says_for_what_it_waits_and_since_when(self) -> None:
        bench = Bench()
        bench.works.away = 2
        seen = []
        bench.works.on_call = lambda: seen.append(bench.runner.waiting)
        await bench.process("a")
        assert seen[0] is None
        assert [(waiting.service, waiting.reason) for waiting in seen[1:]] == [("milvus", "milvus: no answer")] * 2
        assert seen[1].since == seen[2].since
        assert bench.runner.waiting is None

    async def test_a_worker_that_is_stopped_while_it_waits_acks_nothing(self) -> None:
        bench = Bench()
        bench.works.away = 10**9
        bench.bulk.put("a")
        async with bench.running():
            await until(lambda: bench.runner.waiting)
        assert bench.acked == []
        assert bench.runner.waiting is None


class TestBugs:
    async def test_everything_before_the_record_is_done_and_nothing_after_it(self) -> None:
        bench = Bench()
        with pytest.raises(Bug):
            await bench.process("a", "b", POISON, BUG, "c")
        assert bench.written == ["a", "b"]
        assert bench.acked == ["a", "b", POISON]
        assert len(bench.wire.of("documents.dead")) == 1

    async def test_the_crash_is_noted_at_the_record_after_what_came_before_is_committed(self) -> None:
        bench = Bench()
        with pytest.raises(Bug):
            await bench.process("a", BUG)
        assert bench.journal[-3:] == ["ack a", "commit", "note bug"]

    @pytest.mark.parametrize("crashes_before", [0, 1])
    async def test_twice_it_is_read_again(self, crashes_before: int) -> None:
        bench = Bench(crashes_before=crashes_before)
        with pytest.raises(Bug):
            await bench.process(BUG)
        assert bench.wire.sent == []

    async def test_the_third_time_it_is_buried_and_what_comes_after_goes_on(self) -> None:
        bench = Bench(crashes_before=2)
        await bench.process("a", BUG, "b", "c")
        assert bench.written == ["a", "b", "c"]
        assert bench.acked == ["a", BUG, "b", "c"]
        [letter] = bench.wire.of("documents.dead")
        headers = dict(letter.headers)
        assert headers["headrace.error.code"] == b"internal"
        assert headers["headrace.error.attempts"] == b"3"
        assert headers["headrace.error.message"] == b"Bug: division by zero"

    @pytest.mark.parametrize("crashes_before", [0, 2])
    async def test_what_comes_after_it_is_buried_once(self, crashes_before: int) -> None:
        bench = Bench(crashes_before=crashes_before)
        with suppress(Bug):
            await bench.process(BUG, UNREADABLE)
        letters = [letter.value for letter in bench.wire.of("documents.dead")]
        assert letters == ([b"bug", b"unreadable"] if crashes_before else [])


class TestMisconfigured:
    async def test_it_ends_the_worker_and_buries_nothing(self) -> None:
        bench = Bench(crashes_before=9)
        with pytest.raises(Misconfigured):
            await bench.process("a", MISFIT, "b")
        assert (bench.wire.sent, bench.acked) == ([], [])
        assert not any(entry.startswith("note") for entry in bench.journal)


class TestLanes:
    async def test_the_bulk_lane_waits_while_the_urgent_lane_has_something(self) -> None:
        bench = Bench(batch_messages=1)
        bench.works.go.clear()
        bench.urgent.put("u1", "u2")
        async with bench.running("urgent", "bulk"):
            await until(lambda: bench.journal == ["work u1"])
            bench.bulk.put("b1")
            await settled()
            bench.works.go.set()
            await until(lambda: len(bench.acked) == 3)
        assert bench.acked == ["u1", "u2", "b1"]

    async def test_the_bulk_lane_waits_while_the_urgent_lane_gathers_a_batch(self) -> None:
        bench = Bench(batch_messages=2)
        bench.runner.stage = replace(bench.runner.stage, linger_s=3600.0)
        bench.urgent.put("u1")
        async with bench.running("urgent", "bulk"):
            await until(lambda: bench.runner.in_hand == 1)
            bench.bulk.put("b1", "b2")
            await settled()
            assert bench.journal == []
            bench.urgent.put("u2")
            async with asyncio.timeout(30):
                while len(bench.acked) < 4:  # noqa: ASYNC110  a batch that lingers sleeps
                    await asyncio.sleep(0.001)
        assert bench.acked == ["u1", "u2", "b1", "b2"]

    async def test_an_urgent_message_waits_for_no_bulk_batch_and_the_next_one_waits_for_it(self) -> None:
        bench = Bench(batch_messages=1)
        bench.works.slow = {"b1": asyncio.Event(), "u1": asyncio.Event()}
        bench.bulk.put("b1", "b2")
        async with bench.running("urgent", "bulk"):
            await until(lambda: bench.journal == ["work b1"])
            bench.urgent.put("u1")
            await until(lambda: bench.journal == ["work b1", "work u1"])
            assert bench.runner.in_hand == 2
            bench.works.slow["b1"].set()
            await until(lambda: bench.acked == ["b1"])
            await settled()
            assert "work b2" not in bench.journal
            bench.works.slow["u1"].set()
            await until(lambda: len(bench.acked) == 3)
        assert bench.acked == ["b1", "u1", "b2"]


class TestBatchesInFlight:
    async def test_one_batch_of_a_lane_is_worked_on_at_a_time_unless_the_stage_says_more(self) -> None:
        bench = Bench(batch_messages=1)
        bench.works.go.clear()
        bench.bulk.put("b1", "b2")
        async with bench.running():
            await settled()
            assert bench.journal == ["work b1"]

    async def test_no_more_are_worked_on_at_once_than_the_stage_says(self) -> None:
        bench = Bench(batch_messages=1, in_flight=2)
        bench.works.slow = {"b1": asyncio.Event(), "b2": asyncio.Event()}
        bench.bulk.put("b1", "b2", "b3")
        async with bench.running():
            await settled()
            assert bench.journal == ["work b1", "work b2"]
            bench.works.slow["b1"].set()
            await until(lambda: bench.journal[-1] == "work b3")

    async def test_what_is_ready_first_is_written_and_acked_in_its_turn(self) -> None:
        bench = Bench(batch_messages=1, in_flight=3)
        bench.works.slow = {"b1": asyncio.Event()}
        bench.bulk.put("b1", "b2", "b3")
        async with bench.running():
            await until(lambda: bench.journal == ["work b1", "work b2", "work b3"])
            await settled()
            assert (bench.written, bench.acked) == ([], [])
            bench.works.slow["b1"].set()
            await until(lambda: len(bench.acked) == 3)
        assert bench.written == bench.acked == ["b1", "b2", "b3"]

    async def test_nothing_behind_what_breaks_the_worker_is_written(self) -> None:
        bench = Bench(batch_messages=1, in_flight=3)
        bench.works.slow = {BUG: asyncio.Event()}
        bench.bulk.put("b1", BUG, "b3")
        lane = asyncio.create_task(bench.runner.run_lane("bulk", bench.bulk))
        await until(lambda: bench.acked == ["b1"] and "work b3" in bench.journal)
        bench.works.slow[BUG].set()
        with pytest.raises(Bug):
            await lane
        assert bench.written == bench.acked == ["b1"]
        assert bench.runner.in_hand == 0

    async def test_what_waits_for_a_store_holds_up_what_is_behind_it_and_loses_nothing(self) -> None:
        bench = Bench(batch_messages=1, in_flight=2)
        bench.works.away = 3
        await bench.process("b1", "b2", "b3")
        assert bench.written == bench.acked == ["b1", "b2", "b3"]


async def test_who_wants_to_know_is_told_when_the_brokers_have_it_and_not_before() -> None:
    bench = Bench()
    bench.wire.confirming.clear()
    bench.bulk.put("a", "b")
    async with bench.running():
        await until(lambda: "send documents.stored" in bench.journal)
        await settled()
        assert bench.works.told == []
        bench.wire.confirming.set()
        await until(lambda: len(bench.acked) == 2)
    assert bench.works.told == ["a", "b"]


async def test_records_that_are_made_as_they_are_gone_through_are_made_and_checked_off_the_event_loop() -> None:
    class Made:
        by: ClassVar[list[threading.Thread]] = []

        def __iter__(self) -> Iterator[Outgoing]:
            self.by.append(threading.current_thread())
            yield Outgoing(topic="documents.stored", key=b"k", value=b"large" * RECORD_MAX_BYTES)

    async def work(batch: Sequence[Item[str]]) -> Iterable[Outgoing]:
        return Made()

    bench = Bench()
    bench.runner.stage = replace(bench.runner.stage, work=work)
    bench.bulk.put("a")
    async with bench.running(), asyncio.timeout(30):
        while not bench.acked:  # noqa: ASYNC110  it is a thread that does it
            await asyncio.sleep(0.001)
    assert [dict(letter.headers)["headrace.error.code"] for letter in bench.wire.of("documents.dead")] == [
        b"record_too_large"
    ]
    assert threading.main_thread() not in Made.by


async def test_nobody_is_told_of_what_the_brokers_refused() -> None:
    bench = Bench()
    bench.wire.failing = RuntimeError("refused")
    with pytest.raises(RuntimeError, match="refused"):
        await bench.process("a")
    assert bench.works.told == []


def unreadable(raw: bytes, *, first: int, last: int) -> UnreadableBatch:
    batch = UnreadableBatch(raw)
    batch.first, batch.last, batch.reason = first, last, "CorruptRecordException: a wrong CRC"
    return batch


async def bury(bench: Bench, batch: UnreadableBatch) -> Outgoing:
    """Its dead letter, when it came between two messages."""
    bench.bulk.put("before")
    bench.bulk.put_message(batch, offset=batch.last)
    await bench.process("after")
    [letter] = bench.wire.of("documents.dead")
    return letter


async def test_a_batch_that_cannot_be_read_is_dead_as_it_was_stored_and_what_is_around_it_goes_on() -> None:
    bench = Bench()
    letter = await bury(bench, unreadable(b"\x00raw", first=7, last=11))
    headers = dict(letter.headers)
    assert bench.written == ["before", "after"]
    assert len(bench.acked) == 3
    assert letter.value == b"\x00raw"
    assert headers["headrace.error.code"] == b"unreadable_batch"
    assert (headers["__connect.errors.offset"], headers["headrace.error.last_offset"]) == (b"7", b"11")
    assert position(headers["kafka_dlt-original-offset"] or b"") == 7
    assert not bench.failures, "nobody knows whose documents it held"


async def test_a_batch_that_cannot_be_read_and_is_too_large_to_keep_is_dead_without_its_bytes() -> None:
    letter = await bury(Bench(), unreadable(bytes(DEAD_MAX_BYTES), first=1, last=1))
    assert letter.value == b""
    headers = dict(letter.headers)
    assert headers["headrace.error.code"] == b"unreadable_batch"
    assert headers["headrace.error.last_offset"] == b"1"
    assert headers["headrace.error.left_out_bytes"] == str(DEAD_MAX_BYTES).encode()
