import asyncio
import threading
from collections.abc import Sequence

import pytest

from headrace.encoders import Vectors
from headrace.errors import Poison
from headrace.serving.embedding import QueryEmbedder
from headrace.serving.errors import BadRequest
from tests.fakes.encoder import FakeEncoder


class SlowEncoder(FakeEncoder):
    """Works on a batch until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.failing: Exception | None = None

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        vectors = super().encode_queries(texts)
        assert self.go_on.wait(10)
        if self.failing is not None:
            raise self.failing
        return vectors


async def until(condition: object) -> None:
    while not condition():  # type: ignore[operator]  # noqa: ASYNC110  it is a thread that does it
        await asyncio.sleep(0.001)


async def test_questions_that_come_together_are_one_batch_and_each_gets_its_own_vector() -> None:
    encoder = FakeEncoder()
    embedder = QueryEmbedder(encoder)
    vectors = await asyncio.gather(*(embedder.embed(text) for text in ("a", "b", "c")))
    assert encoder.calls == [["a", "b", "c"]]
    assert [vector.tolist() for vector in vectors] == [encoder.vector(text).tolist() for text in ("a", "b", "c")]


async def test_what_comes_while_the_model_works_is_the_next_batch() -> None:
    encoder = SlowEncoder()
    embedder = QueryEmbedder(encoder)
    first = asyncio.create_task(embedder.embed("a"))
    await until(lambda: encoder.calls)
    others = [asyncio.create_task(embedder.embed(text)) for text in ("b", "c")]
    await asyncio.sleep(0.01)
    encoder.go_on.set()
    await asyncio.gather(first, *others)
    assert encoder.calls == [["a"], ["b", "c"]]


async def test_a_question_that_was_given_up_is_not_embedded() -> None:
    encoder = SlowEncoder()
    embedder = QueryEmbedder(encoder)
    first = asyncio.create_task(embedder.embed("a"))
    await until(lambda: encoder.calls)
    late, kept = asyncio.create_task(embedder.embed("late")), asyncio.create_task(embedder.embed("kept"))
    await asyncio.sleep(0)
    late.cancel()
    encoder.go_on.set()
    await asyncio.gather(first, kept)
    assert encoder.calls == [["a"], ["kept"]]


async def test_a_failure_is_told_to_all_of_its_batch_and_the_next_one_is_tried() -> None:
    encoder = SlowEncoder()
    encoder.go_on.set()
    encoder.failing = RuntimeError("out of memory")
    embedder = QueryEmbedder(encoder)
    for failed in await asyncio.gather(embedder.embed("a"), embedder.embed("b"), return_exceptions=True):
        assert isinstance(failed, RuntimeError)
    encoder.failing = None
    assert (await embedder.embed("c")).tolist() == encoder.vector("c").tolist()


async def test_a_question_that_the_encoder_refuses_is_told_so_and_those_beside_it_get_their_vectors() -> None:
    class Refusing(FakeEncoder):
        def encode_queries(self, texts: Sequence[str]) -> Vectors:
            if "bad" in texts:
                raise Poison("text_refused", "the endpoint refuses it")
            return super().encode_queries(texts)

    encoder = Refusing()
    embedder = QueryEmbedder(encoder)
    first, bad, last = await asyncio.gather(*map(embedder.embed, ("a", "bad", "b")), return_exceptions=True)
    assert isinstance(bad, BadRequest)
    assert str(bad) == "the endpoint refuses it"
    assert [vector.tolist() for vector in (first, last)] == [encoder.vector(text).tolist() for text in ("a", "b")]  # type: ignore[union-attr]


async def test_a_lone_question_after_a_pause_is_embedded_too() -> None:
    embedder = QueryEmbedder(FakeEncoder())
    for text in ("a", "b"):
        assert len(await asyncio.wait_for(embedder.embed(text), 5)) == 4
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("count", [65, 200])
async def test_no_batch_is_larger_than_the_bound(count: int) -> None:
    encoder = FakeEncoder()
    embedder = QueryEmbedder(encoder)
    await asyncio.gather(*(embedder.embed(str(number)) for number in range(count)))
    assert max(map(len, encoder.calls)) <= 64
    assert sum(map(len, encoder.calls)) == count
