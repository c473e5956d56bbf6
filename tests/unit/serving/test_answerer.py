"""What becomes of a question on its way, with a language model that does as it is told."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from headrace.auth import Denied
from headrace.errors import Transient
from headrace.llm import CallFailed, Prompt, Refused
from headrace.llm.settings import LLMSettings
from headrace.retrieval import Found
from headrace.retrieval.settings import RetrievalSettings
from headrace.serving import Answerer, Corpus, OneCorpus, Question
from headrace.serving.settings import QuerySettings, RateSettings
from schemas import Answer, Hit, HitScores, Query, Usage
from tests.fakes.encoder import FakeEncoder

TEXT = "The sluice opens at six in the morning."
HIT = Hit(
    rank=1,
    score=1.0,
    doc_id="sluice",
    chunk_id="c-0",
    ordinal=0,
    version=1,
    text=TEXT,
    start=0,
    end=len(TEXT),
    scores=HitScores(dense=0.6),
)


@dataclass
class Retrieving:
    """A retriever that finds one hit."""

    hits: list[Hit] = field(default_factory=lambda: [HIT])
    searched: int = 0
    failing: Exception | None = None
    live: bool = True

    async def search(self, query: Query, vector: Any) -> Found:
        self.searched += 1
        if self.failing is not None:
            raise self.failing
        return Found(hits=self.hits)

    async def are_live(self, tenant: str, hits: list[Hit]) -> bool:
        return self.live


@dataclass
class Model:
    """Writes its pieces, then fails or ends."""

    pieces: list[str] = field(default_factory=lambda: ["It opens at six [1]."])
    failing: Exception | None = None
    asked: list[float] = field(default_factory=list)
    name: str = "model"

    async def stream(self, prompt: Prompt, *, timeout_s: float) -> AsyncIterator[str | Usage]:
        self.asked.append(timeout_s)
        for piece in self.pieces:
            yield piece
        if self.failing is not None:
            raise self.failing
        yield Usage(input_tokens=1, output_tokens=1)

    async def close(self) -> None:
        pass


@dataclass
class Listening:
    told: list[str] = field(default_factory=list)

    async def hits(self, answer: Answer) -> None:
        self.told.append("hits")

    async def text(self, piece: str) -> None:
        self.told.append(piece)

    def begin_again(self) -> None:
        self.told.append("again")


class Doorman:
    """An authenticator that lets nobody in."""

    def check(self, authorization: bytes | None, *, tenant: str, scope: str, at_ms: int | None = None) -> None:
        raise Denied("forbidden", f"{authorization!r} may not {scope} as {tenant}")


class Bench:
    def __init__(self, **settings: Any) -> None:
        self.retriever, self.model, self.encoder = Retrieving(), Model(), FakeEncoder()
        self.listening = Listening()
        known: dict[str, Any] = {
            "model": self.model,
            "authenticator": None,
            "retrieval": RetrievalSettings(breaker_failures=3, breaker_reset_s=3600),
            "llm": LLMSettings(provider="openai", model="model", api_key="key", timeout_s=40),  # type: ignore[arg-type]
            "settings": QuerySettings(),
        }
        corpus = Corpus(self.retriever, self.encoder)  # type: ignore[arg-type]
        self.answerer = Answerer(corpora=OneCorpus(corpus), **(known | settings))

    async def ask(self, *, seconds: float = 60, **query: Any) -> Answer:
        asked = Query(**({"query": "When does it open?", "mode": "answer"} | query))
        return await self.answerer.answer(Question(query=asked, seconds=seconds), self.listening)


async def test_the_hits_are_told_before_the_text_and_the_whole_is_what_was_told() -> None:
    bench = Bench()
    answer = await bench.ask()
    assert answer.answer is not None
    assert bench.listening.told == ["hits", answer.answer.text]
    assert (answer.degraded, answer.answer.model) == ([], "model")


async def test_a_search_asks_no_model() -> None:
    bench = Bench()
    answer = await bench.ask(mode="search")
    assert (answer.hits, answer.answer, bench.model.asked) == ([HIT], None, [])


async def test_a_model_that_breaks_off_is_followed_by_sentences_of_the_hits() -> None:
    bench = Bench()
    bench.model.pieces, bench.model.failing = ["It opens. ", "At "], CallFailed("broken", "cut")
    answer = await bench.ask()
    assert answer.answer is not None
    assert bench.listening.told == ["hits", "It opens.", "again"]
    assert (answer.degraded, answer.answer.text) == (["llm"], f"{TEXT} [1]")


@pytest.mark.parametrize("failure", [CallFailed("away", "nobody listens"), Refused("no such key")])
async def test_a_model_that_fails_again_and_again_is_not_asked_for_a_while(failure: CallFailed) -> None:
    bench = Bench()
    bench.model.failing = failure
    for _ in range(5):
        assert (await bench.ask()).degraded == ["llm"]
    assert len(bench.model.asked) == 3


@pytest.mark.parametrize("failure", [CallFailed("withheld", "not this one"), CallFailed("busy", "no turn")])
async def test_what_says_nothing_of_the_server_does_not_keep_others_from_it(failure: CallFailed) -> None:
    bench = Bench()
    bench.model.failing = failure
    for _ in range(5):
        assert (await bench.ask()).degraded == ["llm"]
    assert len(bench.model.asked) == 5


async def test_the_model_gets_what_time_there_is_and_leaves_some_for_the_rest() -> None:
    bench = Bench()
    bench.model.failing = CallFailed("timeout", "too slow")
    for seconds in (60.0, 8.0, 8.0, 8.0, 8.0):
        assert (await bench.ask(seconds=seconds)).error is None
    whole, *shorter = bench.model.asked
    assert whole == 40
    assert all(5 < given <= 6 for given in shorter)
    # That it was too slow for a question in a hurry says nothing of the server.
    assert len(shorter) == 4


async def test_without_anything_near_enough_nobody_is_asked_and_nothing_is_claimed() -> None:
    llm = LLMSettings(provider="openai", model="model", api_key="key", min_relevance=0.7)  # type: ignore[arg-type]
    for model in (Model(), None):
        bench = Bench(llm=llm, model=model)
        answer = (await bench.ask()).answer
        assert answer is not None
        assert (answer.known, answer.citations, answer.text) == (False, [], llm.unknown_text)
        assert answer.model == ("model" if model else "extractive")


async def test_a_question_without_time_costs_nothing() -> None:
    bench = Bench()
    answer = await bench.ask(seconds=0)
    assert answer.error is not None
    assert (answer.error.code, bench.encoder.calls, bench.retriever.searched) == ("deadline_exceeded", [], 0)


async def test_who_may_not_ask_is_told_so_before_anything_is_done() -> None:
    bench = Bench(authenticator=Doorman(), settings=QuerySettings(rate=RateSettings(per_second=1, burst=1)))
    for _ in range(3):
        answer = await bench.ask()
        assert answer.error is not None
        assert answer.error.code == "forbidden"
    assert (bench.encoder.calls, bench.retriever.searched) == ([], 0)


async def test_a_question_that_cannot_be_understood_takes_no_token() -> None:
    bench = Bench(settings=QuerySettings(rate=RateSettings(per_second=0.001, burst=1)))
    codes = [
        answer.error and answer.error.code
        for answer in [await bench.ask(filters={"colour": "red"}), await bench.ask(), await bench.ask()]
    ]
    assert codes == ["bad_request", None, "rate_limited"]


@pytest.mark.parametrize(
    ("failing", "code", "again"),
    [(Transient("opensearch", "away"), "unavailable", True), (ValueError("a bug"), "internal", False)],
)
async def test_what_goes_wrong_is_told_by_a_code_and_a_bug_by_nothing_else(
    failing: Exception, code: str, again: bool
) -> None:
    bench = Bench()
    bench.retriever.failing = failing
    answer = await bench.ask(request_id="r")
    assert answer.error is not None
    assert (answer.request_id, answer.error.code, answer.error.retry_after_ms is not None) == ("r", code, again)
    assert "a bug" not in answer.error.message


async def test_a_repeated_request_is_not_told_in_pieces() -> None:
    bench = Bench()
    first = await bench.ask(request_id="r")
    bench.listening.told.clear()
    assert await bench.ask(request_id="r", stream=True) == first
    assert bench.listening.told == []


async def test_a_repeated_request_shows_nothing_that_was_deleted_since() -> None:
    bench = Bench()
    await bench.ask(request_id="r")
    bench.retriever.hits, bench.retriever.live = [], False
    again = await bench.ask(request_id="r")
    assert again.hits == []
    assert bench.retriever.searched == 2
