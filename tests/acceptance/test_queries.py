"""The contract's query side, from outside: headers, modes, errors, streams."""

import json
import time
import uuid
from typing import Any

import pytest

from tests.acceptance.conftest import App

TENANT = "library"
TEXTS = {
    "glaciers": "Glaciers move because ice deforms under its own weight. A surging glacier can advance tens of metres a day.",
    "sourdough": "Sourdough rises with wild yeast. The starter is fed with flour and water every day before baking.",
    "submarines": "Submarines dive by flooding their ballast tanks. Compressed air blows the water out again to surface.",
}


@pytest.fixture(scope="module", autouse=True)
def library(app: App) -> None:
    sent = {
        doc_id: app.send(
            f"{TENANT}/{doc_id}",
            {"text": text, "title": doc_id.title(), "tags": [doc_id, "all"], "metadata": {"length": len(text)}},
        )
        for doc_id, text in TEXTS.items()
    }
    for doc_id, version in sent.items():
        assert app.event(f"{TENANT}/{doc_id}", version)["status"] in {"indexed", "unchanged"}


def test_an_answer_quotes_its_sources_where_they_stand(app: App) -> None:
    answer = app.ask({"query": "How do submarines dive?", "tenant": TENANT, "mode": "answer", "request_id": "r-1"})
    assert answer["request_id"] == "r-1"
    assert answer["hits"][0]["doc_id"] == "submarines"
    assert answer["answer"]["model"] == "extractive"
    first = answer["answer"]["citations"][0]
    assert TEXTS[first["doc_id"]][first["start"] : first["end"]] == "Submarines dive by flooding their ballast tanks."
    for citation in answer["answer"]["citations"]:
        quoted = TEXTS[citation["doc_id"]][citation["start"] : citation["end"]]
        assert f"{quoted} {citation['marker']}" in answer["answer"]["text"]
    assert answer["timings_ms"]["total"] > 0


def test_search_is_the_default_and_has_no_answer(app: App) -> None:
    answer = app.ask({"query": "yeast", "tenant": TENANT, "top_k": 2})
    assert answer["answer"] is None
    assert len(answer["hits"]) == 2
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2]
    assert answer["hits"][0]["score"] >= answer["hits"][1]["score"]


@pytest.mark.parametrize("fusion", [{"method": "rrf"}, {"method": "convex", "alpha": 0.2}, {"alpha": 1.0}])
def test_a_query_can_say_how_the_lists_are_fused(app: App, fusion: dict[str, Any]) -> None:
    answer = app.ask({"query": "surging glacier", "tenant": TENANT, "fusion": fusion})
    assert answer["hits"][0]["doc_id"] == "glaciers"


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"tags": {"any": ["sourdough", "glaciers"]}}, {"sourdough", "glaciers"}),
        ({"tags": {"all": ["sourdough", "all"]}}, {"sourdough"}),
        ({"doc_id": ["submarines"]}, {"submarines"}),
        ({"metadata.length": {"gte": len(TEXTS["glaciers"])}}, {"glaciers"}),
        ({"created_at": {"gte": "2999-01-01T00:00:00Z"}}, set()),
    ],
)
def test_filters_narrow_what_is_found(app: App, filters: dict[str, Any], found: set[str]) -> None:
    answer = app.ask({"query": "ice bread water", "tenant": TENANT, "filters": filters})
    assert {hit["doc_id"] for hit in answer["hits"]} == found


def test_a_tenant_that_has_nothing_finds_nothing(app: App) -> None:
    answer = app.ask({"query": "anything", "tenant": "nobody", "mode": "answer"})
    assert (answer["hits"], answer["error"], answer["answer"]["citations"]) == ([], None, [])


@pytest.mark.parametrize(
    ("query", "code"),
    [
        (b"not json", "bad_request"),
        ({}, "bad_request"),
        ({"query": ""}, "bad_request"),
        ({"query": "x", "top_k": "many"}, "bad_request"),
        ({"query": "x", "tenant": "UPPER"}, "bad_request"),
        ({"query": "x", "filters": {"colour": "red"}}, "bad_request"),
        ({"query": "x", "mode": "chat"}, "bad_request"),
    ],
)
def test_a_bad_query_gets_an_error_reply(app: App, query: Any, code: str) -> None:
    answer, headers, _ = app.reply(query)
    assert answer["error"]["code"] == code
    assert answer["error"]["message"]
    assert headers["headrace.error"] == code.encode()
    assert answer["hits"] == []


def test_a_query_past_its_deadline_is_not_worked_on(app: App) -> None:
    past = str(int(time.time() * 1000) - 1000).encode()
    answer, headers, _ = app.reply({"query": "glaciers", "tenant": TENANT}, headers=[("headrace.deadline", past)])
    assert answer["error"]["code"] == "deadline_exceeded"
    assert headers["headrace.error"] == b"deadline_exceeded"


def test_the_same_request_again_gets_the_same_answer_but_nothing_that_was_deleted_since(app: App) -> None:
    key = f"{TENANT}/{uuid.uuid4().hex}"
    assert app.event(key, app.send(key, {"text": "The narwhal has a long tooth."}))["status"] == "indexed"
    query = {"query": "narwhal tooth", "tenant": TENANT, "top_k": 1, "request_id": uuid.uuid4().hex}
    first = app.ask(query)
    assert first["hits"][0]["doc_id"] in key
    assert app.ask(query) == first  # its times, too: nothing was searched again
    assert app.event(key, app.send(key, None))["status"] == "deleted"
    again = app.ask(query)
    assert again["request_id"] == query["request_id"]
    assert all(hit["doc_id"] not in key for hit in again["hits"])


def test_smallrye_headers_are_understood_and_mirrored(app: App) -> None:
    correlation = uuid.uuid4().bytes
    headers = [
        ("REPLY_CORRELATION_ID", correlation),
        ("REPLY_TOPIC", (app.prefix + "replies").encode()),
        ("REPLY_PARTITION", app.partition(2)),
    ]
    app.send(b"key", {"query": "yeast", "tenant": TENANT}, topic="queries", headers=headers)
    reply = app.read(
        "replies", lambda message: dict(message.headers() or []).get("REPLY_CORRELATION_ID") == correlation
    )
    assert (reply.partition(), reply.key()) == (2, b"key")
    assert "kafka_correlationId" not in dict(reply.headers())


def test_the_reply_partition_is_honoured(app: App) -> None:
    for partition in (0, 3):
        _, _, message = app.reply(
            {"query": "yeast", "tenant": TENANT}, headers=[("kafka_replyPartition", app.partition(partition))]
        )
        assert message.partition() == partition


@pytest.mark.parametrize("headers", [[("kafka_replyPartition", b"\x00\x00\x00\x63")], [("kafka_replyPartition", b"7")]])
def test_a_reply_partition_that_is_not_there_is_refused(app: App, headers: list[tuple[str, bytes]]) -> None:
    answer, _, _ = app.reply({"query": "yeast", "tenant": TENANT}, headers=headers)
    assert answer["error"]["code"] == "bad_request"


@pytest.mark.parametrize("topic", ["documents.raw", "replies.nowhere", "elsewhere"])
def test_a_reply_topic_that_is_not_allowed_or_not_there_is_refused_on_the_default_one(app: App, topic: str) -> None:
    correlation = uuid.uuid4().bytes
    headers = [("kafka_correlationId", correlation), ("kafka_replyTopic", (app.prefix + topic).encode())]
    app.send(b"key", {"query": "yeast", "tenant": TENANT}, topic="queries", headers=headers)
    reply = app.read("replies", lambda message: dict(message.headers() or []).get("kafka_correlationId") == correlation)
    assert json.loads(reply.value())["error"]["code"] == "bad_request"


def test_a_streamed_answer_comes_hits_first_then_text_then_whole(app: App) -> None:
    correlation = uuid.uuid4().bytes
    query = {"query": "How do submarines dive?", "tenant": TENANT, "mode": "answer", "stream": True}
    app.send(b"key", query, topic="queries", headers=[("kafka_correlationId", correlation)])

    def mine(message: Any) -> dict[str, bytes] | None:
        headers = dict(message.headers() or [])
        return headers if headers.get("kafka_correlationId") == correlation else None

    app.read("replies", lambda message: (mine(message) or {}).get("stream-last-message") == b"true")
    parts = [message for message in app.seen["replies"] if mine(message)]
    headers = [dict(message.headers()) for message in parts]
    assert [header["stream-index"] for header in headers] == [str(index).encode() for index in range(len(parts))]
    assert len({header["stream-id"] for header in headers}) == 1
    assert [header["stream-last-message"] for header in headers] == [b"false"] * (len(parts) - 1) + [b"true"]
    first, *deltas, last = [json.loads(message.value()) for message in parts]
    assert first["hits"] == last["hits"] != []
    assert first["answer"] is None
    assert "".join(delta["delta"] for delta in deltas) == last["answer"]["text"] != ""
