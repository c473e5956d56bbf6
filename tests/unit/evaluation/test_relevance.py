import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.evaluation import Cosines, nearest, tune_relevance
from headrace.evaluation.relevance import SHOWN, best_threshold
from headrace.llm import is_relevant
from schemas import Hit, HitScores

hundredths = st.integers(-100, 100).map(lambda number: number / 100)
cosine = st.one_of(st.floats(-1, 1), hundredths, st.sampled_from([math.inf, -math.inf]))
some = st.lists(cosine, min_size=1, max_size=12)
both = st.builds(Cosines, some, some)


def hit(dense: float | None) -> Hit:
    scores = HitScores(dense=dense)
    return Hit(rank=1, score=1, doc_id="d", chunk_id="c", ordinal=0, version=1, text="x", start=0, end=1, scores=scores)


def gain(cosines: Cosines, threshold: float) -> int:
    """The sum of both shares, times both counts."""
    answered = sum(one >= threshold for one in cosines.answerable)
    unknown = sum(one < threshold for one in cosines.unanswerable)
    return answered * len(cosines.unanswerable) + unknown * len(cosines.answerable)


@given(st.lists(st.none() | st.floats(-1, 1), max_size=5), hundredths)
def test_a_question_passes_a_threshold_just_where_the_answer_would(
    scores: list[float | None], threshold: float
) -> None:
    hits = [hit(score) for score in scores]
    assert (nearest(hits) >= threshold) == is_relevant(hits, threshold)


def test_the_threshold_lies_between_kinds_that_lie_apart_as_low_as_it_can() -> None:
    assert best_threshold(Cosines([0.61, 0.4], [0.12, 0.219])) == 0.22


def test_a_cosine_at_the_threshold_is_enough() -> None:
    assert best_threshold(Cosines([0.22], [0.21])) == 0.22


@given(both)
def test_no_other_threshold_is_better_and_no_lower_one_as_good(cosines: Cosines) -> None:
    best = best_threshold(cosines)
    without = len(cosines.answerable) * len(cosines.unanswerable)
    tried = [number / 100 for number in range(-100, 101)]
    if best is None:
        assert max(gain(cosines, one) for one in tried) <= without
    else:
        assert gain(cosines, best) > without
        assert all(gain(cosines, one) < gain(cosines, best) for one in tried if one < best)
        assert all(gain(cosines, one) <= gain(cosines, best) for one in tried if one > best)


@given(both)
def test_asking_each_question_twice_changes_nothing(cosines: Cosines) -> None:
    twice = Cosines([*cosines.answerable] * 2, [*cosines.unanswerable] * 2)
    assert best_threshold(twice) == best_threshold(cosines)


def test_where_the_unanswerable_are_nearer_no_threshold_is_recommended() -> None:
    found = tune_relevance(Cosines([0.1], [0.5]), Cosines([0.9], [0.1]))
    assert found.recommended is None
    assert [one.threshold for one in found.thresholds] == list(SHOWN)


def test_shares_are_of_the_questions_that_were_not_tuned_on() -> None:
    found = tune_relevance(Cosines([0.5, 0.6, 0.7], [0.125]), Cosines([0.4, 0.1], [0.3, 0.2, 0.15, 0.05]))
    assert found.recommended == 0.13
    assert (found.tuned_on.answerable, found.tuned_on.unanswerable) == (3, 1)
    assert (found.reported_on.answerable, found.reported_on.unanswerable) == (2, 4)
    shares = {one.threshold: (one.answered.mean, one.unknown.mean) for one in found.thresholds}
    assert list(shares) == sorted({*SHOWN, 0.13})
    assert (shares[0.1], shares[0.13], shares[0.2], shares[0.5]) == ((1, 0.25), (0.5, 0.25), (0.5, 0.5), (0, 1))
    recommended = found.thresholds[1]
    assert recommended.answered.low < recommended.answered.mean < recommended.answered.high


@settings(deadline=None, max_examples=25)  # Each draws two dozen bootstrap intervals.
@given(both, both)
def test_a_higher_threshold_answers_fewer_and_says_more_often_that_it_does_not_know(
    tune_on: Cosines, report_on: Cosines
) -> None:
    rising = tune_relevance(tune_on, report_on).thresholds
    assert [one.threshold for one in rising] == sorted(one.threshold for one in rising)
    answered, unknown = [one.answered.mean for one in rising], [one.unknown.mean for one in rising]
    assert answered == sorted(answered, reverse=True)
    assert unknown == sorted(unknown)


@pytest.mark.parametrize(
    ("tune_on", "report_on"),
    [
        (Cosines([], [0.1]), Cosines([0.5], [0.1])),
        (Cosines([0.5], []), Cosines([0.5], [0.1])),
        (Cosines([0.5], [0.1]), Cosines([], [0.1])),
        (Cosines([0.5], [0.1]), Cosines([0.5], [])),
    ],
)
def test_both_kinds_of_questions_are_needed_on_both_sides(tune_on: Cosines, report_on: Cosines) -> None:
    with pytest.raises(ValueError, match=r"kinds|no values"):
        tune_relevance(tune_on, report_on)
