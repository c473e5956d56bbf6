"""Questions that come together are embedded together."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from headrace.encoders import Encoder
from headrace.errors import Poison
from headrace.serving.errors import BadRequest

Vector: TypeAlias = npt.NDArray[np.float32]
_Asked: TypeAlias = tuple[str, asyncio.Future[Vector]]

BATCH = 64


class QueryEmbedder:
    """Embeds in a thread of its own, so the model works on one batch at a time; what comes meanwhile is the next batch.

    A question that finds the model idle waits for nothing but what comes in the same turn of the event loop: under load
    the model is never idle for long, and without it a wait would be all that a question gains. To be used from one
    event loop.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed-queries")
        self._asked: list[_Asked] = []
        self._working: asyncio.Task[None] | None = None

    async def embed(self, question: str) -> Vector:
        """One vector. A question whose asker was cancelled before its batch began is not embedded.

        Raises BadRequest for one that the encoder refuses.
        """
        embedded: asyncio.Future[Vector] = asyncio.get_running_loop().create_future()
        self._asked.append((question, embedded))
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        return await embedded

    async def _work(self) -> None:
        try:
            while self._asked:
                batch = self._asked[:BATCH]
                del self._asked[:BATCH]
                await self._embed(batch)
        finally:
            self._working = None
            _fail(self._asked, RuntimeError("the embedder was stopped"))
            self._asked.clear()

    async def _embed(self, batch: Sequence[_Asked]) -> None:
        batch = [asked for asked in batch if not asked[1].done()]
        if not batch:
            return
        questions = [question for question, _ in batch]
        loop = asyncio.get_running_loop()
        try:
            vectors = await loop.run_in_executor(self._thread, self._encoder.encode_queries, questions)
        except Poison as poison:
            if len(batch) == 1:
                _fail(batch, BadRequest(str(poison)))
            else:
                for asked in batch:
                    await self._embed([asked])
            return
        except Exception as error:  # noqa: BLE001  each asker gets it
            _fail(batch, error)
            return
        for (_, embedded), vector in zip(batch, vectors, strict=True):
            if not embedded.done():
                embedded.set_result(vector)


def _fail(batch: Sequence[_Asked], error: Exception) -> None:
    for _, embedded in batch:
        if not embedded.done():
            embedded.set_exception(error)
