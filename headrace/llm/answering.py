"""From a question and its hits to a checked answer, piece by piece."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec

from headrace import telemetry
from headrace.llm.citations import CitationChecker
from headrace.llm.port import LanguageModel
from headrace.llm.prompts import CountTokens, build_prompt
from headrace.llm.settings import LLMSettings
from headrace.llm.tokens import estimated_tokens
from schemas import AnswerText, Hit, Usage


async def answer(
    question: str,
    hits: Sequence[Hit],
    model: LanguageModel,
    settings: LLMSettings,
    *,
    timeout_s: float,
    count_tokens: CountTokens = estimated_tokens,
) -> AsyncGenerator[str | AnswerText, None]:
    """Pieces that may be shown, then one AnswerText, whose text is exactly these pieces put together.

    Raises Transient of the service "llm" when the model gives no whole answer. Pieces that came before are then no
    answer: whoever has shown them begins anew with another.
    """
    if not is_relevant(hits, settings.min_relevance):
        unknown = unknown_answer(settings)
        yield unknown.text
        yield unknown
        return
    prompt = build_prompt(question, hits, settings, count_tokens)
    checker, usage = CitationChecker(prompt), None
    async with aclosing(model.stream(prompt, timeout_s=timeout_s)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Usage):
                usage = piece
            elif shown := checker.feed(piece):
                yield shown
    rest, whole = checker.finish()
    for reason, count in checker.removals.items():
        telemetry.CITATIONS_REMOVED.labels(reason).inc(count)
    if rest:
        yield rest
    yield msgspec.structs.replace(whole, usage=usage)


def is_relevant(hits: Sequence[Hit], min_relevance: float | None) -> bool:
    """Whether there is anything to answer from: hits, and the nearest of them near enough.

    Without any cosine, as while Milvus is away, nobody can tell how near they are, and hits are enough.
    """
    cosines = [hit.scores.dense for hit in hits if hit.scores.dense is not None]
    return bool(hits) and (min_relevance is None or not cosines or max(cosines) >= min_relevance)


def unknown_answer(settings: LLMSettings) -> AnswerText:
    """That nothing relevant was found, without asking anybody."""
    return AnswerText(text=settings.unknown_text, citations=[], model=settings.model or settings.provider, known=False)
