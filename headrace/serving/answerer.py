"""One question, from being asked to being answered: who asks, whether it is their turn, what is found, what is written.

    Denied, RateLimited     before anything is done
    the same request again  the answer that was given, or that is being made
    a slot                  then embed, search, write; all of it within the deadline

`Answerer.answer` turns whatever goes wrong into the answer that says so.
"""

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple, Protocol

import msgspec
import structlog

from headrace import telemetry, tracing
from headrace.auth import QUERY, Authenticator, Denied
from headrace.errors import Transient
from headrace.llm import CallFailed, LanguageModel, is_relevant, unknown_answer
from headrace.llm import answer as model_answer
from headrace.llm.settings import LLMSettings
from headrace.retrieval import extractive_answer
from headrace.retrieval.answering import MODEL as EXTRACTIVE
from headrace.retrieval.breakers import Breaker
from headrace.retrieval.settings import RetrievalSettings
from headrace.serving.corpora import Corpora, Corpus
from headrace.serving.errors import BadRequest, RateLimited
from headrace.serving.rates import Rates
from headrace.serving.remembered import Remembered
from headrace.serving.settings import QuerySettings
from headrace.serving.slots import Slots
from headrace.stores.filters import parse_filters
from schemas import Answer, AnswerError, AnswerText, Hit, Query, encode

log = structlog.get_logger("headrace.query")

RETRY_AFTER_MS = 1000
MODEL_SHARE = 0.75
"""Of the time that is left: where the model takes longer, the rest is enough for sentences of the hits."""
MODEL_IS_AWAY = ("away", "rate_limited", "broken", "refused")


class Listener(Protocol):
    """Who is told of an answer while it is made."""

    async def hits(self, answer: Answer) -> None:
        """What was found; the answer's text is still to come."""

    async def text(self, piece: str) -> None:
        """The next piece of the text."""

    def begin_again(self) -> None:
        """What was told of the text so far doesn't count: it broke off, and another way is taken."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A query, who says that he asks it, and how many seconds are left for it."""

    query: Query
    authorization: bytes | None = None
    seconds: float


class Answerer:
    def __init__(
        self,
        *,
        corpora: Corpora,
        model: LanguageModel | None,
        authenticator: Authenticator | None,
        retrieval: RetrievalSettings,
        llm: LLMSettings,
        settings: QuerySettings,
    ) -> None:
        self._corpora = corpora
        self._model = model
        self._authenticator = authenticator
        self._retrieval = retrieval
        self._llm = llm
        self._settings = settings
        self._model_breaker = Breaker(
            "llm", "llm", failures=retrieval.breaker_failures, reset_s=retrieval.breaker_reset_s
        )
        self._slots = Slots(settings.in_flight, settings.waiting)
        self._rates = Rates(settings)
        self._remembered = Remembered(seconds=settings.remember_s, size_bytes=settings.remember_bytes)

    async def answer(self, question: Question, listener: Listener) -> Answer:
        """The whole answer, which may be an error. Told before, piece by piece, is only what is new: an answer that was
        remembered, or that no language model writes, comes at once.
        """
        query, seconds = question.query, min(question.seconds, self._settings.timeout_s)
        request = _Request(query, listener, time.perf_counter(), seconds)
        try:
            async with asyncio.timeout(seconds):
                return await self._admitted(request, question.authorization)
        except Exception as error:  # noqa: BLE001  whatever it is, somebody waits for a reply
            return Answer(request_id=query.request_id, error=_told(error))

    async def _admitted(self, request: "_Request", authorization: bytes | None) -> Answer:
        query = request.query
        if request.left_s <= 0:
            raise TimeoutError
        if self._authenticator is not None:
            await asyncio.to_thread(self._authenticator.check, authorization, tenant=query.tenant, scope=QUERY)
        telemetry.TENANT_QUESTIONS.labels(telemetry.tenants.label(query.tenant)).inc()
        try:
            parse_filters(query.filters)
        except ValueError as exc:
            raise BadRequest(str(exc)) from exc
        self._rates.take(query.tenant)

        async def work() -> Answer:
            async with AsyncExitStack() as held:
                with tracing.span("wait"):
                    await held.enter_async_context(self._slots)
                return await self._work(request)

        async def is_current(answer: Answer) -> bool:
            # The same again, but nothing that was replaced or deleted since.
            return await (await self._corpora.live()).retriever.are_live(query.tenant, answer.hits)

        if query.request_id is None:
            return await work()
        return await self._remembered.answer(_identity(query), work, is_current)

    async def _work(self, request: "_Request") -> Answer:
        query = request.query
        # All of it from one generation, whichever is live by the time that it is done.
        corpus = await self._corpora.live()
        timings = {"wait": _since(request.begun)}
        started = time.perf_counter()
        with tracing.span("embed"):
            vector = await corpus.embedder.embed(query.query)
        timings["embed"] = _since(started)
        found = await corpus.retriever.search(query, vector)
        answer = Answer(
            request_id=query.request_id,
            hits=found.hits,
            degraded=found.degraded,
            timings_ms={**timings, **found.timings_ms},
        )
        if query.mode == "answer":
            await request.listener.hits(answer)
            started = time.perf_counter()
            with tracing.span("answer"):
                text, lacking = await self._text(request, found.hits, corpus)
            answer = msgspec.structs.replace(
                answer,
                answer=text,
                degraded=[*answer.degraded, *lacking],
                timings_ms={**answer.timings_ms, "answer": _since(started)},
            )
        answer.timings_ms["total"] = _since(request.begun)
        for step, ms in answer.timings_ms.items():
            telemetry.QUERY_SECONDS.labels(step).observe(ms / 1000)
        return answer

    async def _text(self, request: "_Request", hits: list[Hit], corpus: Corpus) -> tuple[AnswerText, list[str]]:
        """The text, and what it had to do without: where the model is away, sentences of the hits do."""
        if not is_relevant(hits, self._llm.min_relevance):
            unknown = unknown_answer(self._llm)
            return (unknown if self._model else msgspec.structs.replace(unknown, model=EXTRACTIVE)), []
        if self._model is not None:
            try:
                return await self._modelled(self._model, request, hits), []
            except Transient as away:
                log.warning("answer_without_model", reason=str(away))
                request.listener.begin_again()
        text = await asyncio.to_thread(extractive_answer, request.query.query, hits, corpus.encoder, self._retrieval)
        return text, ["llm"] if self._model is not None else []

    async def _modelled(self, model: LanguageModel, request: "_Request", hits: list[Hit]) -> AnswerText:
        timeout_s = min(self._llm.timeout_s, MODEL_SHARE * request.left_s)
        with _counted(self._model_breaker, in_time=timeout_s == self._llm.timeout_s):
            pieces = model_answer(request.query.query, hits, model, self._llm, timeout_s=timeout_s)
            async with aclosing(pieces):
                async for piece in pieces:
                    if isinstance(piece, AnswerText):
                        return piece
                    await request.listener.text(piece)
        raise AssertionError("an answer ends with the whole of it")


class _Request(NamedTuple):
    """A question under way. `begun` is of `time.perf_counter`."""

    query: Query
    listener: Listener
    begun: float
    seconds: float

    @property
    def left_s(self) -> float:
        return self.begun + self.seconds - time.perf_counter()


@contextmanager
def _counted(breaker: Breaker, *, in_time: bool) -> Iterator[None]:
    """What is done within counts as one call of the model, where its outcome says something of the server: not when it
    was given less than its `in_time`, or refused this question alone. Raises Transient at once when too many failed.
    """
    asking = breaker.ask()
    asking.begin()
    try:
        yield
    except CallFailed as failed:
        if failed.outcome in MODEL_IS_AWAY or (failed.outcome == "timeout" and in_time):
            asking.failed(failed)
        else:
            asking.given_up(failed)
        raise
    except asyncio.CancelledError:
        asking.given_up(Transient("llm", "nobody waits for it any more"))
        raise
    except Exception:
        asking.answered()
        raise
    asking.answered()


def _identity(query: Query) -> bytes:
    """What makes two requests the same: all of the query but how its answer travels."""
    return blake2b(encode(msgspec.structs.replace(query, stream=False)), digest_size=16).digest()


def _told(error: Exception) -> AnswerError:
    """What an app is told of an error."""
    match error:
        case BadRequest():
            return AnswerError(code="bad_request", message=str(error))
        case Denied():
            return AnswerError(code=error.code, message=str(error))
        case RateLimited():
            wait_ms = math.ceil(error.retry_after_s * 1000)
            return AnswerError(code="rate_limited", message=str(error), retry_after_ms=wait_ms)
        case TimeoutError():
            return AnswerError(
                code="deadline_exceeded",
                message="the deadline passed before there was an answer",
                retry_after_ms=RETRY_AFTER_MS,
            )
        case Transient():
            return AnswerError(code="unavailable", message=str(error), retry_after_ms=RETRY_AFTER_MS)
    log.error("query_failed", exc_info=error)
    return AnswerError(code="internal", message=type(error).__name__)


def _since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
