"""Another generation is answered from as soon as the record says so, and its encoder was loaded before."""

import asyncio
import threading
import weakref
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from headrace.errors import Misconfigured, Transient
from headrace.retrieval import Retriever
from headrace.retrieval.settings import RetrievalSettings
from headrace.serving import Corpus, GenerationCorpora, corpora
from schemas import GenerationInfo, Generations, Query
from tests.fakes.encoder import FakeEncoder
from tests.fakes.stores import FakeTextStore, FakeVectorStore

INFO = GenerationInfo(encoder={}, since=datetime(2026, 1, 1, tzinfo=UTC))
ANOTHER = GenerationInfo(encoder={"backend": "static"}, since=INFO.since)
KNOWN = {"": INFO, "2": INFO}


class FakeCorpus:
    def __init__(self, name: str, encoder: dict[str, Any]) -> None:
        self.name = name
        self.encoder = encoder


def fake(name: str, info: GenerationInfo) -> FakeCorpus:
    return FakeCorpus(name, info.encoder)


def real(_name: str, _info: GenerationInfo) -> Corpus:
    return Corpus(Retriever(FakeVectorStore(), FakeTextStore(), RetrievalSettings()), FakeEncoder())


class Bench:
    """The first generation is the deployment's own."""

    def __init__(self, make: Callable[[str, GenerationInfo], Any] = fake) -> None:
        self.record: Generations | None = Generations()
        self.make = make
        self.own = FakeCorpus("", {})
        self.built: list[str] = []
        self.may_build = threading.Event()
        self.may_build.set()
        self.fails: Exception | None = None
        self.corpora = GenerationCorpora("", self.own, self.build, lambda: self.record)  # type: ignore[arg-type]

    def build(self, name: str, info: GenerationInfo) -> Any:
        assert self.may_build.wait(10)
        if self.fails is not None:
            raise self.fails
        self.built.append(name)
        return self.make(name, info)

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
    assert bench.built == ["2"]


async def test_while_one_that_is_live_is_loaded_questions_are_told_so_at_once() -> None:
    bench = Bench()
    bench.may_build.clear()
    record = bench.says(known=KNOWN, live="2")
    with pytest.raises(Transient, match="generation 2: its encoder is being loaded"):
        await bench.live()
    missing = bench.corpora.missing(record)
    assert missing is not None
    assert missing[0] == "its encoder is being loaded"
    bench.may_build.set()
    await until(lambda: bench.corpora.missing(record) is None)
    assert await bench.live() == "2"


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
    await until(lambda: "no such model" in str(bench.corpora.missing(record)))
    with pytest.raises(Transient, match="no such model"):
        await bench.live()
    bench.fails = None
    await until(lambda: bench.corpora.missing(record) is None)
    assert await bench.live() == "2"


async def test_one_that_is_known_no_more_is_let_go_and_the_own_one_never_is() -> None:
    bench = Bench()
    record = bench.says(known=KNOWN, live="2")
    await until(lambda: bench.corpora.missing(record) is None)
    loaded: Any = weakref.ref(await bench.corpora.live())
    bench.says(known={"": INFO}, live="2")
    assert loaded() is not None, "it is live"
    bench.says(known={}, live="")
    await until(lambda: loaded() is None)
    assert await bench.live() == ""


async def test_a_question_ends_in_the_generation_in_which_it_began_and_then_its_threads_end() -> None:
    bench = Bench(real)
    before = set(threading.enumerate())
    record = bench.says(known=KNOWN, live="2")
    await until(lambda: bench.corpora.missing(record) is None)
    corpus: Corpus | None = await bench.corpora.live()
    assert corpus is not None
    vector = await corpus.embedder.embed("sluice")
    bench.says(live="")
    found = await corpus.retriever.search(Query(query="sluice"), vector)
    assert (found.hits, found.degraded) == ([], [])
    del corpus
    await until(lambda: set(threading.enumerate()) <= before)


async def test_a_number_that_has_another_encoder_now_is_loaded_anew() -> None:
    bench = Bench()
    record = bench.says(known=KNOWN, live="2")
    await until(lambda: bench.corpora.missing(record) is None)
    bench.may_build.clear()
    record = bench.says(known={"": INFO, "2": ANOTHER}, live="2")
    with pytest.raises(Transient, match="being loaded"):
        await bench.live()
    bench.may_build.set()
    await until(lambda: bench.corpora.missing(record) is None)
    assert vars(await bench.corpora.live()) == {"name": "2", "encoder": ANOTHER.encoder}


async def test_what_was_loaded_at_the_start_is_loaded_anew_when_its_encoder_is_another_by_then() -> None:
    bench = Bench()
    bench.corpora.load_live(Generations(known=KNOWN, live="2"))
    record = bench.says(known={"": INFO, "2": ANOTHER}, live="2")
    await until(lambda: bench.corpora.missing(record) is None)
    assert vars(await bench.corpora.live()) == {"name": "2", "encoder": ANOTHER.encoder}


async def test_what_was_loaded_of_an_encoder_that_is_wanted_no_more_answers_nothing() -> None:
    bench = Bench()
    bench.may_build.clear()
    bench.says(known=KNOWN, live="2")
    record = bench.says(known={"": INFO, "2": ANOTHER}, live="2")
    bench.may_build.set()
    await until(lambda: bench.corpora.missing(record) is None)
    assert bench.built == ["2", "2"]
    assert vars(await bench.corpora.live()) == {"name": "2", "encoder": ANOTHER.encoder}


async def test_at_the_start_the_live_one_is_there_before_anything_is_taken() -> None:
    bench = Bench()
    bench.record = Generations(known=KNOWN, live="2")
    bench.corpora.load_live(bench.record)
    assert await bench.live() == "2"
    with pytest.raises(Misconfigured, match="generation 3"):
        bench.corpora.load_live(Generations(known=KNOWN, live="3"))
