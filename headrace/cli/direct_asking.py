"""Asking a generation that is not live: in this process, with what a query worker has, and over no topic."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from headrace import wiring
from headrace.auth.settings import AuthSettings
from headrace.config import Settings
from headrace.llm.settings import LLMSettings
from headrace.serving import Answerer, Question
from headrace.serving.settings import QuerySettings
from schemas import Answer, Query


@dataclass(frozen=True)
class _Nobody:
    """Is told of an answer while it is made, and minds nothing."""

    async def hits(self, answer: Answer) -> None:
        del answer

    async def text(self, piece: str) -> None:
        del piece

    def begin_again(self) -> None: ...


class DirectAsker:
    """Asks many questions at a time of the collections and indexes that the settings name. Loads the encoder."""

    def __init__(self, settings: Settings) -> None:
        # Whoever reads the stores themselves needs no token, has no rate, and pays for no language model.
        self._settings = settings.model_copy(
            update={"auth": AuthSettings(), "llm": LLMSettings(), "query": QuerySettings()}
        )
        self._answerer: Answerer = wiring.build_answerer(self._settings)
        self._loop = asyncio.Runner()

    def ask_many(
        self,
        queries: Sequence[Query],
        *,
        timeout_s: float,
        in_flight: int = 16,
        answered: Callable[[int], None] = lambda _: None,
    ) -> list[Answer | None]:
        """The answers in the order of the queries; those that can't be given say why."""
        return list(self._loop.run(self._ask_all(queries, timeout_s, in_flight, answered)))

    async def _ask_all(
        self, queries: Sequence[Query], timeout_s: float, in_flight: int, answered: Callable[[int], None]
    ) -> list[Answer]:
        turns = asyncio.Semaphore(in_flight)
        came = 0

        async def ask(query: Query) -> Answer:
            nonlocal came
            async with turns:
                answer = await self._answerer.answer(Question(query=query, seconds=timeout_s), _Nobody())
            came += 1
            answered(came)
            return answer

        return await asyncio.gather(*(ask(query) for query in queries))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.close()
