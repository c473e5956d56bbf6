from math import log2

import pytest

from headrace.evaluation import Question, Seen, Span, document_values, evidence_values

ASKED = Question(id="q", text="x", relevant={"a": 1, "b": 1})


def test_documents_are_measured_in_the_order_they_came() -> None:
    values = document_values([ASKED], {"q": ["z", "a", "y", "b"]})
    ideal = 1 + 1 / log2(3)
    assert values["nDCG@10"]["q"] == pytest.approx((1 / log2(3) + 1 / log2(5)) / ideal)
    assert values["recall@100"] == {"q": 1.0}
    assert values["MRR@10"] == {"q": 0.5}


def test_grades_count_in_ndcg() -> None:
    graded = Question(id="q", text="x", relevant={"a": 2, "b": 1})
    better = document_values([graded], {"q": ["a", "b"]})["nDCG@10"]["q"]
    worse = document_values([graded], {"q": ["b", "a"]})["nDCG@10"]["q"]
    assert better == pytest.approx(1)
    assert worse < better


def test_a_document_that_comes_again_counts_once() -> None:
    assert document_values([ASKED], {"q": ["a", "a", "a", "b"]}) == document_values([ASKED], {"q": ["a", "b"]})


def test_a_question_without_hits_counts_as_nothing() -> None:
    other = Question(id="r", text="x", relevant={"a": 1})
    values = document_values([ASKED, other], {"q": [], "r": ["a"]})
    assert values["nDCG@10"] == {"q": 0.0, "r": 1.0}


def test_the_eleventh_and_the_hundred_and_first_do_not_count() -> None:
    one = Question(id="q", text="x", relevant={"a": 1})
    others = [f"z{number}" for number in range(100)]
    eleventh = document_values([one], {"q": [*others[:10], "a"]})
    assert (eleventh["nDCG@10"]["q"], eleventh["MRR@10"]["q"], eleventh["recall@100"]["q"]) == (0, 0, 1)
    assert document_values([one], {"q": [*others, "a"]})["recall@100"]["q"] == 0


SPAN = Question(id="q", text="x", relevant={"a": 1}, evidence=[Span(doc_id="a", start=100, end=110)])


@pytest.mark.parametrize(
    ("seen", "found"),
    [
        (("a", 0, 105), 1.0),
        (("a", 105, 200), 1.0),
        (("a", 0, 104), 0.0),
        (("a", 106, 200), 0.0),
        (("b", 90, 120), 0.0),
        (("a", 103, 108), 1.0),
    ],
)
def test_a_passage_has_the_evidence_where_it_covers_half_of_it_in_its_document(
    seen: tuple[str, int, int], found: float
) -> None:
    doc_id, start, end = seen
    values = evidence_values([SPAN], {"q": [Seen(doc_id=doc_id, start=start, end=end, text="x")]})
    assert values["evidence@1"] == {"q": found}


def test_evidence_counts_from_the_rank_it_came_at() -> None:
    no, yes = Seen(doc_id="b", start=0, end=9, text="no"), Seen(doc_id="a", start=99, end=111, text="yes")
    values = evidence_values([SPAN], {"q": [no, no, yes]})
    assert [values[f"evidence@{k}"]["q"] for k in (1, 3, 5, 10)] == [0, 1, 1, 1]


def test_any_of_several_spans_will_do() -> None:
    either = Question(id="q", text="x", evidence=[Span(doc_id="z", start=0, end=4), Span(doc_id="a", start=0, end=4)])
    values = evidence_values([either], {"q": [Seen(doc_id="a", start=0, end=4, text="four")]})
    assert values["evidence@1"]["q"] == 1


def test_what_lies_behind_the_budgets_end_is_not_read() -> None:
    text = "word " * 1000
    late = Question(id="late", text="x", evidence=[Span(doc_id="a", start=5 * 600, end=5 * 600 + 4)])
    early = Question(id="early", text="x", evidence=[Span(doc_id="a", start=5 * 499, end=5 * 499 + 4)])
    passage = Seen(doc_id="a", start=0, end=len(text), text=text)
    values = evidence_values([late, early], {"late": [passage], "early": [passage]})
    assert values["evidence in 500 words"] == {"late": 0.0, "early": 1.0}
    assert values["evidence in 1,000 words"] == {"late": 1.0, "early": 1.0}


def test_earlier_passages_use_the_budget_up() -> None:
    found = Seen(doc_id="a", start=100, end=110, text="it is here")
    filler = Seen(doc_id="b", start=0, end=9, text="word " * 500)
    values = evidence_values([SPAN], {"q": [filler, found]})
    assert values["evidence in 500 words"]["q"] == 0
    assert values["evidence in 1,000 words"]["q"] == 1


def test_questions_without_evidence_are_left_out() -> None:
    assert evidence_values([ASKED], {"q": []}) == {}
