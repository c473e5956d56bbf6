import itertools
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.retrieval.fusion import RRF_K, Ranked, blend, fuse, min_max, z_score
from schemas import Fusion

DENSE = [("a", 0.9), ("b", 0.5), ("c", 0.1)]
BM25 = [("b", 12.0), ("d", 8.0), ("a", 4.0)]
METHODS = ("convex", "zscore", "rrf")

ranked = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=2), st.floats(-1e6, 1e6), max_size=8).map(
    lambda scores: sorted(scores.items(), key=lambda item: -item[1])
)
fusions = st.builds(Fusion, method=st.sampled_from(METHODS), alpha=st.floats(0, 1))


def convex(dense: Ranked | None, bm25: Ranked | None, alpha: float = 0.5) -> list[tuple[str, float]]:
    return fuse(dense, bm25, Fusion(method="convex", alpha=alpha)).ranked


def test_convex_weighs_each_lists_scores_between_its_lowest_and_its_highest() -> None:
    assert convex(DENSE, BM25) == [("b", 0.75), ("a", 0.5), ("d", 0.25), ("c", 0.0)]
    assert dict(convex(DENSE, BM25, alpha=0.9)) == pytest.approx({"a": 0.9, "b": 0.55, "d": 0.05, "c": 0.0})


@pytest.mark.parametrize("method", ["convex", "zscore"])
@pytest.mark.parametrize(("alpha", "first"), [(1.0, "a"), (0.0, "b")])
def test_at_the_ends_of_alpha_one_list_alone_decides(method: str, alpha: float, first: str) -> None:
    assert fuse(DENSE, BM25, Fusion(method=method, alpha=alpha)).ranked[0][0] == first


def test_what_is_found_alone_or_with_equals_counts_full() -> None:
    assert min_max([("a", 0.3)]).found == {"a": 1.0}
    assert min_max([("a", 0.3), ("b", 0.3)]).found == {"a": 1.0, "b": 1.0}
    assert min_max([]).found == {}


def test_zscore_counts_deviations_from_the_mean() -> None:
    shares = z_score(DENSE)
    step = math.sqrt(3 / 2)
    assert shares.found == pytest.approx({"a": step, "b": 0.0, "c": -step})
    assert shares.of("nowhere") == shares.of("c")


def test_by_zscore_a_chunk_of_the_lower_half_of_both_lists_is_before_one_that_one_list_lacks() -> None:
    dense = [("a", 0.9), ("b", 0.8), ("both", 0.3), ("last", 0.1)]
    bm25 = [("c", 9.0), ("d", 8.0), ("both", 3.0), ("last", 1.0)]
    order = [chunk for chunk, _ in fuse([*dense, ("alone", 0.3)], bm25, Fusion(method="zscore")).ranked]
    assert order.index("both") < order.index("alone")


@pytest.mark.parametrize("scores", [[("a", 0.3)], [("a", 0.3), ("b", 0.3)], [("a", 5e-324), ("b", 0.0)]])
def test_by_zscore_equal_scores_are_one_deviation_ahead_of_a_missing_chunk(scores: Ranked) -> None:
    shares = z_score(scores)
    assert set(shares.found.values()) == {0.0}
    assert shares.of("nowhere") == -1.0


def test_by_zscore_an_empty_list_says_nothing() -> None:
    assert fuse(DENSE, [], Fusion(method="zscore")).ranked == [
        (chunk, pytest.approx(score / 2)) for chunk, score in z_score(DENSE).found.items()
    ]


def test_reciprocal_rank_sums_over_the_lists() -> None:
    assert fuse(DENSE, BM25, Fusion(method="rrf", alpha=0.1)).ranked == [
        ("b", 1 / 62 + 1 / 61),
        ("a", 1 / 61 + 1 / 63),
        ("d", 1 / 62),
        ("c", 1 / 63),
    ]


def test_equal_scores_are_ordered_by_id() -> None:
    assert convex([("z", 1.0), ("y", 1.0)], [("x", 3.0)]) == [("x", 0.5), ("y", 0.5), ("z", 0.5)]
    rrf = fuse([("z", 1.0)], [("a", 1.0)], Fusion(method="rrf"))
    assert [chunk for chunk, _ in rrf.ranked] == ["a", "z"]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("method", METHODS)
def test_while_one_searcher_is_away_the_other_has_all_the_weight(method: str, alpha: float) -> None:
    fusion = Fusion(method=method, alpha=alpha)
    assert [chunk for chunk, _ in fuse(DENSE, None, fusion).ranked] == ["a", "b", "c"]
    assert [chunk for chunk, _ in fuse(None, BM25, fusion).ranked] == ["b", "d", "a"]


def test_the_score_is_the_weighed_sum_of_the_shares() -> None:
    fused = fuse(DENSE, BM25, Fusion(alpha=0.2))
    assert dict(fused.ranked) == pytest.approx(
        {chunk: 0.2 * fused.dense.of(chunk) + 0.8 * fused.bm25.of(chunk) for chunk in "abcd"}
    )


@given(ranked, ranked, fusions)
def test_every_chunk_comes_out_once_and_in_order(
    dense: list[tuple[str, float]], bm25: list[tuple[str, float]], fusion: Fusion
) -> None:
    fused = fuse(dense, bm25, fusion).ranked
    assert sorted(chunk for chunk, _ in fused) == sorted(dict(dense) | dict(bm25))
    assert fused == sorted(fused, key=lambda item: (-item[1], item[0]))
    assert all(math.isfinite(score) for _, score in fused)
    if fusion.method == "convex":
        assert all(0 <= score <= 1 + 1e-9 for _, score in fused)
    if fusion.method == "rrf":
        assert all(0 < score <= 2 / (RRF_K + 1) for _, score in fused)


@given(ranked, ranked, fusions)
def test_a_chunk_is_never_behind_one_that_is_worse_in_both_lists(
    dense: list[tuple[str, float]], bm25: list[tuple[str, float]], fusion: Fusion
) -> None:
    score = dict(fuse(dense, bm25, fusion).ranked)
    places = [{chunk: place for place, (chunk, _) in enumerate(found)} for found in (dense, bm25)]
    for (better, high), (worse, low) in itertools.product(score.items(), repeat=2):
        if all(place.get(better, 99) <= place.get(worse, 99) for place in places):
            assert high >= low - 1e-9


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
def test_zscores_have_a_mean_of_0_and_a_deviation_of_1_or_all_0(scores: list[float]) -> None:
    shares = [*z_score([(str(place), score) for place, score in enumerate(scores)]).found.values()]
    # As large as the numbers are that are taken from each other, so large is what rounding leaves.
    spread = max(scores) - min(scores)
    if spread > 1e-3:
        assert statistics.fmean(shares) == pytest.approx(0, abs=1e-6)
        assert statistics.pstdev(shares) == pytest.approx(1, abs=1e-6)
    elif spread == 0:
        assert set(shares) == {0.0}


FIRST = [("a", 9.0), ("b", 8.0), ("c", 5.0), ("d", 4.0), ("e", 1.0)]


def test_a_blend_weighs_the_reranker_against_the_first_stage() -> None:
    reranked = {"a": -2.0, "b": 2.0, "c": 1.0}
    assert blend(FIRST, reranked, weight=0.5) == [
        ("b", pytest.approx(0.5 * 1 + 0.5 * 0.75)),
        ("a", pytest.approx(0.5)),
        ("c", pytest.approx(0.5 * 0.75)),
        ("d", pytest.approx(0.5 * -0.25)),
        ("e", pytest.approx(0.5 * -1)),
    ]


def test_a_reranker_without_weight_changes_nothing() -> None:
    blended = blend(FIRST, {"a": 0.0, "b": 1.0, "c": 2.0}, weight=0)
    assert [chunk for chunk, _ in blended] == ["a", "b", "c", "d", "e"]


def test_even_the_heaviest_reranker_replaces_no_first_stage() -> None:
    """Of chunks that it takes for equals, the first stage's order stays."""
    assert blend(FIRST, {"a": 1.0, "b": 1.0, "c": 0.0}, weight=0.99)[0][0] == "a"


def test_nothing_reranked_leaves_everything_as_it_was() -> None:
    assert blend(FIRST, {}, weight=0.5) == FIRST
    assert blend([], {}, weight=0.5) == []


@given(ranked, st.integers(1, 8), st.data(), st.floats(0, 0.99))
def test_what_was_not_reranked_keeps_its_order_behind(
    first: list[tuple[str, float]], count: int, data: st.DataObject, weight: float
) -> None:
    candidates = [chunk for chunk, _ in first[:count]]
    reranked = {chunk: data.draw(st.floats(-20, 20)) for chunk in candidates}
    blended = blend(first, reranked, weight=weight)
    assert {chunk for chunk, _ in blended[: len(candidates)]} == set(candidates)
    assert [chunk for chunk, _ in blended[len(candidates) :]] == [chunk for chunk, _ in first[count:]]
    scores = [score for _, score in blended]
    assert scores == sorted(scores, reverse=True)
