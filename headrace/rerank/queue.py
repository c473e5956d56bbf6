"""Pairs of all queries in hand, on one thread: what waits while a batch runs goes together in the next."""

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from headrace.rerank.port import Pair, Reranker, Scores


@dataclass
class _Waiting:
    """One query's pairs, and the scores of those that are done."""

    pairs: Sequence[Pair]
    scores: Scores
    answer: "asyncio.Future[Scores]"
    sent: int = 0
    done: int = 0


class RerankQueue:
    """Gives a Reranker `batch_size` pairs at a time, first come first served, on a thread of its own.

    A batch may hold pairs of many queries, and a query's pairs may be spread over many batches. So a query waits for at
    most the batch in work before its own begin, and one that is given up costs nothing from the next batch on. Used
    from one event loop.
    """

    def __init__(self, reranker: Reranker, *, batch_size: int) -> None:
        self._reranker = reranker
        self._batch_size = batch_size
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rerank")
        self._waiting: deque[_Waiting] = deque()
        self._work: asyncio.Task[None] | None = None

    async def score(self, pairs: Sequence[Pair]) -> Scores:
        """As `Reranker.score`. What that raises, every query with a pair in the batch gets."""
        if not pairs:
            return np.empty(0, dtype=np.float32)
        waiting = _Waiting(pairs, np.empty(len(pairs), dtype=np.float32), asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._work_off())
        return await waiting.answer

    def close(self) -> None:
        """Takes no more; a batch in work is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work_off(self) -> None:
        while batch := self._next_batch():
            pairs = [pair for waiting, span in batch for pair in waiting.pairs[span]]
            [result] = await asyncio.gather(
                asyncio.get_running_loop().run_in_executor(self._thread, self._reranker.score, pairs),
                return_exceptions=True,
            )
            at = 0
            for waiting, span in batch:
                size = span.stop - span.start
                if isinstance(result, BaseException):
                    _end(waiting, result)
                else:
                    waiting.scores[span] = result[at : at + size]
                    waiting.done += size
                    if waiting.done == len(waiting.pairs):
                        _end(waiting, waiting.scores)
                at += size

    def _next_batch(self) -> list[tuple[_Waiting, slice]]:
        """The next pairs of those that still wait, in the order they came."""
        batch: list[tuple[_Waiting, slice]] = []
        room = self._batch_size
        while self._waiting and room:
            first = self._waiting[0]
            taken = 0 if first.answer.done() else min(room, len(first.pairs) - first.sent)
            if taken:
                batch.append((first, slice(first.sent, first.sent + taken)))
                first.sent += taken
                room -= taken
            if not taken or first.sent == len(first.pairs):
                self._waiting.popleft()
        return batch


def _end(waiting: _Waiting, result: Scores | BaseException) -> None:
    if waiting.answer.done():
        return  # It was given up meanwhile.
    if isinstance(result, BaseException):
        waiting.answer.set_exception(result)
    else:
        waiting.answer.set_result(result)
