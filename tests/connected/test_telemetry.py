"""What real workers tell of real documents and questions: each version once, few labels, nothing left behind, and no secrets."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.config import Settings
from tests.acceptance.conftest import App
from tests.conftest import Deployment, deploy
from tests.unit.operations_tables import log_events
from topics import GROUPS

WITHIN_S = 60.0
SECRET = "zq7x9marker"
"""In what no log may show: texts, titles, doc_ids, questions and keys of APIs."""
TENANTS = ("acme", "birch", "cedar")
COUNTED = 2
OF_EACH = 3
LONG_AGO_MS = 1_500_000_000_000


def samples(page: str, name: str) -> dict[tuple[str, ...], float]:
    """Of one name, by the values of its labels in the order of their names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name
    }


def until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def document(number: int, **fields: Any) -> dict[str, Any]:
    return {"text": f"The {number}. turbine {SECRET} is driven by water.", "title": f"{SECRET} {number}", **fields}


class Told:
    """What the workers told after all that was sent."""

    def __init__(self, deployment: Deployment) -> None:
        self.pages = {stage: deployment.metrics(stage) for stage in GROUPS}
        self.held: dict[str, float] = {}
        self.logs: dict[str, str] = {}
        self.sent = Counter[str]()

    def lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for stage, log in self.logs.items():
            for line in log.splitlines():
                yield stage, json.loads(line)


@pytest.fixture(scope="module")
def told(servers: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    deployment = deploy(
        servers,
        tmp_path_factory.mktemp("telemetry"),
        HEADRACE_ENCODER__BACKEND="static",
        HEADRACE_METRICS__TENANTS=str(COUNTED),
        HEADRACE_LOG__LEVEL="DEBUG",
        HEADRACE_LLM__PROVIDER="openai",
        HEADRACE_LLM__MODEL="some",
        HEADRACE_LLM__BASE_URL="http://127.0.0.1:1/v1",
        HEADRACE_LLM__API_KEY=SECRET,
        HEADRACE_LLM__MAX_RETRIES="0",
    )
    try:
        yield everything_told(deployment)
    finally:
        deployment.drop()


def everything_told(deployment: Deployment) -> Told:
    def metric(stage: str, name: str, *labels: str) -> float:
        return samples(deployment.metrics(stage), name).get(labels, 0.0)

    away = deployment.start("upsert-milvus", environment={"HEADRACE_STORES__MILVUS__URI": "http://127.0.0.1:1"})
    deployment.start_all([stage for stage in GROUPS if stage != "upsert-milvus"])
    app = App(deployment.settings.kafka.bootstrap_servers, deployment.settings.kafka.topic_prefix)
    keys = [f"{tenant}/{SECRET}-{number}" for tenant in TENANTS for number in range(OF_EACH)]
    for number, key in enumerate(keys):
        app.send(key, document(number), topic="documents.urgent" if number == 0 else "documents.raw")
    # What waits for Milvus is behind, and its age grows.
    until(lambda: metric("upsert-milvus", "headrace_oldest_unprocessed_seconds", "bulk", "upsert-milvus") > 0, "no age")
    lag = metric("upsert-milvus", "headrace_consumer_lag_messages", "bulk", "upsert-milvus")
    away.terminate()
    assert away.wait(60) == 0
    deployment.wait_ready("upsert-milvus", deployment.start("upsert-milvus"))
    for key in keys:
        app.event(key, status="indexed")
    # Again and unchanged; long ago, and live all the same; and as `headrace dead replay` sends it.
    app.send(keys[1], document(1))
    app.event(keys[1], status="unchanged")
    app.send(f"acme/{SECRET}-old", document(20), timestamp=LONG_AGO_MS)
    app.event(f"acme/{SECRET}-old", status="indexed")
    app.send(f"acme/{SECRET}-again", document(21), headers=[("headrace.replays", b"1")])
    app.event(f"acme/{SECRET}-again", status="indexed")
    # What can't be read, with the marker in every place that a reason could quote.
    for number, value in enumerate(
        (
            document(30, content_type=SECRET),
            document(31, doc_id=f"other-{SECRET}"),
            document(32, tenant=f"{SECRET} {SECRET}"),
            f'{{"text": "{SECRET}'.encode(),
        )
    ):
        app.send(f"birch/{SECRET}-bad-{number}", value)
        app.event(f"birch/{SECRET}-bad-{number}", status="failed")
    for tenant in TENANTS:
        asked = {"query": f"What drives {SECRET}?", "tenant": tenant, "mode": "answer", "request_id": f"of-{tenant}"}
        answer = app.ask(asked)
        assert answer["error"] is None
        assert answer["degraded"] == ["llm"]
        assert app.ask(asked)["error"] is None
    assert app.ask({"query": SECRET, "tenant": f"{SECRET.upper()}"})["error"]["code"] == "bad_request"

    def is_done(stage: str) -> bool:
        page = deployment.metrics(stage)
        behind = {
            **samples(page, "headrace_consumer_lag_messages"),
            **samples(page, "headrace_oldest_unprocessed_seconds"),
        }
        return not any(behind.values()) and not samples(page, "headrace_in_hand_messages")[(stage,)]

    for stage in GROUPS:
        until(lambda stage=stage: is_done(stage), f"{stage} stays behind: {deployment.metrics(stage)}")  # type: ignore[misc]
    told = Told(deployment)
    told.held = {"lag": lag}
    app.close()
    deployment.stop()
    told.logs = {log.stem: log.read_text() for log in deployment.logs.glob("*.log")}
    return told


class TestMetrics:
    def test_each_version_that_became_live_is_fresh_once_in_its_lane(self, told: Told) -> None:
        counted = samples(told.pages["commit"], "headrace_freshness_seconds_count")
        assert counted == {("bulk",): len(TENANTS) * OF_EACH - 1, ("urgent",): 1}
        beyond = samples(told.pages["commit"], "headrace_freshness_seconds_bucket")[("urgent", "3600.0")]
        assert beyond == 1

    def test_a_stage_that_waits_is_behind_and_none_is_behind_at_the_end(self, told: Told) -> None:
        assert told.held["lag"] > 0
        for stage in GROUPS:
            lanes = {stage_lane[0] for stage_lane in samples(told.pages[stage], "headrace_oldest_unprocessed_seconds")}
            assert lanes == ({"bulk"} if stage in {"commit", "query"} else {"bulk", "urgent"})

    def test_the_first_tenants_have_a_name_and_the_others_one_together(self, told: Told) -> None:
        documents = samples(told.pages["chunk"], "headrace_tenant_documents_total")
        assert len(documents) == COUNTED + 1
        assert ("other",) in documents
        assert sum(documents.values()) == len(TENANTS) * OF_EACH + 3  # What can't be read is nobody's.
        questions = samples(told.pages["query"], "headrace_tenant_questions_total")
        assert questions == {("acme",): 2, ("birch",): 2, ("other",): 2}

    def test_each_answer_is_timed_by_step_and_a_remembered_one_is_not(self, told: Told) -> None:
        timed = samples(told.pages["query"], "headrace_query_seconds_count")
        degraded_anew = 2 * len(TENANTS)  # An answer without the model isn't remembered.
        assert {
            step: timed[step,] for step in ("wait", "embed", "milvus", "opensearch", "answer", "total")
        } == dict.fromkeys(("wait", "embed", "milvus", "opensearch", "answer", "total"), degraded_anew)
        assert samples(told.pages["query"], "headrace_answers_total") == {(): 2 * len(TENANTS) + 1}
        assert samples(told.pages["query"], "headrace_answer_errors_total") == {("bad_request",): 1}

    def test_the_encoder_tells_tokens_and_busy_seconds(self, told: Told) -> None:
        for stage in ("embed", "query"):
            assert samples(told.pages[stage], "headrace_encoder_tokens_total")[()] > 0
            assert samples(told.pages[stage], "headrace_encoder_seconds_total")[()] > 0
            assert samples(told.pages[stage], "headrace_gpu_utilization_ratio") == {}

    def test_a_page_has_no_series_that_only_say_since_when(self, told: Told) -> None:
        for page in told.pages.values():
            assert "_created" not in page
            [version] = samples(page, "headrace_build_info")
            assert samples(page, "headrace_build_info")[version] == 1


class TestLogs:
    def test_every_line_is_json_and_says_what_when_how_grave_and_who(self, told: Told) -> None:
        assert sorted(told.logs) == sorted(GROUPS)
        known = log_events()
        for stage, line in told.lines():
            assert line["service"] == f"headrace-{stage}"
            assert line["event"] in known, line
            assert {"level", "timestamp"} <= line.keys()

    def test_no_line_shows_a_text_a_question_a_key_or_a_secret(self, told: Told) -> None:
        for stage, log in told.logs.items():
            assert log
            assert SECRET not in log.lower(), (stage, log)

    def test_lines_about_a_question_or_a_document_say_whose(self, told: Told) -> None:
        asked = [line for stage, line in told.lines() if line["event"] == "answer_without_model"]
        assert {(line["tenant"], line["request_id"]) for line in asked} == {
            (tenant, f"of-{tenant}") for tenant in TENANTS
        }
        buried = [line for stage, line in told.lines() if line["event"] == "message_dead_lettered"]
        assert {(line["tenant"], line["code"]) for line in buried} == {
            ("birch", "bad_document"),
            ("birch", "key_mismatch"),
            ("birch", "bad_json"),
        }
