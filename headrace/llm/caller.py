"""One model behind its provider: whose turn it is, how long it may take, what it cost."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog

from headrace import telemetry, tracing
from headrace.llm.port import CUT_MARK, CallFailed, Ended, Outcome, Provider
from headrace.llm.prompts import Prompt
from headrace.llm.settings import LLMSettings
from headrace.llm.tokens import estimated_tokens
from schemas import Usage

log = structlog.get_logger("headrace.llm")

MILLION = 1_000_000


class Caller:
    """A LanguageModel. Any number of streams may be asked for at once; `concurrency` of them run."""

    def __init__(self, provider: Provider, settings: LLMSettings) -> None:
        self._provider = provider
        self._settings = settings
        self._turns = asyncio.Semaphore(settings.concurrency)
        self._failing = False
        self.name = settings.model or ""
        self._asked: tracing.Attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": settings.provider,
            "gen_ai.request.model": self.name,
            "gen_ai.request.max_tokens": settings.max_output_tokens,
        }

    async def stream(self, prompt: Prompt, *, timeout_s: float) -> AsyncGenerator[str | Usage, None]:
        call = _Call(self.name, prompt, self._settings)
        span = tracing.span(f"chat {self.name}", self._asked, "client")
        try:
            async with aclosing(self._pieces(prompt, call, min(timeout_s, self._settings.timeout_s))) as pieces:
                async for piece in pieces:
                    yield piece
            self._tell(None)
            yield call.usage()
        except CallFailed as failed:
            # A connection that is lost in the middle of an answer looks to an SDK like one that never was.
            call.outcome = "broken" if failed.outcome == "away" and call.written else failed.outcome
            self._tell(failed)
            span.failed(call.outcome)
            raise
        finally:
            call.account()
            span.set(call.told())
            span.end()

    async def _pieces(self, prompt: Prompt, call: "_Call", timeout_s: float) -> AsyncGenerator[str, None]:
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout_at(deadline):
                await self._turns.acquire()
        except TimeoutError:
            raise CallFailed("busy", f"no turn within {timeout_s:g} s: llm.concurrency calls are under way") from None
        try:
            async with aclosing(self._provider.events(prompt)) as events:
                while (event := await _next(events, deadline, timeout_s)) is not None:
                    if isinstance(event, Ended):
                        call.ended = event
                    else:
                        call.took(event)
                        yield event
        finally:
            self._turns.release()
        if call.ended is None or not call.written:
            raise CallFailed("broken", "the server answered without any text")
        call.outcome = call.ended.outcome
        if call.ended.outcome == "cut":
            yield CUT_MARK

    def _tell(self, failed: CallFailed | None) -> None:
        """Once when it begins to fail and once when it is over: a line for each query would bury the log."""
        if failed is not None and not self._failing:
            log.warning("llm_failing", model=self.name, outcome=failed.outcome, reason=str(failed))
        if failed is None and self._failing:
            log.info("llm_answers_again", model=self.name)
        self._failing = failed is not None

    async def close(self) -> None:
        await self._provider.close()


class _Call:
    """One call's account. `abandoned` is a call that nobody has heard to its end."""

    def __init__(self, model: str, prompt: Prompt, settings: LLMSettings) -> None:
        self._model = model
        self._prompt = prompt
        self._settings = settings
        self._began = time.perf_counter()
        self.outcome: Outcome = "abandoned"
        self.ended: Ended | None = None
        self.written: list[str] = []

    def took(self, piece: str) -> None:
        if not self.written:
            self._observe("first_piece")
        self.written.append(piece)

    def usage(self) -> Usage:
        """As the server counted, and estimated where it didn't."""
        read = self.ended.input_tokens if self.ended is not None else None
        wrote = self.ended.output_tokens if self.ended is not None else None
        if read is None:
            read = estimated_tokens(self._prompt.system) + estimated_tokens(self._prompt.user)
        if wrote is None:
            wrote = estimated_tokens("".join(self.written))
        return Usage(input_tokens=read, output_tokens=wrote, cost=self._cost(read, wrote))

    def account(self) -> None:
        telemetry.LLM_REQUESTS.labels(self._model, self.outcome).inc()
        self._observe("end")
        if not self.written:
            return  # As far as anybody can tell, nothing was read and nothing is charged.
        usage = self.usage()
        if self.ended is None or None in self.ended:
            telemetry.LLM_USAGE_ESTIMATED.labels(self._model).inc()
        telemetry.LLM_TOKENS.labels(self._model, "input").inc(usage.input_tokens)
        telemetry.LLM_TOKENS.labels(self._model, "output").inc(usage.output_tokens)
        if usage.cost is not None:
            telemetry.LLM_COST.labels(self._model).inc(usage.cost)

    def told(self) -> tracing.Attributes:
        """By OpenTelemetry's conventions for generative models, without a word of what was said."""
        if not self.written:
            return {"headrace.outcome": self.outcome}
        usage = self.usage()
        told: dict[str, str | int | list[str]] = {
            "headrace.outcome": self.outcome,
            "gen_ai.usage.input_tokens": usage.input_tokens,
            "gen_ai.usage.output_tokens": usage.output_tokens,
        }
        if self.ended is not None:
            told["gen_ai.response.finish_reasons"] = ["length" if self.ended.outcome == "cut" else "stop"]
        return told

    def _cost(self, read: int, wrote: int) -> float | None:
        prices = self._settings
        if prices.input_price is None or prices.output_price is None:
            return None
        return (read * prices.input_price + wrote * prices.output_price) / MILLION

    def _observe(self, until: str) -> None:
        telemetry.LLM_SECONDS.labels(self._model, until).observe(time.perf_counter() - self._began)


async def _next(events: AsyncGenerator[str | Ended, None], deadline: float, timeout_s: float) -> str | Ended | None:
    """The next event, None behind the last. Time is taken only while the model is waited for: whoever reads may
    be slow, and is never cut off by a clock of ours.
    """
    try:
        async with asyncio.timeout_at(deadline):
            return await anext(events, None)
    except TimeoutError:
        raise CallFailed("timeout", f"the answer was not whole after {timeout_s:g} s") from None
