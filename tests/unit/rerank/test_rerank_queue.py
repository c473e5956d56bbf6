import asyncio
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from headrace.errors import Transient
from headrace.rerank import Pair, RerankQueue, Scores


class Lengths:
    """A Reranker: a passage's score is its length. It begins a batch when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[Pair]] = []
        self.threads: set[str] = set()
        self.begun = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def score(self, pairs: Sequence[Pair]) -> Scores:
        self.batches.append(list(pairs))
        self.threads.add(threading.current_thread().name)
        self.begun.set()
        self.go.wait(10)
        if any(passage == "poison" for _, passage in pairs):
            raise Transient("rerank", "the device is lost")
        return np.array([len(passage) for _, passage in pairs], dtype=np.float32)


@pytest.fixture
def lengths() -> Iterator[Lengths]:
    made = Lengths()
    yield made
    made.go.set()


def pairs(question: str, *passages: str) -> list[Pair]:
    return [(question, passage) for passage in passages]


async def test_scores_come_in_the_order_of_the_pairs(lengths: Lengths) -> None:
    queue = RerankQueue(lengths, batch_size=2)
    assert (await queue.score(pairs("q", "aaa", "a", "aa", "", "aaaa"))).tolist() == [3, 1, 2, 0, 4]
    assert [len(batch) for batch in lengths.batches] == [2, 2, 1]


async def test_no_pairs_ask_nothing(lengths: Lengths) -> None:
    assert (await RerankQueue(lengths, batch_size=2).score([])).shape == (0,)
    assert lengths.batches == []


async def test_what_waits_while_a_batch_runs_goes_together_in_the_next(lengths: Lengths) -> None:
    queue = RerankQueue(lengths, batch_size=8)
    lengths.go.clear()
    first = asyncio.ensure_future(queue.score(pairs("first", "a", "aa")))
    await asyncio.to_thread(lengths.begun.wait, 10)
    others = [asyncio.ensure_future(queue.score(pairs(f"other {n}", "a" * n, "b"))) for n in range(1, 4)]
    await asyncio.sleep(0)
    lengths.go.set()
    assert [(await other).tolist() for other in others] == [[1, 1], [2, 1], [3, 1]]
    assert (await first).tolist() == [1, 2]
    assert [len(batch) for batch in lengths.batches] == [2, 6]
    assert len(lengths.threads) == 1


async def test_a_long_request_is_spread_over_batches_and_shares_its_last_one(lengths: Lengths) -> None:
    queue = RerankQueue(lengths, batch_size=3)
    long, short = await asyncio.gather(
        queue.score(pairs("long", "a", "aa", "aaa", "aaaa")), queue.score(pairs("short", "b"))
    )
    assert (long.tolist(), short.tolist()) == ([1, 2, 3, 4], [1])
    assert [[question for question, _ in batch] for batch in lengths.batches] == [["long"] * 3, ["long", "short"]]


async def test_who_gives_up_costs_nothing_from_the_next_batch_on(lengths: Lengths) -> None:
    queue = RerankQueue(lengths, batch_size=1)
    lengths.go.clear()
    given_up = asyncio.ensure_future(queue.score(pairs("given up", "a", "b", "c")))
    stays = asyncio.ensure_future(queue.score(pairs("stays", "dd")))
    await asyncio.to_thread(lengths.begun.wait, 10)
    given_up.cancel()
    lengths.go.set()
    assert (await stays).tolist() == [2]
    assert [question for [(question, _)] in lengths.batches] == ["given up", "stays"]


async def test_a_batch_that_fails_is_told_to_all_that_were_in_it_and_to_nobody_else(lengths: Lengths) -> None:
    queue = RerankQueue(lengths, batch_size=2)
    outcomes = await asyncio.gather(
        *(queue.score(pairs("q", passage)) for passage in ("poison", "a", "bb")), return_exceptions=True
    )
    assert [isinstance(outcome, Transient) for outcome in outcomes] == [True, True, False]
    assert (await queue.score(pairs("q", "ccc"))).tolist() == [3]
