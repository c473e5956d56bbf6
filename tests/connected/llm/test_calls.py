"""Both official SDKs over HTTP, against a local server that speaks the providers' wire formats."""

import asyncio
import email.utils
import logging
import time
import traceback
from collections.abc import Callable
from contextlib import aclosing

import pytest
from prometheus_client import REGISTRY

from headrace.errors import Transient
from headrace.llm import CallFailed, LanguageModel, Prompt, Refused
from schemas import Usage
from tests.fakes.providers import KEY, MODEL, Cut, Endless, GivesUp, Malformed, Providers, Reply, Silent, Status

Models = Callable[..., LanguageModel]
QUICK = {"max_retries": 0}
PIECES = ["The headrace ", "leads ", "water [1]."]


async def pieces(model: LanguageModel, prompt: Prompt, timeout_s: float = 30) -> tuple[list[str], Usage]:
    """What it wrote and its account, which comes last and once."""
    async with aclosing(model.stream(prompt, timeout_s=timeout_s)) as stream:
        came = [piece async for piece in stream]
    await model.close()
    *texts, usage = came
    assert isinstance(usage, Usage)
    assert all(isinstance(text, str) for text in texts)
    return [str(text) for text in texts], usage


async def failed(model: LanguageModel, prompt: Prompt, timeout_s: float = 30) -> tuple[list[str], CallFailed]:
    """What was written before it failed, and how."""
    texts: list[str] = []

    async def hear() -> None:
        async for piece in model.stream(prompt, timeout_s=timeout_s):
            texts.append(str(piece))

    with pytest.raises(CallFailed) as raised:
        await hear()
    await model.close()
    assert isinstance(raised.value, Transient)
    assert raised.value.service == "llm"
    return texts, raised.value


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, {"model": MODEL} | labels) or 0.0


@pytest.mark.parametrize("streaming", [True, False])
async def test_an_answer_comes_whole_and_then_what_it_took(
    server: Providers, model_of: Models, prompt: Prompt, *, streaming: bool
) -> None:
    server.script.append(Reply(PIECES))
    texts, usage = await pieces(model_of(streaming=streaming, input_price=3, output_price=15), prompt)
    assert "".join(texts) == "".join(PIECES)
    read = len(prompt.system.split()) + len(prompt.user.split())
    assert usage == Usage(input_tokens=read, output_tokens=5, cost=pytest.approx((3 * read + 15 * 5) / 1e6))
    [asked] = server.asked
    assert prompt.system in asked.prompt
    assert prompt.user in asked.prompt
    assert asked.body.get("stream", False) is streaming


async def test_pieces_come_as_they_are_written(server: Providers, model_of: Models, prompt: Prompt) -> None:
    server.script.append(Reply(PIECES))
    texts, _ = await pieces(model_of(), prompt)
    assert texts == PIECES


async def test_limits_and_temperature_are_sent(
    server: Providers, model_of: Models, prompt: Prompt, provider: str
) -> None:
    await pieces(model_of(max_output_tokens=77, temperature=0.25), prompt)
    assert server.asked[0].body["max_tokens"] == 77
    assert server.asked[0].body["temperature"] == 0.25
    await pieces(model_of(output_limit_field="max_completion_tokens"), prompt)
    assert "temperature" not in server.asked[1].body
    assert ("max_completion_tokens" in server.asked[1].body) == (provider == "openai")


@pytest.mark.parametrize(
    "header", [lambda: {"retry-after": "1"}, lambda: {"retry-after-ms": "700"}], ids=["seconds", "milliseconds"]
)
async def test_a_server_at_its_limits_is_asked_again_when_it_says(
    server: Providers, model_of: Models, prompt: Prompt, header: Callable[[], dict[str, str]]
) -> None:
    server.script += [Status(429, header()), Reply(PIECES)]
    texts, _ = await pieces(model_of(), prompt)
    assert texts == PIECES
    first, second = server.asked
    least = float(header().get("retry-after", 0)) or float(header()["retry-after-ms"]) / 1000
    assert second.at - first.at >= least


async def test_a_server_that_names_a_date_is_asked_again_then(
    server: Providers, model_of: Models, prompt: Prompt
) -> None:
    date = int(time.time()) + 2
    server.script += [Status(503, {"retry-after": email.utils.formatdate(date, usegmt=True)}), Reply(PIECES)]
    await pieces(model_of(), prompt)
    assert time.time() >= date - 0.1
    assert len(server.asked) == 2


@pytest.mark.parametrize("header", [{"retry-after": "3600"}, {"retry-after-ms": "20000"}])
async def test_a_server_that_asks_for_too_long_a_wait_is_not_waited_for(
    server: Providers, model_of: Models, prompt: Prompt, header: dict[str, str]
) -> None:
    server.script.append(Status(429, header))
    _, error = await failed(model_of(), prompt)
    assert error.outcome == "rate_limited"
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [500, 503, 529])
async def test_a_server_in_trouble_is_asked_as_often_as_is_set(
    server: Providers, model_of: Models, prompt: Prompt, status: int
) -> None:
    server.script += [Status(status, {"retry-after-ms": "1"})] * 3
    _, error = await failed(model_of(max_retries=2), prompt)
    assert error.outcome == "away"
    assert len(server.asked) == 3


async def test_a_server_that_recovers_answers(server: Providers, model_of: Models, prompt: Prompt) -> None:
    server.script += [Status(500), Status(502, body="<html>Bad Gateway</html>"), Reply(PIECES)]
    texts, _ = await pieces(model_of(), prompt)
    assert texts == PIECES


async def test_nobody_listens(server: Providers, model_of: Models, prompt: Prompt) -> None:
    model = model_of(base_url="http://127.0.0.1:9", max_retries=1)
    _, error = await failed(model, prompt)
    assert error.outcome == "away"


@pytest.mark.parametrize("behaviour", [Cut(PIECES, after=2), Endless(PIECES, after=2), GivesUp(PIECES, after=2)])
async def test_half_an_answer_is_none_and_is_not_asked_for_again(
    server: Providers, model_of: Models, prompt: Prompt, behaviour: Reply
) -> None:
    server.script.append(behaviour)
    texts, error = await failed(model_of(), prompt)
    assert texts == PIECES[:2]
    assert error.outcome in {"away", "broken"}
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "data",
    [
        '{"choices": [{"del',
        "[]",
        "null",
        "5",
        '"text"',
        '{"choices": "none"}',
        '{"type": "content_block_delta", "delta": {"type": "text_delta", "text": 5}, "choices": [{"delta": {"content": 5}}]}',
        '{"type": 7, "choices": [7]}',
        b'{"choices": [{"delta": {"content": "\xff"}}]}',
    ],
)
async def test_a_malformed_chunk_ends_the_answer(
    server: Providers, model_of: Models, prompt: Prompt, data: str | bytes
) -> None:
    server.script.append(Malformed(PIECES, data=data.encode() if isinstance(data, str) else data))
    texts, error = await failed(model_of(), prompt)
    assert texts == PIECES[:1]
    assert error.outcome == "broken"


@pytest.mark.parametrize("data", ["{", "[]", "null", '{"choices": 1, "content": 1}', "<html>"])
async def test_a_malformed_whole_answer_is_none(server: Providers, model_of: Models, prompt: Prompt, data: str) -> None:
    server.script.append(Malformed(PIECES, data=data.encode()))
    texts, error = await failed(model_of(streaming=False), prompt)
    assert texts == []
    assert error.outcome in {"broken", "withheld"}


async def test_a_server_that_sends_nothing_is_given_up_on(server: Providers, model_of: Models, prompt: Prompt) -> None:
    server.script.append(Silent())
    _, error = await failed(model_of(silence_timeout_s=0.3, **QUICK), prompt)
    assert error.outcome == "timeout"


async def test_a_server_that_falls_silent_between_two_pieces_is_given_up_on(
    server: Providers, model_of: Models, prompt: Prompt
) -> None:
    server.script.append(Reply(PIECES, pause_s=5))
    _, error = await failed(model_of(silence_timeout_s=0.5, **QUICK), prompt)
    assert error.outcome == "timeout"
    assert len(server.asked) == 1


async def test_an_answer_that_takes_too_long_as_a_whole_is_given_up(
    server: Providers, model_of: Models, prompt: Prompt
) -> None:
    server.script.append(Reply(["word "] * 100, pause_s=0.1))
    texts, error = await failed(model_of(), prompt, timeout_s=0.8)
    assert texts
    assert error.outcome == "timeout"
    server.wait_idle()


async def test_waiting_to_try_again_ends_when_the_whole_time_is_up(
    server: Providers, model_of: Models, prompt: Prompt
) -> None:
    server.script += [Status(429, {"retry-after": "9"})] * 2
    _, error = await failed(model_of(timeout_s=0.5), prompt)
    assert error.outcome == "timeout"
    assert len(server.asked) == 1


async def test_whoever_reads_slowly_is_not_cut_off(server: Providers, model_of: Models, prompt: Prompt) -> None:
    server.script.append(Reply(PIECES))
    texts = []
    model = model_of(timeout_s=0.7)
    async with aclosing(model.stream(prompt, timeout_s=30)) as stream:
        async for piece in stream:
            texts.append(piece)
            await asyncio.sleep(0.2)
    await model.close()
    assert texts[:-1] == PIECES


async def test_tokens_that_the_server_does_not_count_are_estimated_and_told_of(
    server: Providers, model_of: Models, prompt: Prompt
) -> None:
    before = counted("headrace_llm_usage_estimated_total")
    server.script.append(Reply(["A" * 300], usage=False))
    _, usage = await pieces(model_of(), prompt)
    assert usage.output_tokens == 100
    assert usage.input_tokens > 0
    assert usage.cost is None
    assert counted("headrace_llm_usage_estimated_total") == before + 1


async def test_an_answer_at_its_limit_shows_that_it_is_cut(
    server: Providers, model_of: Models, prompt: Prompt, provider: str
) -> None:
    before = counted("headrace_llm_requests_total", outcome="cut")
    server.script.append(Reply(PIECES, finish="length" if provider == "openai" else "max_tokens"))
    texts, _ = await pieces(model_of(), prompt)
    assert "".join(texts) == "".join(PIECES) + " …"
    assert counted("headrace_llm_requests_total", outcome="cut") == before + 1


async def test_an_answer_that_the_provider_withholds_is_none(
    server: Providers, model_of: Models, prompt: Prompt, provider: str
) -> None:
    server.script.append(Reply(PIECES, finish="content_filter" if provider == "openai" else "refusal"))
    _, error = await failed(model_of(), prompt)
    assert error.outcome == "withheld"


@pytest.mark.parametrize("streaming", [True, False])
async def test_an_answer_without_text_is_none(
    server: Providers, model_of: Models, prompt: Prompt, *, streaming: bool
) -> None:
    server.script.append(Reply([]))
    _, error = await failed(model_of(streaming=streaming), prompt)
    assert error.outcome == "broken"


async def test_a_refused_key_is_told_without_saying_it(
    server: Providers, model_of: Models, prompt: Prompt, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    wrong = "sk-wrong-0123456789"
    _, error = await failed(model_of(api_key=wrong), prompt)
    assert isinstance(error, Refused)
    assert "llm.api_key" in str(error)
    assert wrong not in "".join(traceback.format_exception(error))
    assert wrong not in caplog.text
    assert len(server.asked) == 1


async def test_a_key_that_a_server_repeats_is_taken_out_of_its_words(
    server: Providers, model_of: Models, prompt: Prompt
) -> None:
    server.script.append(Status(400, body=f'{{"error": {{"message": "bad request with {KEY}"}}}}'))
    _, error = await failed(model_of(), prompt)
    assert isinstance(error, Refused)
    assert "bad request with ***" in str(error)


async def test_an_unknown_model_is_told(server: Providers, model_of: Models, prompt: Prompt) -> None:
    _, error = await failed(model_of(model="no-such-model"), prompt)
    assert isinstance(error, Refused)
    assert "llm.model" in str(error)


async def test_a_redirect_is_not_followed_with_the_key(server: Providers, model_of: Models, prompt: Prompt) -> None:
    server.script.append(Status(307, {"location": f"{server.anthropic_url}/elsewhere"}))
    _, error = await failed(model_of(), prompt)
    assert isinstance(error, Refused)
    assert len(server.asked) == 1


async def test_the_providers_own_variables_are_not_read(
    server: Providers, model_of: Models, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.setenv(name, "from-the-environment")
    await failed(model_of(api_key=None), prompt)
    assert "from-the-environment" not in str(server.asked[0].headers)


async def test_calls_beyond_the_quota_wait_for_their_turn(server: Providers, model_of: Models, prompt: Prompt) -> None:
    server.default = Reply(PIECES, pause_s=0.02)
    model = model_of(concurrency=2)

    async def ask() -> list[object]:
        return [piece async for piece in model.stream(prompt, timeout_s=30)]

    answers = await asyncio.gather(*(ask() for _ in range(8)))
    await model.close()
    assert [answer[:-1] for answer in answers] == [PIECES] * 8
    assert server.most_open == 2


async def test_a_call_whose_turn_does_not_come_fails(server: Providers, model_of: Models, prompt: Prompt) -> None:
    server.default = Silent()
    model = model_of(concurrency=1, **QUICK)
    first = asyncio.create_task(anext(model.stream(prompt, timeout_s=30)))
    await asyncio.to_thread(server.wait_asked)
    with pytest.raises(CallFailed) as raised:
        await anext(model.stream(prompt, timeout_s=0.2))
    assert raised.value.outcome == "busy"
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await model.close()


async def test_a_stream_that_is_left_gives_its_turn_back_and_ends_the_request(
    server: Providers, model_of: Models, prompt: Prompt
) -> None:
    before = counted("headrace_llm_requests_total", outcome="abandoned")
    server.script.append(Reply(["word "] * 1000, pause_s=0.02))
    model = model_of(concurrency=1)
    async with aclosing(model.stream(prompt, timeout_s=30)) as stream:
        await anext(stream)
    server.wait_idle()
    assert [piece async for piece in model.stream(prompt, timeout_s=30)]
    await model.close()
    assert counted("headrace_llm_requests_total", outcome="abandoned") == before + 1


async def test_what_a_call_took_is_in_the_metrics(server: Providers, model_of: Models, prompt: Prompt) -> None:
    names = {
        "headrace_llm_requests_total": {"outcome": "ok"},
        "headrace_llm_tokens_total": {"direction": "output"},
        "headrace_llm_cost_total": {},
        "headrace_llm_seconds_count": {"until": "first_piece"},
    }
    before = {name: counted(name, **labels) for name, labels in names.items()}
    server.script.append(Reply(["word "] * 50))
    await pieces(model_of(input_price=0, output_price=2), prompt)
    grown = {name: counted(name, **labels) - before[name] for name, labels in names.items()}
    assert grown == pytest.approx(
        {
            "headrace_llm_requests_total": 1,
            "headrace_llm_tokens_total": 50,
            "headrace_llm_cost_total": 100 / 1e6,
            "headrace_llm_seconds_count": 1,
        }
    )
