"""What a worker may do as the record of generations says: begin, tell, and take no more than its rate."""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from agents import generations
from agents.generations import DocumentStanding, QueryStanding
from agents.stage import Item, Outgoing, Stage, StageRunner
from headrace.errors import Misconfigured
from headrace.serving import GenerationCorpora
from schemas import GenerationInfo, Generations
from tests.fakes.wire import FakeSource, FakeWire
from topics import Names


class FakeWatch:
    """Says what a test wants to be read; None is a reading that is too old."""

    def __init__(self, record: Generations | None = None) -> None:
        self.record = record
        self.away: tuple[str, float] | None = None

    def start(self) -> Generations:
        return self.record or Generations()

    def fresh(self) -> Generations | None:
        return self.record

    def follow(self, listener: Callable[[Generations], None]) -> None:
        listener(self.record or Generations())


def standing(
    stage: str, generation: str = "2", *, rate: float = 0.0, **said: Any
) -> tuple[DocumentStanding, FakeWatch]:
    watch = FakeWatch(Generations(**said))
    return DocumentStanding(stage, Names("p.", generation=generation), watch, rate=rate), watch


async def is_waiting(task: asyncio.Task[Any]) -> bool:
    """After it has had every chance to end."""
    for _ in range(10):
        await asyncio.sleep(generations.POLL_S / 2)
    return not task.done()


async def until(holds: Callable[[], object]) -> None:
    """Wait until it holds; what it looks at has no event of its own to wait for."""
    for _ in range(10_000):
        if holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never held")


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generations, "POLL_S", 0.001)


class TestTelling:
    @pytest.mark.parametrize(
        ("generation", "telling", "goes_to"),
        [
            ("", "", "p.documents.events"),
            ("2", "", "p.documents.events.g2"),
            ("2", "2", "p.documents.events"),
            ("", "2", "p.documents.events.g1"),
            ("", None, "p.documents.events.g1"),
            ("2", None, "p.documents.events.g2"),
        ],
    )
    async def test_only_the_generation_that_tells_writes_where_everybody_reads(
        self, generation: str, telling: str | None, goes_to: str
    ) -> None:
        own, _ = standing("embed", generation, telling=telling)
        assert await own.topic("documents.events") == goes_to
        assert await own.topic("documents.dead") == goes_to.replace("events", "dead")

    async def test_every_other_topic_is_known_without_the_record(self) -> None:
        own, watch = standing("embed")
        watch.record = None
        assert await own.topic("documents.embeddings") == "p.documents.embeddings.g2"

    async def test_what_was_read_too_long_ago_is_not_gone_by(self) -> None:
        own, watch = standing("embed")
        watch.record, watch.away = None, ("no answer", time.monotonic())
        asked = asyncio.create_task(own.topic("documents.events"))
        assert await is_waiting(asked)
        assert own.waiting is not None
        assert (own.waiting.service, own.waiting.reason) == (
            "kafka",
            "documents.generations was not read in time: no answer",
        )
        watch.record = Generations(telling="2")
        assert await asked == "p.documents.events"
        assert own.waiting is None


class TestHold:
    async def test_commit_of_a_held_generation_begins_nothing_and_says_so(self) -> None:
        own, watch = standing("commit", held=["2"])
        begun = asyncio.create_task(own.let_in(5))
        assert await is_waiting(begun)
        assert own.waiting is not None
        assert own.waiting.service == "headrace reindex"
        watch.record = Generations()
        await begun
        assert own.waiting is None

    async def test_commit_waits_for_a_fresh_reading_before_it_begins(self) -> None:
        own, watch = standing("commit")
        watch.record = None
        begun = asyncio.create_task(own.let_in(5))
        assert await is_waiting(begun)
        watch.record = Generations(held=["2"])
        assert await is_waiting(begun)
        watch.record = Generations(held=[""])
        await begun

    @pytest.mark.parametrize("stage", ["chunk", "embed", "upsert-milvus", "upsert-opensearch"])
    async def test_other_stages_go_on_while_their_generation_is_held(self, stage: str) -> None:
        own, watch = standing(stage, held=["2"])
        await own.let_in(5)
        watch.record = None
        await own.let_in(5)


class TestRate:
    def at(self, monkeypatch: pytest.MonkeyPatch, now: list[float]) -> None:
        async def sleep(seconds: float) -> None:
            now[0] += seconds

        monkeypatch.setattr(generations, "_now", lambda: now[0])
        monkeypatch.setattr(asyncio, "sleep", sleep)

    async def test_chunk_takes_no_more_than_the_rate_while_another_generation_is_live(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [100.0]
        self.at(monkeypatch, now)
        own, _ = standing("chunk", rate=10.0)
        begun = []
        for messages in (20, 10, 10, 1):
            await own.let_in(messages)
            begun.append(now[0])
        assert begun == pytest.approx([100.0, 102.0, 103.0, 104.0], abs=0.01)

    @pytest.mark.parametrize(("stage", "rate", "live"), [("chunk", 10.0, "2"), ("chunk", 0.0, ""), ("embed", 10.0, "")])
    async def test_nobody_else_is_slowed(
        self, monkeypatch: pytest.MonkeyPatch, stage: str, rate: float, live: str
    ) -> None:
        now = [100.0]
        self.at(monkeypatch, now)
        own, _ = standing(stage, rate=rate, live=live)
        for _ in range(5):
            await own.let_in(1000)
        assert now == [100.0]


def test_a_batch_is_not_begun_before_it_is_let_in_and_waiting_is_no_standstill() -> None:
    journal: list[str] = []

    async def work(batch: Sequence[Item[bytes]]) -> list[Outgoing]:
        journal.append("work")
        return []

    own, watch = standing("commit", held=["2"])
    stage = Stage(name="commit", decode=lambda record: record.value or b"", work=work, batch_messages=9, batch_bytes=9)
    runner = StageRunner(stage, FakeWire(journal), gate=own)

    async def run() -> None:
        source = FakeSource(journal)
        source.put("a")
        lane = asyncio.create_task(runner.run_lane("bulk", source))
        await until(lambda: runner.waiting is not None)
        assert (journal, runner.in_hand) == ([], 1)
        watch.record = Generations()
        await until(lambda: not runner.in_hand)
        assert journal == ["work", "confirmed", "ack a"]
        assert runner.waiting is None
        lane.cancel()
        await asyncio.gather(lane, return_exceptions=True)

    asyncio.run(run())


class TestQuery:
    def query(self, watch: FakeWatch) -> QueryStanding:
        corpora = GenerationCorpora("", object(), lambda *_: object(), watch.fresh)  # type: ignore[arg-type]
        return QueryStanding(Names("p.", generation="2"), watch, corpora)

    async def test_it_is_of_no_generation(self) -> None:
        own = self.query(FakeWatch(Generations(telling=None, held=["2", ""])))
        await own.let_in(1)
        assert await own.topic("documents.dead") == "p.documents.dead"

    def test_it_says_what_it_waits_for(self) -> None:
        watch = FakeWatch(Generations())
        own = self.query(watch)
        own.start()
        assert own.waiting is None
        watch.record = None
        assert own.waiting is not None
        assert own.waiting.service == "kafka"

    def test_a_generation_that_comes_while_the_first_model_is_loaded_is_loaded_too(self) -> None:
        info = GenerationInfo(encoder={}, since=datetime(2026, 1, 1, tzinfo=UTC))
        watch = FakeWatch(Generations(live="2", known={"2": info}))
        built: list[str] = []

        def build(name: str, _: GenerationInfo) -> Any:
            built.append(name)
            watch.record = Generations(live="2", known={"2": info, "3": info})
            return object()

        corpora = GenerationCorpora("", object(), build, watch.fresh)  # type: ignore[arg-type]
        QueryStanding(Names(), watch, corpora).start()
        asyncio.run(until(lambda: built == ["2", "3"]))

    def test_it_refuses_to_start_where_it_can_not_know_what_is_live(self) -> None:
        own = self.query(FakeWatch(Generations(live="3")))
        with pytest.raises(Misconfigured, match="generation 3"):
            own.start()
