"""Questions under load, with limits and with a language model that fails: what an app gets, from outside.

The model is a local server that speaks OpenAI's wire format; all else is real.
"""

import json
import struct
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from confluent_kafka import Message
from headrace_client import Answer as ClientAnswer
from headrace_client import Client, Delta, Found, Query, Reset

from headrace.config import Settings
from tests.acceptance.conftest import App
from tests.conftest import Deployment, deploy
from tests.fakes.providers import KEY, MODEL, Behaviour, Cut, Providers, Reply, Status

TENANT = "serving"
TEXTS = {
    "sluice": "The sluice opens at six in the morning. It closes at night.",
    "pump": "The pump is greased in May. It stands beside the sluice.",
}
QUESTION = {"query": "When does the sluice open?", "tenant": TENANT, "mode": "answer"}
IN_FLIGHT = 50
SLOW = Reply(pieces=["It opens ", "at six ", "[1]."], pause_s=0.5)


@dataclass
class Asking:
    """An app that has many questions under way on one partition of the reply topic."""

    app: App
    replies: dict[bytes, list[Message]] = field(default_factory=dict)

    def send(self, query: dict[str, Any], *, key: bytes | None = None, within_s: float = 60) -> bytes:
        correlation = uuid.uuid4().hex.encode()
        headers = [
            ("kafka_correlationId", correlation),
            ("kafka_replyPartition", struct.pack(">i", 1)),
            ("headrace.deadline", str(int((time.time() + within_s) * 1000)).encode()),
        ]
        self.app.producer.produce(
            self.app.prefix + "queries", json.dumps(query).encode(), key or correlation, headers=headers
        )
        self.app.producer.poll(0)
        self.replies[correlation] = []
        return correlation

    def read(self, done: Callable[[], bool], within_s: float = 120) -> None:
        assert self.app.producer.flush(30) == 0
        until = time.monotonic() + within_s
        while not done():
            assert time.monotonic() < until, f"no reply to {sum(not self.ended(one) for one in self.replies)} requests"
            for message in self.app.readers["replies"].consume(500, 0.2):
                correlation = dict(message.headers() or []).get("kafka_correlationId", b"")
                if correlation in self.replies:
                    self.replies[correlation].append(message)

    def ended(self, correlation: bytes) -> bool:
        return any(last(message) for message in self.replies[correlation])

    def answers(self, correlations: Sequence[bytes]) -> list[dict[str, Any]]:
        self.read(lambda: all(map(self.ended, correlations)))
        return [
            next(json.loads(message.value()) for message in self.replies[one] if last(message)) for one in correlations
        ]

    def ask(self, query: dict[str, Any]) -> dict[str, Any]:
        [answer] = self.answers([self.send(query)])
        return answer


def last(message: Message) -> bool:
    return dict(message.headers()).get("stream-last-message", b"true") == b"true"


def stream_of(message: Message) -> tuple[bytes, int]:
    headers = dict(message.headers())
    return headers["stream-id"], int(headers["stream-index"])


@dataclass
class Served:
    """A query worker with limits and a language model, over the documents of the shared pipeline."""

    deployment: Deployment
    model: Providers
    asking: Asking
    default: Behaviour


@pytest.fixture(scope="module")
def serving(
    servers: Settings, pipeline: Deployment, app: App, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    for doc_id, version in [(doc_id, app.send(f"{TENANT}/{doc_id}", {"text": text})) for doc_id, text in TEXTS.items()]:
        assert app.event(f"{TENANT}/{doc_id}", version)["status"] in {"indexed", "unchanged"}
    with Providers() as model:
        own = {
            "HEADRACE_STORES__PREFIX": pipeline.settings.stores.prefix,
            "HEADRACE_QUERY__IN_FLIGHT": str(IN_FLIGHT),
            "HEADRACE_QUERY__TIERS": '{"small": {"per_second": 0.01, "burst": 1}, "premium": {"per_second": 1000, "burst": 1000}}',
            "HEADRACE_QUERY__TENANTS": '{"stingy": "small", "generous": "premium"}',
            "HEADRACE_LLM__PROVIDER": "openai",
            "HEADRACE_LLM__MODEL": MODEL,
            "HEADRACE_LLM__API_KEY": KEY,
            "HEADRACE_LLM__BASE_URL": model.openai_url,
            "HEADRACE_LLM__CONCURRENCY": "200",
            "HEADRACE_LLM__MAX_RETRIES": "0",
        }
        deployment = deploy(servers, tmp_path_factory.mktemp("serving"), **own)
        try:
            deployment.wait_ready("query", deployment.start("query"))
            kafka = deployment.settings.kafka
            own_app = App(kafka.bootstrap_servers, kafka.topic_prefix)
            yield Served(deployment, model, Asking(own_app), model.default)
            own_app.close()
        finally:
            deployment.drop_topics()


@pytest.fixture
def served(serving: Served) -> Iterator[Served]:
    yield serving
    serving.model.default = serving.default
    serving.model.script.clear()


def test_a_language_model_answers_and_cites_what_it_was_given(served: Served) -> None:
    answer = served.asking.ask(QUESTION)
    assert (answer["error"], answer["degraded"]) == (None, [])
    said = answer["answer"]
    assert said["model"] == MODEL
    assert said["known"] is True
    assert said["usage"]["output_tokens"] > 0
    found = {hit["chunk_id"]: hit for hit in answer["hits"]}
    assert [citation["marker"] for citation in said["citations"]] == ["[1]", "[2]"]
    first = said["citations"][0]
    hit = found[first["chunk_id"]]
    quoted = TEXTS[first["doc_id"]][first["start"] : first["end"]]
    assert hit["rank"] == 1
    assert f'"{quoted}' in said["text"]


def test_what_the_model_made_up_is_taken_out(served: Served) -> None:
    served.model.script.append(
        Reply(
            pieces=["It opens at six [1]. ", "The moon helps [9]. ", 'They say "water flows up the hill" [1]. ', "So."]
        )
    )
    said = served.asking.ask(QUESTION)["answer"]
    assert "It opens at six [1]." in said["text"]
    assert "[9]" not in said["text"]
    assert "water flows" not in said["text"]
    assert [citation["marker"] for citation in said["citations"]] == ["[1]"]


def test_not_knowing_is_said_and_cites_nothing(served: Served) -> None:
    served.model.script.append(Reply(pieces=["NOT_IN_", "SOURCES"]))
    said = served.asking.ask(QUESTION | {"query": "Who is the king?"})["answer"]
    assert (said["known"], said["citations"]) == (False, [])
    assert "NOT_IN_SOURCES" not in said["text"]


def test_without_its_model_an_answer_is_made_of_the_hits_and_says_so(served: Served) -> None:
    served.model.script.append(Status(503))
    answer = served.asking.ask(QUESTION)
    assert (answer["error"], answer["degraded"]) == (None, ["llm"])
    assert answer["answer"]["model"] == "extractive"
    assert "The sluice opens at six in the morning." in answer["answer"]["text"]


def test_a_model_that_breaks_off_is_never_taken_for_a_whole_answer(served: Served) -> None:
    # Not all at once: a reset takes away what the other side has not read yet.
    pieces = [f"These are words {number}. " for number in range(40)]
    served.model.script.append(Cut(pieces=pieces, after=30, pause_s=0.02))
    correlation = served.asking.send(QUESTION | {"stream": True})
    [whole] = served.asking.answers([correlation])
    messages = served.asking.replies[correlation]
    streams = list(dict.fromkeys(stream_of(message)[0] for message in messages))
    broken, finished = ([message for message in messages if stream_of(message)[0] == stream] for stream in streams)
    assert any(b"words 0" in message.value() for message in broken)
    assert not any(last(message) for message in broken)
    assert [stream_of(message)[1] for message in finished] == list(range(len(finished)))
    assert whole["degraded"] == ["llm"]
    text = "".join(json.loads(message.value())["delta"] for message in finished[1:-1])
    assert text == whole["answer"]["text"]
    assert "words" not in text


def test_a_stream_comes_as_it_is_written(served: Served) -> None:
    pieces = [f"The sluice opened {number} times. " for number in range(40)]
    served.model.script.append(Reply(pieces=pieces, pause_s=0.05))
    correlation = served.asking.send(QUESTION | {"stream": True})
    # The model has not finished while the first words are there.
    served.asking.read(lambda: any(b'"delta"' in message.value() for message in served.asking.replies[correlation]))
    assert served.model.open == 1
    [whole] = served.asking.answers([correlation])
    hits, *deltas, end = served.asking.replies[correlation]
    assert [stream_of(message)[1] for message in (hits, *deltas, end)] == list(range(len(deltas) + 2))
    assert json.loads(hits.value())["hits"] == whole["hits"]
    assert "".join(json.loads(message.value())["delta"] for message in deltas) == whole["answer"]["text"]
    assert whole["answer"]["text"].strip() == "".join(pieces).strip()


def test_the_same_request_again_is_answered_once_and_told_to_all(served: Served) -> None:
    served.model.default = SLOW
    asked, query = len(served.model.asked), QUESTION | {"request_id": uuid.uuid4().hex}
    together = served.asking.answers([served.asking.send(query, key=b"retry") for _ in range(5)])
    later = served.asking.answers([served.asking.send(query, key=b"retry")])
    assert all(answer == together[0] for answer in [*together, *later])
    assert len(served.model.asked) == asked + 1
    served.asking.answers([served.asking.send(query | {"query": "When does it close?"}, key=b"retry")])
    assert len(served.model.asked) == asked + 2


def test_of_many_questions_so_many_are_worked_on_at_once_and_none_is_forgotten(served: Served) -> None:
    served.model.default, served.model.most_open = SLOW, 0
    asked = [served.asking.send(QUESTION) for _ in range(4 * IN_FLIGHT)]
    answers = served.asking.answers(asked)
    assert [answer["error"] for answer in answers] == [None] * len(asked)
    assert IN_FLIGHT // 2 < served.model.most_open <= IN_FLIGHT


def test_a_question_whose_deadline_passes_is_told_so_and_costs_no_model(served: Served) -> None:
    served.model.default = Reply(pieces=["Late [1]."], pause_s=5)
    asked = len(served.model.asked)
    correlations = [served.asking.send(QUESTION, within_s=6) for _ in range(5 * IN_FLIGHT)]
    codes = [answer["error"] and answer["error"]["code"] for answer in served.asking.answers(correlations)]
    assert set(codes) <= {None, "deadline_exceeded"}
    assert codes.count("deadline_exceeded") >= IN_FLIGHT
    assert len(served.model.asked) - asked <= 3 * IN_FLIGHT
    for correlation, code in zip(correlations, codes, strict=True):
        [message] = served.asking.replies[correlation]
        assert dict(message.headers()).get("headrace.error") == (code.encode() if code else None)


def test_where_little_time_is_left_sentences_of_the_hits_do(served: Served) -> None:
    served.model.script.append(Reply(pieces=["Late [1]."], pause_s=30))
    [answer] = served.asking.answers([served.asking.send(QUESTION, within_s=12)])
    assert (answer["error"], answer["degraded"], answer["answer"]["model"]) == (None, ["llm"], "extractive")


def test_a_tenant_that_asks_too_much_is_told_when_to_come_again_and_others_are_not_held_up(served: Served) -> None:
    search = {"query": "sluice", "mode": "search"}
    by_tenant = {
        tenant: [served.asking.send(search | {"tenant": tenant}) for _ in range(5)]
        for tenant in ("stingy", "generous", "unnamed")
    }
    answers = {tenant: served.asking.answers(asked) for tenant, asked in by_tenant.items()}
    errors = [answer["error"] for answer in answers["stingy"] if answer["error"]]
    assert [error["code"] for error in errors] == ["rate_limited"] * 4
    assert all(0 < error["retry_after_ms"] <= 100_000 for error in errors)
    for tenant in ("generous", "unnamed"):
        assert [answer["error"] for answer in answers[tenant]] == [None] * 5


def test_a_stream_that_its_worker_left_unfinished_is_followed_by_a_whole_one(served: Served) -> None:
    pieces = [f"These are words {number}. " for number in range(400)]
    served.model.script.extend([Reply(pieces=pieces, pause_s=0.1)] * 2)
    kafka = served.deployment.settings.kafka
    with Client(kafka.bootstrap_servers, topic_prefix=kafka.topic_prefix) as client:
        stream = client.stream(Query(**QUESTION), timeout_s=110)
        correlation = served.asking.send(QUESTION | {"stream": True}, within_s=110)
        served.asking.read(lambda: len(served.asking.replies[correlation]) >= 3)
        assert isinstance(next(stream), Found)
        assert isinstance(next(stream), Delta)
        [worker] = [worker for worker in served.deployment.workers if worker.poll() is None]
        worker.kill()
        worker.wait()
        served.deployment.wait_ready("query", served.deployment.start("query"))
        [whole] = served.asking.answers([correlation])
        rest = list(stream)
    # Of plain messages.
    streams: dict[bytes, list[int]] = {}
    for message in served.asking.replies[correlation]:
        name, index = stream_of(message)
        streams.setdefault(name, []).append(index)
    _, finished = streams
    assert streams[finished] == list(range(len(streams[finished])))
    assert [stream_of(message)[0] for message in served.asking.replies[correlation] if last(message)] == [finished]
    assert (whole["error"], whole["degraded"]) == (None, [])
    assert "words" not in whole["answer"]["text"]
    # As the Python client tells it.
    assert any(isinstance(piece, Reset) for piece in rest)
    assert isinstance(rest[-1], ClientAnswer)
    assert stream.text == rest[-1].answer.text == whole["answer"]["text"]
