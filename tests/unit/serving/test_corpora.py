"""Another generation is answered from as soon as the record says so, and its encoder was loaded before."""

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from headrace.errors import Misconfigured, Transient
from headrace.serving import GenerationCorpora, corpora
from schemas import GenerationInfo, Generations

INFO = GenerationInfo(encoder={}, since=datetime(2026, 1, 1, tzinfo=UTC))
KNOWN = {"": INFO, "2": INFO}


class FakeCorpus:
    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()


class Bench:
    """The first generation is the deployment's own."""

    def __init__(self) -> None:
        self.record: Generations | None = Generations()
        self.own = FakeCorpus("")
        self.built: list[FakeCorpus] = []
        self.may_build = threading.Event()
        self.may_build.set()
        self.fails: Exception | None = None
        self.corpora = GenerationCorpora("", self.own, self.build, lambda: self.record)  # type: ignore[arg-type]

    def build(self, name: str, _info: GenerationInfo) -> Any:
        assert self.may_build.wait(10)
        if self.fails is not None:
            raise self.fails
        self.built.append(FakeCorpus(name))
        return self.built[-1]

    def says(self, **said: Any) -> Generations:
        self.record = Generations(**said)
        self.corpora.follow(self.record)
        return self.record

    async def live(self) -> str:
        found: Any = await asyncio.wait_for(self.corpora.live(), 10)
        return found.name  # type: ignore[no-any-return]


async def until(holds: Callable[[], object]) -> None:
    """Wait until it holds; what it looks at has no event of its own to wait for."""
    for _ in range(10_000):
        if holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never held")


async def test_without_a_record_the_deployments_own_is_live() -> None:
    assert await Bench().live() == ""


async def test_what_is_known_is_loaded_once_before_it_is_live() -> None:
    bench = Bench()
    bench.says(known=KNOWN)
    assert await bench.live() == ""
    await until(lambda: bench.built)
    bench.says(known=KNOWN, live="2")
    assert await bench.live() == "2"
    bench.says(known=KNOWN, live="")
    assert await bench.live() == ""
    assert [corpus.name for corpus in bench.built] == ["2"]


async def test_questions_wait_for_one_that_is_live_before_it_is_loaded() -> None:
    bench = Bench()
    bench.may_build.clear()
    record = bench.says(known=KNOWN, live="2")
    asked = asyncio.create_task(bench.live())
    await asyncio.sleep(3 * corpora.POLL_S)
    assert not asked.done()
    missing = bench.corpora.missing(record)
    assert missing is not None
    assert missing[0] == "its encoder is being loaded"
    bench.may_build.set()
    assert await asked == "2"
    assert bench.corpora.missing(record) is None


async def test_questions_wait_while_nobody_knows_what_is_live() -> None:
    bench = Bench()
    bench.record = None
    asked = asyncio.create_task(bench.live())
    await asyncio.sleep(3 * corpora.POLL_S)
    assert not asked.done()
    bench.record = Generations()
    assert await asked == ""


async def test_one_that_can_not_be_loaded_is_said_to_be_away_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "TRY_AGAIN_S", 0.2)
    bench = Bench()
    bench.fails = Misconfigured("no such model")
    record = bench.says(known=KNOWN, live="2")
    with pytest.raises(Transient, match="no such model"):
        await bench.live()
    assert "no such model" in str(bench.corpora.missing(record))
    bench.fails = None
    await until(lambda: bench.built)
    assert await bench.live() == "2"


async def test_one_that_is_known_no_more_is_let_go_and_the_own_one_never_is() -> None:
    bench = Bench()
    bench.says(known=KNOWN)
    await until(lambda: bench.built)
    bench.says(known=KNOWN, live="2")
    await bench.live()
    bench.says(known={"": INFO}, live="2")
    assert not bench.built[0].closed.is_set(), "it is live"
    bench.says(known={}, live="")
    assert bench.built[0].closed.is_set()
    assert not bench.own.closed.is_set()
    assert await bench.live() == ""


async def test_at_the_start_the_live_one_is_there_before_anything_is_taken() -> None:
    bench = Bench()
    bench.record = Generations(known=KNOWN, live="2")
    bench.corpora.load_live(bench.record)
    assert await bench.live() == "2"
    with pytest.raises(Misconfigured, match="generation 3"):
        bench.corpora.load_live(Generations(known=KNOWN, live="3"))
