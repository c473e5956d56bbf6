"""What counts as an answer, and what is asked again."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace
from rich.console import Console

from headrace.cli import evaluating
from headrace.cli.evaluating import Interview, chunkings_to_try, scratch_tenant, tune
from headrace.cli.evaluation_tables import print_relevance
from headrace.errors import HeadraceError, Transient
from headrace.evaluation import Cosines, Dataset, Question, RetrievalSetting, Span, tune_relevance
from schemas import Answer, AnswerError, Chunking, Hit, HitScores, Query
from schemas.key import check_tenant

QUESTIONS = [Question(id=str(number), text=f"question {number}", relevant={"a": 1}) for number in range(3)]
PLAIN = RetrievalSetting(name="plain")
RATE_LIMITED = Answer(error=AnswerError(code="rate_limited", message="slow down", retry_after_ms=10))


def hit(doc_id: str, rank: int = 1) -> Hit:
    return Hit(rank=rank, score=1, doc_id=doc_id, chunk_id="c", ordinal=0, version=1, text="x y", start=0, end=3)


GOOD = Answer(hits=[hit("z"), hit("a", 2)])


class Replies:
    """Answers as a function of the query and of how often it came."""

    def __init__(self, reply: Callable[[Query, int], Answer | None]) -> None:
        self._reply = reply
        self.asked: list[Query] = []

    def ask_many(self, queries: Sequence[Query], **_: Any) -> list[Answer | None]:
        self.asked += queries
        return [self._reply(query, self.asked.count(query)) for query in queries]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating.time, "sleep", lambda _: None)


def interview(replies: Replies) -> Interview:
    return Interview(asker=replies, tenant="t", in_flight=4, timeout_s=1, show=lambda *_: None)  # type: ignore[arg-type]


def test_documents_are_asked_for_one_passage_each() -> None:
    replies = Replies(lambda *_: GOOD)
    report = interview(replies).measure(PLAIN, QUESTIONS)
    assert report.measures["MRR@10"].interval.mean == 0.5
    assert [(query.query, query.top_k, query.max_per_document) for query in replies.asked] == [
        (f"question {number}", 100, 1) for number in range(3)
    ]


def test_evidence_is_looked_for_in_passages_as_a_reader_gets_them() -> None:
    located = [Question(id="e", text="where?", evidence=[Span(doc_id="a", start=0, end=3)])]
    replies = Replies(lambda *_: GOOD)
    report = interview(replies).measure(PLAIN, located)
    assert (report.measures["evidence@1"].interval.mean, report.measures["evidence@3"].interval.mean) == (0, 1)
    assert [query.max_per_document for query in replies.asked] == [None]


@pytest.mark.parametrize("passing", [None, RATE_LIMITED, Answer(hits=[hit("z")], degraded=["milvus"])])
def test_what_passes_is_asked_again_and_leaves_no_trace(passing: Answer | None) -> None:
    replies = Replies(lambda query, times: passing if query.query == "question 1" and times == 1 else GOOD)
    report = interview(replies).measure(PLAIN, QUESTIONS)
    assert report.measures["nDCG@10"].values.keys() == {"0", "1", "2"}
    assert len(set(report.measures["nDCG@10"].values.values())) == 1
    assert len(replies.asked) == 4


def test_a_rate_that_lets_a_question_through_now_and_then_is_waited_for() -> None:
    many = [Question(id=str(number), text=f"question {number}", relevant={"a": 1}) for number in range(8)]
    answered: set[str] = set()

    def one_a_round(query: Query, times: int) -> Answer:
        if len(answered) < times:
            answered.add(query.query)
            return GOOD
        return RATE_LIMITED

    report = interview(Replies(one_a_round)).measure(PLAIN, many)
    assert report.measures["nDCG@10"].questions == 8


@pytest.mark.parametrize(
    ("lasting", "said"),
    [
        (RATE_LIMITED, "plain: 1 of 3 questions .* 1 x rate_limited: slow down"),
        (Answer(degraded=["opensearch"]), "1 x answered without opensearch"),
        (None, "1 x no reply in time"),
        (Answer(error=AnswerError(code="bad_request", message="no such thing")), "1 x bad_request: no such thing"),
    ],
)
def test_what_lasts_ends_the_run_and_says_why(lasting: Answer | None, said: str) -> None:
    replies = Replies(lambda query, _: lasting if query.query == "question 1" else GOOD)
    with pytest.raises(HeadraceError, match=said):
        interview(replies).measure(PLAIN, QUESTIONS)


def test_nobody_answering_is_a_server_that_is_away() -> None:
    with pytest.raises(Transient, match="no question of 3 was answered"):
        interview(Replies(lambda *_: None)).measure(PLAIN, QUESTIONS)


def test_without_a_reranker_nothing_is_asked_twice() -> None:
    replies = Replies(lambda *_: Answer(hits=[hit("a")], degraded=["rerank"]))
    with pytest.raises(HeadraceError, match="HEADRACE_RERANK__ENABLED"):
        interview(replies).measure(PLAIN.reranked(), QUESTIONS)
    assert len(replies.asked) == 3


def test_the_best_of_the_questions_to_tune_on_is_chosen() -> None:
    wanted = Chunking(max_tokens=128, overlap_tokens=32)

    def reply(chunking: Chunking) -> Callable[[Query, int], Answer]:
        def answer(query: Query, _: int) -> Answer:
            best = chunking == wanted and query.fusion is not None and query.fusion.alpha == 0.3
            better = chunking == wanted
            return Answer(hits=[hit("a")] if best else [hit("z"), hit("a", 2)] if better else [hit("z")])

        return answer

    tuned = tune(lambda chunking: interview(Replies(reply(chunking))), QUESTIONS, [Chunking(), wanted])
    assert (tuned.measure, tuned.chunking, tuned.setting.name, tuned.passages) == (
        "nDCG@10",
        wanted,
        "convex 0.3",
        None,
    )


def test_the_fewest_passages_that_have_nearly_all_answers_are_enough() -> None:
    located = [Question(id="e", text="where?", evidence=[Span(doc_id="a", start=0, end=3)])]
    hits = Answer(hits=[hit("z"), hit("z", 2), hit("a", 3)])
    tuned = tune(lambda _: interview(Replies(lambda *_: hits)), located, [Chunking()])
    assert (tuned.measure, tuned.passages) == ("evidence@10", 3)


def near(cosine: float | None) -> Hit:
    return replace(hit("a"), scores=HitScores(dense=cosine))


def test_the_nearest_hits_cosine_is_taken_of_what_an_app_would_get() -> None:
    found = {"question 0": [near(0.2), near(0.5)], "question 1": [near(None), near(0.1)], "question 2": []}
    replies = Replies(lambda query, _: Answer(hits=found[query.query]))
    assert interview(replies).nearest(QUESTIONS) == [0.5, 0.1, float("-inf")]
    assert replies.asked == [Query(query=question.text, tenant="t") for question in QUESTIONS]


def test_while_the_vectors_are_away_no_threshold_is_tuned() -> None:
    replies = Replies(lambda *_: Answer(hits=[near(None)], degraded=["milvus"]))
    with pytest.raises(HeadraceError, match=r"relevance: 3 of 3 questions .* 3 x answered without milvus"):
        interview(replies).nearest(QUESTIONS)


@pytest.mark.parametrize("hits", [[], [near(None)]])
def test_without_any_cosine_no_threshold_is_tuned(hits: list[Hit]) -> None:
    with pytest.raises(HeadraceError, match="no hit of tenant t has a cosine"):
        interview(Replies(lambda *_: Answer(hits=hits))).nearest(QUESTIONS)


@pytest.mark.parametrize(
    ("tune_on", "said"),
    [
        (Cosines([0.5], [0.125]), "Recommended: HEADRACE_LLM__MIN_RELEVANCE=0.13, tuned on 1 answerable"),
        (Cosines([0.1], [0.5]), "No threshold tells them apart: leave HEADRACE_LLM__MIN_RELEVANCE unset"),
    ],
)
def test_the_setting_to_set_is_named(tune_on: Cosines, said: str) -> None:
    console = Console(record=True, width=120)
    print_relevance(console, tune_relevance(tune_on, Cosines([0.4, 0.1], [0.1])))
    printed = console.export_text()
    assert said in printed
    for told in ("answerable (2): answered", "unanswerable (1)", "0.15 ", "0.500  .000–1 "):
        assert told in printed


def dataset(digest: str = "00") -> Dataset:
    return Dataset(name="Sci Fact!", documents=lambda: iter(()), count=0, digest=digest, test=[], train=[])


def test_a_scratch_tenant_is_of_these_documents_cut_and_embedded_so() -> None:
    one = scratch_tenant(dataset(), Chunking(), "model")
    assert check_tenant(one).startswith("eval-sci-fact-")
    assert one == scratch_tenant(dataset(), Chunking(), "model")
    others = [
        scratch_tenant(dataset("01"), Chunking(), "model"),
        scratch_tenant(dataset(), Chunking(max_tokens=128), "model"),
        scratch_tenant(dataset(), Chunking(), "model+title"),
    ]
    assert len({one, *others}) == 4


def test_only_chunks_that_the_encoder_reads_are_tried() -> None:
    tried = chunkings_to_try(Chunking(max_tokens=192, overlap_tokens=0), 200)
    assert [(one.max_tokens, one.overlap_tokens) for one in tried] == [(192, 0), (128, 32)]
