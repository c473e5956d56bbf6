import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.retrieval.fusion import convex, fuse, min_max, reciprocal_rank
from schemas import Fusion

DENSE = [("a", 0.9), ("b", 0.5), ("c", 0.1)]
BM25 = [("b", 12.0), ("d", 8.0), ("a", 4.0)]

ranked = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=2), st.floats(-1e6, 1e6), max_size=8).map(
    lambda scores: sorted(scores.items(), key=lambda item: -item[1])
)


def test_convex_weighs_each_lists_scores_between_its_lowest_and_its_highest() -> None:
    assert convex(DENSE, BM25) == [("b", 0.75), ("a", 0.5), ("d", 0.25), ("c", 0.0)]
    assert dict(convex(DENSE, BM25, alpha=0.9)) == pytest.approx({"a": 0.9, "b": 0.55, "d": 0.05, "c": 0.0})


@pytest.mark.parametrize(("alpha", "first"), [(1.0, "a"), (0.0, "b")])
def test_at_the_ends_of_alpha_one_list_alone_decides(alpha: float, first: str) -> None:
    assert convex(DENSE, BM25, alpha=alpha)[0] == (first, 1.0)


def test_what_is_found_alone_or_with_equals_counts_full() -> None:
    assert min_max([("a", 0.3)]) == {"a": 1.0}
    assert min_max([("a", 0.3), ("b", 0.3)]) == {"a": 1.0, "b": 1.0}
    assert min_max([]) == {}


def test_reciprocal_rank_sums_over_the_lists() -> None:
    assert reciprocal_rank(DENSE, BM25) == [
        ("b", 1 / 62 + 1 / 61),
        ("a", 1 / 61 + 1 / 63),
        ("d", 1 / 62),
        ("c", 1 / 63),
    ]


def test_equal_scores_are_ordered_by_id() -> None:
    assert convex([("z", 1.0), ("y", 1.0)], [("x", 3.0)], alpha=0.5) == [("x", 0.5), ("y", 0.5), ("z", 0.5)]
    assert [chunk for chunk, _ in reciprocal_rank([("z", 1.0)], [("a", 1.0)])] == ["a", "z"]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_while_one_searcher_is_away_the_other_has_all_the_weight(alpha: float) -> None:
    fusion = Fusion(alpha=alpha)
    assert fuse(DENSE, None, fusion) == [("a", 1.0), ("b", 0.5), ("c", 0.0)]
    assert fuse(None, BM25, fusion) == [("b", 1.0), ("d", 0.5), ("a", 0.0)]


def test_the_query_chooses_the_method() -> None:
    assert fuse(DENSE, BM25, Fusion(method="rrf")) == reciprocal_rank(DENSE, BM25)
    assert fuse(DENSE, BM25, Fusion(alpha=0.2)) == convex(DENSE, BM25, alpha=0.2)


@given(ranked, ranked, st.floats(0, 1))
def test_every_chunk_comes_out_once_in_order_with_a_share_between_0_and_1(
    dense: list[tuple[str, float]], bm25: list[tuple[str, float]], alpha: float
) -> None:
    for fused in (convex(dense, bm25, alpha=alpha), reciprocal_rank(dense, bm25)):
        assert sorted(chunk for chunk, _ in fused) == sorted(dict(dense) | dict(bm25))
        assert fused == sorted(fused, key=lambda item: (-item[1], item[0]))
        assert all(0 <= score <= 1 + 1e-9 for _, score in fused)
