"""The whole way: hits, prompt, SDK, wire, checked answer."""

from collections.abc import Callable

import pytest

from headrace.errors import Transient
from headrace.llm import LanguageModel, answer
from headrace.llm.settings import LLMSettings
from schemas import AnswerText, Hit, HitScores
from tests.fakes.providers import MODEL, Cut, Providers, Reply

Models = Callable[..., LanguageModel]
TEXTS = ["The headrace leads water to the turbine. It is long.", "The tailrace leads water away from it. It is short."]
HITS = [
    Hit(
        rank=n, score=1 / n, doc_id=f"d{n}", chunk_id=f"c{n}", ordinal=0, version=1, text=text, start=0, end=len(text),
        scores=HitScores(dense=0.5 / n),
    )
    for n, text in enumerate(TEXTS, 1)
]  # fmt: skip
SETTINGS = LLMSettings(provider="openai", model=MODEL, base_url="http://unused")


async def asked(model: LanguageModel, hits: list[Hit] = HITS, **settings: object) -> tuple[list[str], AnswerText]:
    chosen = SETTINGS.model_copy(update=settings)
    came = [piece async for piece in answer("What leads water?", hits, model, chosen, timeout_s=30)]
    await model.close()
    *shown, whole = came
    assert isinstance(whole, AnswerText)
    assert "".join(str(piece) for piece in shown) == whole.text
    return [str(piece) for piece in shown], whole


async def test_an_answer_cites_the_sentences_that_it_quotes(server: Providers, model_of: Models) -> None:
    shown, whole = await asked(model_of())
    assert whole.text == (
        'According to the source, "The headrace leads water to the turbine." [1] The tailrace leads water away from it. [2]'
    )
    assert [(one.marker, one.doc_id, one.chunk_id) for one in whole.citations] == [
        ("[1]", "d1", "c1"),
        ("[2]", "d2", "c2"),
    ]
    first, second = whole.citations
    assert TEXTS[0][first.start : first.end] == "The headrace leads water to the turbine"
    assert TEXTS[1][second.start : second.end] == TEXTS[1]
    assert whole.known
    assert whole.model == MODEL
    assert whole.usage is not None
    assert whole.usage.output_tokens > 0
    assert len(shown) >= 2


async def test_without_anything_near_enough_the_model_is_not_asked(server: Providers, model_of: Models) -> None:
    shown, whole = await asked(model_of(), min_relevance=0.6, unknown_text="No idea.")
    assert whole == AnswerText(text="No idea.", citations=[], model=MODEL, known=False)
    assert shown == ["No idea."]
    assert server.asked == []


async def test_near_enough_is_asked(server: Providers, model_of: Models) -> None:
    _, whole = await asked(model_of(), min_relevance=0.5)
    assert whole.known


async def test_without_hits_the_model_is_not_asked(server: Providers, model_of: Models) -> None:
    _, whole = await asked(model_of(), hits=[])
    assert not whole.known
    assert server.asked == []


async def test_without_cosines_the_model_is_asked(server: Providers, model_of: Models) -> None:
    away = [Hit(rank=1, score=1, doc_id="d", chunk_id="c", ordinal=0, version=1, text=TEXTS[0], start=0, end=52)]
    _, whole = await asked(model_of(), hits=away, min_relevance=0.9)
    assert whole.known


async def test_a_model_that_does_not_know_says_so_in_the_deployments_words(server: Providers, model_of: Models) -> None:
    server.script.append(Reply(["NOT_IN", "_SOURCES", ". The sources are about water."]))
    _, whole = await asked(model_of())
    assert (whole.text, whole.known, whole.citations) == (SETTINGS.unknown_text, False, [])
    assert whole.usage is not None


async def test_a_stream_that_is_cut_is_no_answer(server: Providers, model_of: Models) -> None:
    server.script.append(Cut(["It leads water [1]. ", "It is ", "long"], after=2))
    shown = []
    model = model_of()

    async def hear() -> None:
        async for piece in answer("What?", HITS, model, SETTINGS, timeout_s=30):
            shown.append(piece)

    with pytest.raises(Transient) as raised:
        await hear()
    await model.close()
    assert raised.value.service == "llm"
    assert shown == ["It leads water [1]."]
