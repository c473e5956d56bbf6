"""What `headrace top` makes of two readings."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from rich.console import Console

from headrace.cli.groups import Group, Groups
from headrace.cli.metrics_page import Page, buckets, increase, look, quantile, quantile_of, read_page
from headrace.cli.top_reading import SAMPLES, Reading, Told, local_urls, metrics_url, told_of
from headrace.cli.top_table import Screen, age, number
from headrace.cli.top_view import StageRow, View, recent, view
from headrace.config import Settings
from schemas import DocumentEvent, encode
from topics import GROUPS, LANES, Names
from topics.settings import KafkaSettings

BEGAN = 1_700_000_000.0
STARTED = f"process_start_time_seconds {BEGAN - 100}\n"


def page(text: str, started: str = STARTED) -> Page:
    return read_page(started + text, SAMPLES)


def groups(
    *,
    ends: Mapping[tuple[str, int], int] = {},
    begins: Mapping[tuple[str, int], int] = {},
    committed: Mapping[str, Mapping[tuple[str, int], int]] = {},
    workers: int | Mapping[str, int] = 1,
    rebalancing: frozenset[str] = frozenset(),
    dead: int = 0,
) -> Groups:
    names = Names()
    topics = {stage: {lane: names.read_by(stage, lane) for lane in LANES} for stage in GROUPS}
    places = {(topic, 0): 0 for lanes in topics.values() for found in lanes.values() for topic in found}
    return Groups(
        topics=topics,
        begins=places | dict(begins),
        ends=places | dict(ends),
        groups={
            stage: Group(
                committed=committed.get(stage, {}),
                workers=workers if isinstance(workers, int) else workers.get(stage, 0),
                rebalancing=stage in rebalancing,
            )
            for stage in GROUPS
        },
        dead=dead,
    )


def row(found: View, stage: str) -> StageRow:
    return next(one for one in found.stages if one.stage == stage)


def shown(found: View, width: int) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(Screen(view=found, title="headrace top"))
    return console.export_text()


# Counters and quantiles


@pytest.mark.parametrize(
    ("before", "after", "grown"),
    [
        ('headrace_chunks_total{stage="embed",lane="bulk"} 10\n', 'headrace_chunks_total{stage="embed",lane="bulk"} 25\n', 15),
        # It fell back: it began again at 0.
        ('headrace_chunks_total{stage="embed",lane="bulk"} 10\n', 'headrace_chunks_total{stage="embed",lane="bulk"} 4\n', 4),
        # It wasn't there before, in a worker that was.
        ("", 'headrace_chunks_total{stage="embed",lane="bulk"} 7\n', 7),
    ],
)  # fmt: skip
def test_a_counter_grows_by_what_it_gained_or_by_all_after_a_reset(before: str, after: str, grown: float) -> None:
    found = look(page(before), page(after), before_at=BEGAN)
    assert found is not None
    assert increase([found], "headrace_chunks_total", stage="embed") == grown


def test_a_worker_that_was_restarted_counts_from_its_start_though_it_has_passed_its_old_count() -> None:
    before = page('headrace_chunks_total{stage="embed",lane="bulk"} 10\n')
    after = page('headrace_chunks_total{stage="embed",lane="bulk"} 25\n', f"process_start_time_seconds {BEGAN + 1}\n")
    found = look(before, after, before_at=BEGAN)
    assert found is not None
    assert increase([found], "headrace_chunks_total") == 25


def test_what_a_worker_did_before_its_first_page_is_not_counted_as_done_since() -> None:
    old = page('headrace_chunks_total{stage="embed",lane="bulk"} 1000\n')
    assert look(None, old, before_at=BEGAN) is None
    new = page('headrace_chunks_total{stage="embed",lane="bulk"} 5\n', f"process_start_time_seconds {BEGAN + 1}\n")
    found = look(None, new, before_at=BEGAN)
    assert found is not None
    assert increase([found], "headrace_chunks_total") == 5


INF = math.inf


@pytest.mark.parametrize(
    ("fraction", "counted", "expected"),
    [
        (0.5, {1.0: 0, 2.0: 10, INF: 10}, 1.5),  # in the middle of the bucket that holds them all
        (0.5, {1.0: 10, 2.0: 10, INF: 10}, 0.5),  # the first bucket begins at 0
        (0.99, {1.0: 50, 2.0: 100, INF: 100}, 1.98),
        (0.99, {1.0: 0, 2.0: 1, INF: 100}, 2.0),  # in the last one, which has no end: where it begins
        (0.5, {1.0: 2, 2.0: 2, 5.0: 4, INF: 4}, 1.0),  # an empty bucket between: the end of the one before it
        (0.5, {1.0: 0, INF: 0}, None),
        (0.5, {INF: 3}, None),
        (0.5, {}, None),
        (0.5, {1.0: 3, 2.0: 4}, None),  # without +Inf it is no histogram
    ],
)
def test_a_quantile_is_linear_within_its_bucket_as_histogram_quantile_has_it(
    fraction: float, counted: dict[float, float], expected: float | None
) -> None:
    assert quantile(fraction, counted) == pytest.approx(expected)


@given(st.lists(st.floats(0, 20), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_lies_in_the_bucket_of_the_observation_that_it_is(values: list[float], fraction: float) -> None:
    bounds = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0)
    registry = CollectorRegistry()
    histogram = Histogram("search_latency_ms", "", buckets=bounds, registry=registry)
    for value in values:
        histogram.observe(value)
    found = look(Page({}), read_page(generate_latest(registry).decode(), SAMPLES), before_at=0)
    assert found is not None
    estimate = quantile(fraction, buckets([found], "search_latency_ms"))
    exact = sorted(values)[math.ceil(fraction * len(values)) - 1]
    above = next((bound for bound in bounds if exact <= bound), INF)
    below = max((bound for bound in (0.0, *bounds) if bound < above), default=0.0)
    assert estimate is not None
    assert below <= estimate <= (above if above < INF else bounds[-1]) * (1 + 1e-9)  # floats


def test_a_quantile_of_single_values_is_linear_between_two_of_them() -> None:
    assert quantile_of(0.5, [4, 1, 2, 3]) == 2.5
    assert quantile_of(0.99, [7]) == 7
    assert quantile_of(0.5, []) is None


# From Kafka alone

RAW, URGENT, EVENTS = ("documents.raw", 0), ("documents.urgent", 0), ("documents.events", 0)


def test_lag_rate_and_workers_need_nobody_but_kafka() -> None:
    before = Reading(at=BEGAN, groups=groups(ends={RAW: 100}, committed={"chunk": {RAW: 20}}))
    after = Reading(
        at=BEGAN + 2, groups=groups(ends={RAW: 130, URGENT: 4}, committed={"chunk": {RAW: 50, URGENT: 4}}, workers=3)
    )
    chunk = row(view([before, after]), "chunk")
    assert chunk.lag == {"urgent": 0, "bulk": 80}
    assert chunk.messages_per_s == (30 + 4) / 2
    assert chunk.workers == 3
    assert chunk.chunks_per_s is None


def test_what_retention_took_is_neither_lag_nor_work_done() -> None:
    before = Reading(at=BEGAN, groups=groups(ends={RAW: 100}, begins={RAW: 60}))
    after = Reading(at=BEGAN + 1, groups=groups(ends={RAW: 100}, begins={RAW: 60}, committed={"chunk": {RAW: 70}}))
    assert row(view([before]), "chunk").lag == {"urgent": 0, "bulk": 40}
    assert row(view([before, after]), "chunk").messages_per_s == 10


def test_a_position_that_was_set_back_is_no_negative_rate() -> None:
    before = Reading(at=BEGAN, groups=groups(ends={RAW: 100}, committed={"chunk": {RAW: 100}}))
    after = Reading(at=BEGAN + 1, groups=groups(ends={RAW: 100}, committed={"chunk": {RAW: 0}}))
    assert row(view([before, after]), "chunk").messages_per_s == 0


def test_a_lane_that_a_stage_does_not_have_is_not_shown_as_empty() -> None:
    assert row(view([Reading(at=BEGAN, groups=groups())]), "commit").lag == {"bulk": 0}


def test_a_stage_without_workers_does_nothing_and_that_is_known() -> None:
    readings = [Reading(at=BEGAN + n, groups=groups(ends={RAW: 9}, workers=0)) for n in range(2)]
    found = view(readings)
    chunk = row(found, "chunk")
    assert (chunk.workers, chunk.chunks_per_s, chunk.in_hand, chunk.errors_per_s, chunk.waits_for) == (0, 0, 0, 0, [])
    assert [one for one in found.unknown if "in hand" in one.columns] == []


def test_the_age_of_lag_without_workers_is_that_of_its_first_record() -> None:
    reading = Reading(at=BEGAN, groups=groups(ends={RAW: 9}, workers=0), oldest={("chunk", "bulk"): BEGAN - 90})
    found = view([reading])
    assert row(found, "chunk").oldest_s == {"urgent": 0.0, "bulk": 90.0}
    assert not any("oldest" in one.columns for one in found.unknown)
    unread = view([Reading(at=BEGAN, groups=groups(ends={RAW: 9}, workers=0))])
    assert [one.stages for one in unread.unknown if "oldest" in one.columns] == [["chunk"]]


def test_dead_letters_are_counted_by_their_topic() -> None:
    found = view([Reading(at=BEGAN, groups=groups(dead=5)), Reading(at=BEGAN + 4, groups=groups(dead=7))])
    assert found.dead_letters_per_s == 0.5


# From metrics

EMBED = """\
headrace_chunks_total{stage="embed",lane="bulk"} %d
headrace_batch_messages_sum{stage="embed"} %d
headrace_batch_messages_count{stage="embed"} %d
headrace_in_hand_messages{stage="embed"} 12
headrace_dead_letters_total{stage="embed",code="bad_json"} %d
headrace_waiting{stage="embed",service="milvus"} 1
headrace_waiting{stage="embed",service="opensearch"} 0
headrace_oldest_unprocessed_seconds{stage="embed",lane="bulk"} 7.5
headrace_oldest_unprocessed_seconds{stage="embed",lane="urgent"} 0
"""
CHUNKS = ("documents.chunks", 0)


def test_the_workers_of_a_stage_are_taken_together() -> None:
    known = groups(ends={CHUNKS: 9}, workers={"embed": 2})
    before = Reading(at=BEGAN, groups=known, pages={"a": page(EMBED % (0, 0, 0, 0)), "b": page(EMBED % (0, 0, 0, 0))})
    after = Reading(
        at=BEGAN + 2, groups=known, pages={"a": page(EMBED % (100, 60, 2, 1)), "b": page(EMBED % (20, 20, 2, 0))}
    )
    found = view([before, after])
    embed = row(found, "embed")
    assert (embed.chunks_per_s, embed.batch_messages, embed.in_hand, embed.errors_per_s) == (60, 20, 24, 0.5)
    assert (embed.waits_for, embed.oldest_s) == (["milvus"], {"urgent": 0, "bulk": 7.5})
    assert found.unknown == []


def test_it_says_where_metrics_are_those_of_a_part_of_the_workers() -> None:
    found = view([Reading(at=BEGAN + n, groups=groups(workers={"embed": 3}), pages={"a": page(EMBED % (0, 0, 0, 0))}) for n in range(2)])  # fmt: skip
    [one] = found.unknown
    assert one.stages == ["embed"]
    assert "1 of its 3 workers" in one.why


def test_it_says_which_columns_are_unknown_and_why() -> None:
    silent = {"http://127.0.0.1:9100/metrics": "does not answer (Connection refused)"}
    found = view([Reading(at=BEGAN + n, groups=groups(), silent=silent) for n in range(2)])
    [one] = found.unknown
    assert one.stages == list(GROUPS)
    assert "chunks/s" in one.columns
    assert "lag" not in one.columns
    assert "127.0.0.1:9100 does not answer (Connection refused)" in one.why


def test_an_address_that_was_named_and_does_not_answer_is_told_of_though_nothing_lacks() -> None:
    silent = {"http://elsewhere:9100/metrics": "does not answer (timed out)"}
    known = groups(workers=0)
    readings = [Reading(at=BEGAN + n, groups=known, silent=silent, named=frozenset(silent)) for n in range(2)]
    assert [one.why for one in view(readings).unknown] == ["elsewhere:9100 does not answer (timed out)"]
    not_named = [Reading(at=BEGAN + n, groups=known, silent=silent) for n in range(2)]
    assert view(not_named).unknown == []


def test_while_kafka_is_away_the_workers_still_tell() -> None:
    readings = [
        Reading(at=BEGAN + n, away="no broker answers", pages={"a": page(EMBED % (n, 0, 0, 0))}) for n in range(2)
    ]
    found = view(readings)
    embed = row(found, "embed")
    assert (embed.lag, embed.workers, embed.messages_per_s) == (None, None, None)
    assert embed.chunks_per_s == 1
    assert [one.why for one in found.unknown if "lag" in one.columns] == ["no broker answers"]


def test_the_first_reading_has_no_rates_and_says_so() -> None:
    found = view([Reading(at=BEGAN, groups=groups(), pages={"a": page(EMBED % (9, 9, 9, 9))})])
    assert (found.over_s, row(found, "embed").messages_per_s, row(found, "embed").chunks_per_s) == (None, None, None)
    assert "second reading" in found.unknown[-1].why


# Freshness and questions

FRESHNESS = """\
headrace_freshness_seconds_bucket{lane="bulk",le="1.0"} %d
headrace_freshness_seconds_bucket{lane="bulk",le="2.5"} %d
headrace_freshness_seconds_bucket{lane="bulk",le="+Inf"} %d
headrace_consumer_lag_messages{stage="commit",lane="bulk"} 0
"""


def test_freshness_is_of_the_last_minute_and_goes_on_over_a_restart() -> None:
    restarted = page(FRESHNESS % (0, 50, 50), f"process_start_time_seconds {BEGAN + 1.5}\n")
    pages = [page(FRESHNESS % (0, 0, 0)), page(FRESHNESS % (50, 50, 50)), restarted]
    found = view([Reading(at=BEGAN + n, groups=groups(), pages={"a": one}) for n, one in enumerate(pages)])
    [bulk] = found.freshness
    assert (bulk.source, bulk.lane, bulk.documents) == ("metrics", "bulk", 100)
    assert (bulk.p50_s, bulk.p99_s) == pytest.approx((1.0, 1 + 1.5 * 49 / 50))


def test_without_metrics_freshness_comes_from_events() -> None:
    told = [Told(BEGAN, 1.0), Told(BEGAN, 3.0)]
    [one] = view([Reading(at=BEGAN, groups=groups(), told=told)]).freshness
    assert (one.source, one.lane, one.documents, one.p50_s) == ("events", None, 2, 2.0)


def test_readings_of_the_last_minute_are_kept_and_the_one_before_them() -> None:
    readings = [Reading(at=BEGAN + n) for n in (0, 10, 50, 69, 71)]
    assert [one.at - BEGAN for one in recent(readings, BEGAN + 71)] == [10, 50, 69, 71]


@pytest.mark.parametrize(
    ("event", "freshness"),
    [
        ({"status": "indexed", "stage": "commit", "version": 1_700_000_000_000}, 2.5),
        ({"status": "deleted", "stage": "commit", "version": 1_700_000_000_000}, 2.5),
        ({"status": "superseded", "stage": "commit", "version": 1_700_000_000_000}, None),
        ({"status": "unchanged", "stage": "chunk", "version": 1_700_000_000_000}, None),
        ({"status": "indexed", "stage": "commit", "version": 7}, None),  # a version that its producer named
        ({"status": "indexed", "stage": "commit", "version": None}, None),
    ],
)
def test_an_event_tells_freshness_where_the_version_is_its_records_time(
    event: dict[str, Any], freshness: float | None
) -> None:
    from datetime import UTC, datetime

    told = told_of(1_700_000_002_500, encode(DocumentEvent(at=datetime.now(UTC), **event)))
    assert (told and told.freshness_s) == freshness
    assert told_of(0, b"no json") is None


QUERY = """\
search_latency_ms_bucket{le="100.0"} %d
search_latency_ms_bucket{le="250.0"} %d
search_latency_ms_bucket{le="+Inf"} %d
headrace_degraded_answers_total{part="milvus"} %d
headrace_answer_errors_total{code="timeout"} %d
headrace_in_hand_messages{stage="query"} 0
"""
QUERIES = ("queries", 0)


def test_questions_have_a_rate_a_latency_and_what_they_lacked() -> None:
    before = Reading(at=BEGAN, groups=groups(ends={QUERIES: 0}), pages={"q": page(QUERY % (0, 0, 0, 0, 0))})
    after = Reading(
        at=BEGAN + 2,
        groups=groups(ends={QUERIES: 10}, committed={"query": {QUERIES: 10}}),
        pages={"q": page(QUERY % (0, 10, 10, 4, 1))},
    )
    found = view([before, after])
    asked = found.questions
    assert (asked.per_s, asked.p50_ms) == (5, 175)
    assert (asked.degraded_per_s, asked.errors_per_s) == ({"milvus": 2}, {"timeout": 0.5})
    assert row(found, "query").errors_per_s == 0.5


# What it looks like


def busy(workers: int = 12) -> View:
    big = groups(
        ends={RAW: 123_456_789, ("documents.stored", 0): 44_000},
        workers=workers,
        rebalancing=frozenset({"embed"}),
    )
    pages = {"a": page(EMBED % (0, 0, 0, 0)), "c": page(FRESHNESS % (0, 0, 0)), "q": page(QUERY % (0, 0, 0, 0, 0))}
    later = {
        "a": page(EMBED % (99_999, 60, 2, 1)),
        "c": page(FRESHNESS % (5, 9, 9)),
        "q": page(QUERY % (3, 4, 4, 1, 1)),
    }
    return view([Reading(at=BEGAN, groups=big, pages=pages), Reading(at=BEGAN + 1, groups=big, pages=later)])


@pytest.mark.parametrize("width", [80, 90, 120])
def test_the_table_keeps_within_the_terminal_and_shows_every_column(width: int) -> None:
    text = shown(busy(), width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    embed = next(line for line in lines if line.startswith("embed "))
    assert embed.split()[:9] == ["embed", "0", "0", "0", "0", "100k", "12*", "30", "12"]
    assert all(any(line.startswith(f"{stage} ") for line in lines) for stage in GROUPS)
    assert "milvus" in text
    assert "…" not in "\n".join(line for line in lines if line.startswith(GROUPS))


def test_what_is_unknown_is_a_question_mark() -> None:
    text = shown(view([Reading(at=BEGAN + n, groups=groups()) for n in range(2)]), 100)
    [embed] = [line for line in text.splitlines() if line.startswith("embed ")]
    assert embed.split() == ["embed", "0", "0", "0", "0", "?", "1", "?", "?", "?", "?"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "?"), (0, "0"), (0.04, "<0.1"), (0.26, "0.3"), (3, "3"), (9.96, "10"), (1234, "1234"), (12_345, "12.3k"),
     (123_456, "123k"), (999_600, "1.0M"), (123_456_789, "123M"), (4e9, "4.0G")],
)  # fmt: skip
def test_numbers_take_five_characters_at_most(value: float | None, text: str) -> None:
    assert number(value) == text
    assert len(text) <= 5


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0"), (0.4, "0.4s"), (12.3, "12s"), (90, "2min"), (7200, "2h"), (200_000, "2d")]
)
def test_ages_are_in_the_largest_unit_that_they_have_one_of(seconds: float, text: str) -> None:
    assert age(seconds) == text


# Which workers are asked


@pytest.mark.parametrize(
    ("given_url", "url"),
    [
        ("10.0.0.7:9101", "http://10.0.0.7:9101/metrics"),
        ("http://embed:9101", "http://embed:9101/metrics"),
        ("https://gate/embed/metrics", "https://gate/embed/metrics"),
    ],
)
def test_an_address_becomes_the_url_of_its_metrics(given_url: str, url: str) -> None:
    assert metrics_url(given_url) == url


@pytest.mark.parametrize("wrong", ["", "ftp://x/metrics", "http://", "x:0", "x:port"])
def test_what_is_no_address_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError):
        metrics_url(wrong)


def test_workers_on_this_machine_are_asked_only_where_the_servers_are_on_it_too() -> None:
    here = Settings()
    assert len(local_urls(here)) == len(GROUPS)
    elsewhere = here.model_copy(update={"kafka": KafkaSettings(bootstrap_servers="broker:9092")})
    assert local_urls(elsewhere) == []
