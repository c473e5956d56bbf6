from headrace.cli.filling import WINDOW_S, Estimate, Filling, Seen, duration
from topics.table import DOCUMENT_STAGES


def look(at: float, *, done: list[int], waiting: list[int]) -> Seen:
    """In the order of the stages: chunk, embed, upsert-milvus, upsert-opensearch, commit."""
    return Seen(
        at=at,
        done=dict(zip(DOCUMENT_STAGES, done, strict=True)),
        waiting=dict(zip(DOCUMENT_STAGES, waiting, strict=True)),
    )


def last(*looks: Seen) -> Estimate:
    filling = Filling()
    return [filling.add(one) for one in looks][-1]


def test_the_time_left_is_that_of_the_stage_that_has_the_most_left() -> None:
    found = last(
        look(0, done=[0, 0, 0, 0, 0], waiting=[1000, 0, 0, 0, 0]),
        # 100 documents a second are cut, into one message each, and 20 a second are embedded.
        look(10, done=[1000, 200, 200, 200, 400], waiting=[0, 800, 0, 0, 0]),
    )
    assert (found.slowest, found.seconds, found.fraction) == ("embed", 40.0, 0.2)
    assert (found.documents, found.of, found.waiting) == (1000, 1000, 800)


def test_what_the_waiting_documents_will_make_counts_for_the_stages_behind() -> None:
    found = last(
        look(0, done=[0, 0, 0, 0, 0], waiting=[1000, 0, 0, 0, 0]),
        # Two messages of each document so far; 100 are left of 20 a second.
        look(10, done=[100, 200, 200, 200, 400], waiting=[900, 0, 0, 0, 0]),
    )
    assert found.seconds == 90.0
    assert found.fraction == 0.1


def test_nothing_is_said_of_the_time_left_while_nothing_moves() -> None:
    still = [look(at, done=[5, 0, 0, 0, 0], waiting=[0, 5, 0, 0, 0]) for at in (0, 10, 20)]
    filling = Filling()
    assert [filling.add(one).seconds for one in still] == [None, None, None]
    assert filling.moved_at == 0


def test_rates_are_those_of_the_last_minute() -> None:
    looks = [look(at, done=[10 * at] * 5, waiting=[1000] + [0] * 4) for at in range(0, 301, 10)]
    slower = [look(300 + at, done=[3000 + at] * 5, waiting=[1000] + [0] * 4) for at in range(10, int(WINDOW_S) + 1, 10)]
    assert round(last(*looks).seconds or 0) == 100
    assert round(last(*looks, *slower).seconds or 0) == 1000


def test_an_empty_pipeline_is_done() -> None:
    found = last(look(0, done=[0] * 5, waiting=[0] * 5))
    assert (found.fraction, found.seconds) == (1.0, 0.0)


def test_durations_are_said_in_words() -> None:
    assert [duration(seconds) for seconds in (0.4, 89, 91, 5399, 7500)] == [
        "0 s",
        "89 s",
        "2 min",
        "1 h 30 min",
        "2 h 05 min",
    ]
