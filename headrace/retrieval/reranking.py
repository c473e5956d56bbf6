"""The reranker as the retrieval asks it: for a bounded time, not while it keeps failing, and never needed."""

import asyncio
from collections.abc import Mapping, Sequence

from headrace.errors import Transient
from headrace.rerank import Pair, Reranker, RerankQueue, RerankSettings
from headrace.retrieval.breakers import Breaker
from headrace.retrieval.settings import RetrievalSettings
from headrace.stores.ports import TextRow

SERVICE = "rerank"


class Reranking:
    """Whether, how many and how: a Reranker with its settings. None is a deployment without one."""

    def __init__(self, reranker: Reranker | None, settings: RerankSettings, retrieval: RetrievalSettings) -> None:
        self._queue = None if reranker is None else RerankQueue(reranker, batch_size=settings.batch_size)
        self._breaker = Breaker(
            SERVICE, SERVICE, failures=retrieval.breaker_failures, reset_s=retrieval.breaker_reset_s
        )
        self._settings = settings

    @property
    def weight(self) -> float:
        return self._settings.weight

    def is_wanted(self, asked: bool | None) -> bool:
        return (self._queue is not None and self._settings.by_default) if asked is None else asked

    @property
    def candidates(self) -> int:
        """How many chunks are reranked for a query."""
        return self._settings.candidates

    async def scores(self, question: str, rows: Sequence[TextRow]) -> Mapping[str, float]:
        """By chunk id. Raises Transient when there is no reranker, or it fails or takes too long."""
        if self._queue is None:
            raise Transient(SERVICE, "this deployment has no reranker")
        asking = self._breaker.ask()
        asking.begin()
        late = Transient(SERVICE, f"no scores within {self._settings.timeout_s:g} s")
        pairs: list[Pair] = [(question, _read(row)) for row in rows]
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                scores = await self._queue.score(pairs)
        except TimeoutError:
            asking.failed(late)
            raise late from None
        except Transient as exc:
            asking.failed(exc)
            raise
        else:
            asking.answered()
        finally:
            asking.given_up(late)
        return {row.id: float(score) for row, score in zip(rows, scores, strict=True)}

    def close(self) -> None:
        if self._queue is not None:
            self._queue.close()


def _read(row: TextRow) -> str:
    """What the model reads of a chunk."""
    title = row.attributes.title
    return f"{title}\n{row.text}" if title else row.text
