from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from headrace.encoders.batching import plan_batches

LENGTHS = st.lists(st.integers(1, 512), max_size=200)
BUDGETS = st.integers(1, 8192)


@given(lengths=LENGTHS, budget=BUDGETS)
def test_every_text_is_read_once(lengths: list[int], budget: int) -> None:
    assert sorted(chain.from_iterable(plan_batches(lengths, budget))) == list(range(len(lengths)))


@given(lengths=LENGTHS, budget=BUDGETS)
def test_a_batch_with_its_padding_stays_within_the_budget_or_is_one_text(lengths: list[int], budget: int) -> None:
    for batch in plan_batches(lengths, budget):
        assert len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= budget


@given(lengths=LENGTHS, budget=BUDGETS)
def test_no_text_comes_before_a_longer_one_and_no_batch_had_room_for_the_next(lengths: list[int], budget: int) -> None:
    plan = plan_batches(lengths, budget)
    read = [lengths[place] for place in chain.from_iterable(plan)]
    assert read == sorted(read, reverse=True)
    for batch in plan[:-1]:
        assert (len(batch) + 1) * lengths[batch[0]] > budget


def test_nothing_to_read_is_no_batch() -> None:
    assert plan_batches([], 4096) == []
