"""One document and one question through real workers, as a receiver of OTLP sees them."""

import json
import os
import signal
import subprocess
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Message, TopicPartition
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from headrace.config import Settings
from headrace.tracing import TracingSettings, build_tracer
from tests.acceptance.conftest import App
from tests.conftest import Deployment, deploy
from tests.connected.tracing.receiver import Received, Receiver, receiving
from tests.fakes.certificates import HOSTS, Authority
from tests.fakes.providers import KEY, MODEL, Providers
from topics import GROUPS

TEXT = "The sluice is opened at six o'clock. It is closed at night."
QUESTION = "When does the keeper open the sluice?"
STATE = "app=1"
DOCUMENT_STAGES = ("chunk", "embed", "upsert-milvus", "upsert-opensearch", "commit")
CONTENT = (TEXT.encode(), QUESTION.encode(), b"six o'clock", b"keeper", KEY.encode())
STOPPED_WITHIN_S = 60


@dataclass
class Traced:
    app: App
    receiver: Receiver
    deployment: Deployment


@dataclass(frozen=True)
class Producer:
    """A program that traces by itself: one span of its own, from which the rest follows."""

    trace: str
    span: str
    sampled: bool

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        parent = f"00-{self.trace}-{self.span}-{'01' if self.sampled else '00'}"
        return [("traceparent", parent.encode()), ("tracestate", STATE.encode()), ("baggage", b"secret=hush")]


def producer(*, sampled: bool = True) -> Producer:
    return Producer(uuid.uuid4().hex, uuid.uuid4().hex[:16], sampled)


@pytest.fixture(scope="module")
def traced(servers: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    """All six workers, with a language model and a reranker, and a receiver that wants to see their certificate."""
    folder = tmp_path_factory.mktemp("traced")
    authority = Authority(folder, "authority")
    client = authority.sign("worker")
    with receiving(authority, authority.sign("receiver")) as receiver, Providers() as model:
        own = {
            "HEADRACE_TRACING__ENABLED": "true",
            "HEADRACE_TRACING__ENDPOINT": receiver.url,
            "HEADRACE_TRACING__TLS__CA": str(authority.ca),
            "HEADRACE_TRACING__TLS__CERTIFICATE": str(client.certificate),
            "HEADRACE_TRACING__TLS__KEY": str(client.key),
            "HEADRACE_TRACING__HEADERS": '{"authorization": "Bearer abc"}',
            "HEADRACE_TRACING__RESOURCE": '{"deployment.environment.name": "test"}',
            "HEADRACE_LLM__PROVIDER": "openai",
            "HEADRACE_LLM__MODEL": MODEL,
            "HEADRACE_LLM__API_KEY": KEY,
            "HEADRACE_LLM__BASE_URL": model.openai_url,
            "HEADRACE_RERANK__ENABLED": "true",
            "HEADRACE_RERANK__MODEL": str(reranker(folder)),
            "HEADRACE_ENCODER__BACKEND": "static",
        }
        deployment = deploy(servers, folder, **own)
        try:
            deployment.start_all()
            kafka = deployment.settings.kafka
            app = App(kafka.bootstrap_servers, kafka.topic_prefix)
            yield Traced(app, receiver, deployment)
            app.close()
        finally:
            deployment.drop()


def reranker(folder: Path) -> Path:
    """A cross-encoder that has learned nothing."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "sluice"]
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(words), num_labels=1, **shape))
    model.save_pretrained(folder / "reranker")
    BertTokenizer(vocab={word: place for place, word in enumerate(words)}).save_pretrained(folder / "reranker")
    return folder / "reranker"


def of(trace: str, spans: Iterable[Received]) -> list[Received]:
    return [span for span in spans if span.trace == trace]


def named(spans: Iterable[Received], name: str) -> list[Received]:
    return [span for span in spans if span.name == name]


def the(spans: Iterable[Received], name: str) -> Received:
    [found] = named(spans, name)
    return found


def is_whole(trace: str, spans: list[Received]) -> bool:
    """Whether every stage's work on a document of one chunk, and on its batches, has come. Each sends when it likes."""
    return all(is_done(trace, stage, 2 if stage == "commit" else 1, spans) for stage in DOCUMENT_STAGES)


def is_done(trace: str, stage: str, times: int, spans: list[Received]) -> bool:
    works = [span for span in of(trace, spans) if span.service == f"headrace-{stage}" and span.kind == "consumer"]
    batches = {span.id for span in spans if span.name == f"{stage} batch"}
    return len(works) >= times and all(batches & {linked for _, linked in work.links} for work in works)


def told(traced: Traced, key: str, status: str) -> Message:
    def wanted(message: Message) -> bool:
        return message.key() == key.encode() and json.loads(message.value())["status"] == status

    return traced.app.read("documents.events", wanted)


def context(message: Message) -> tuple[str, str, str]:
    """The trace, the span and the flags that a record carries."""
    _, trace, span, flags = dict(message.headers() or [])["traceparent"].decode().split("-")
    return trace, span, flags


def test_a_document_is_one_connected_trace(traced: Traced) -> None:
    app, topic, group = traced.app, traced.deployment.topic, traced.deployment.settings.kafka.names.group
    sender = producer()
    app.send("default/sluice", {"text": TEXT}, headers=sender.headers)
    event = told(traced, "default/sluice", "indexed")
    came = traced.receiver.wait(lambda spans: is_whole(sender.trace, spans))
    spans = of(sender.trace, came)
    by_id = {span.id: span for span in spans}

    # Connected: everybody's parent is there, up to the producer's span.
    assert {span.parent for span in spans} <= by_id.keys() | {sender.span}
    assert [span.name for span in spans if span.parent == sender.span] == [f"process {topic('documents.raw')}"]
    assert {span.state for span in spans} == {STATE}

    # Each stage's work follows from the other's sending.
    def way(span: Received) -> list[tuple[str, str]]:
        before = way(by_id[span.parent]) if span.parent in by_id else []
        return [*before, (span.service.removeprefix("headrace-"), span.name)]

    ends = {tuple(way(span)) for span in named(spans, f"process {topic('documents.stored')}")}
    assert ends == {
        (
            ("chunk", f"process {topic('documents.raw')}"),
            ("chunk", f"send {topic('documents.chunks')}"),
            ("embed", f"process {topic('documents.chunks')}"),
            ("embed", f"send {topic('documents.embeddings')}"),
            (store, f"process {topic('documents.embeddings')}"),
            (store, f"send {topic('documents.stored')}"),
            ("commit", f"process {topic('documents.stored')}"),
        )
        for store in ("upsert-milvus", "upsert-opensearch")
    }

    # The event carries the trace to whoever waits for it.
    trace, span, flags = context(event)
    assert (trace, flags) == (sender.trace, "01")
    assert by_id[span].name == f"send {topic('documents.events')}"
    assert dict(event.headers())["tracestate"] == STATE.encode()

    work = the(spans, f"process {topic('documents.chunks')}")
    assert work.kind == "consumer"
    assert work.attributes == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": topic("documents.chunks"),
        "messaging.destination.partition.id": work.attributes["messaging.destination.partition.id"],
        "messaging.kafka.offset": 0,
        "messaging.consumer.group.name": group("embed"),
        "headrace.tenant": "default",
    }
    sent = the(spans, f"send {topic('documents.chunks')}")
    assert sent.kind == "producer"
    assert sent.attributes == {
        "messaging.system": "kafka",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": topic("documents.chunks"),
    }
    assert work.resource["deployment.environment.name"] == "test"
    assert {"service.instance.id", "service.version", "host.name"} <= work.resource.keys()
    assert ("authorization", "Bearer abc") in traced.receiver.metadata


def test_each_stages_batch_and_its_messages_have_links_to_each_other(traced: Traced) -> None:
    senders = [producer() for _ in range(3)]
    for number, sender in enumerate(senders):
        traced.app.send(f"default/linked-{number}", {"text": TEXT}, headers=sender.headers)
    came = traced.receiver.wait(lambda spans: all(is_whole(sender.trace, spans) for sender in senders))
    by_id = {span.id: span for span in came}
    for sender in senders:
        works = [span for span in of(sender.trace, came) if span.kind == "consumer"]
        assert Counter(work.service for work in works) == {
            **{f"headrace-{stage}": 1 for stage in DOCUMENT_STAGES},
            "headrace-commit": 2,
        }
        for work in works:
            for _, linked in work.links:
                batch = by_id[linked]
                assert batch.name == f"{work.service.removeprefix('headrace-')} batch"
                assert batch.parent == ""
                assert batch.trace not in {one.trace for one in senders}
                assert (work.trace, work.id) in batch.links
                assert batch.attributes["messaging.batch.message_count"] == len(batch.links)
    encoded = [span for span in came if span.name == "encode"]
    assert {by_id[span.parent].name for span in encoded} == {"embed batch"}


def test_a_question_is_one_connected_trace(traced: Traced) -> None:
    app, topic = traced.app, traced.deployment.topic
    app.send("asked/sluice", {"text": TEXT})
    told(traced, "asked/sluice", "indexed")
    asker = producer()
    query = {"query": QUESTION, "tenant": "asked", "mode": "answer", "request_id": "r-1", "stream": False}
    answer, headers, reply = app.reply(query, headers=asker.headers)
    assert answer["degraded"] == []
    assert answer["answer"]["model"] == MODEL

    came = traced.receiver.wait(lambda spans: named(of(asker.trace, spans), f"process {topic('queries')}"))
    spans = of(asker.trace, came)
    by_id = {span.id: span for span in spans}
    request = the(spans, f"process {topic('queries')}")
    assert request.parent == asker.span
    assert request.attributes["headrace.tenant"] == "asked"
    assert request.attributes["headrace.request_id"] == "r-1"
    steps = {span.name: span for span in spans if span.parent == request.id}
    assert steps.keys() == {
        *("wait", "embed", "milvus", "opensearch", "fuse", "read", "rerank", "answer"),
        f"send {topic('replies')}",
    }
    # What is told in milliseconds has a span of the same name.
    assert answer["timings_ms"].keys() - {"total"} <= steps.keys()
    call = the(spans, f"chat {MODEL}")
    assert by_id[call.parent] is steps["answer"]
    assert call.kind == "client"
    assert call.attributes["gen_ai.operation.name"] == "chat"
    assert call.attributes["gen_ai.provider.name"] == "openai"
    assert call.attributes["gen_ai.usage.output_tokens"] == answer["answer"]["usage"]["output_tokens"]
    assert {span.parent for span in spans} <= by_id.keys() | {asker.span}
    assert {span.service for span in spans} == {"headrace-query"}

    assert context(reply) == (asker.trace, steps[f"send {topic('replies')}"].id, "01")
    assert "baggage" not in headers


def test_a_trace_begins_where_the_producer_has_none(traced: Traced) -> None:
    traced.app.send("default/untraced", {"text": TEXT})
    trace, _, flags = context(told(traced, "default/untraced", "indexed"))
    assert int(flags, 16) & 1
    spans = of(trace, traced.receiver.wait(lambda spans: is_whole(trace, spans)))
    [root] = [span for span in spans if span.parent == ""]
    assert (root.service, root.name) == ("headrace-chunk", f"process {traced.deployment.topic('documents.raw')}")


def test_what_the_producer_does_not_sample_nobody_sees(traced: Traced) -> None:
    hidden, seen = producer(sampled=False), producer()
    traced.app.send("default/hidden", {"text": TEXT}, headers=hidden.headers)
    event = told(traced, "default/hidden", "indexed")
    _, _, asked = traced.app.reply({"query": QUESTION}, headers=hidden.headers)
    traced.app.send("default/seen", {"text": TEXT}, headers=seen.headers)
    traced.app.reply({"query": QUESTION}, headers=seen.headers)
    traced.receiver.wait(lambda spans: is_whole(seen.trace, spans))
    came = traced.receiver.wait(
        lambda spans: named(of(seen.trace, spans), f"process {traced.deployment.topic('queries')}")
    )
    assert of(hidden.trace, came) == []
    assert hidden.trace not in {trace for span in came for trace, _ in span.links}
    # It is passed on all the same, as not sampled.
    assert context(event)[::2] == context(asked)[::2] == (hidden.trace, "00")


def test_a_dead_letter_is_an_error_of_its_trace_and_keeps_its_own_headers(traced: Traced) -> None:
    sender = producer()
    traced.app.send("default/no-json", b"{", headers=sender.headers)
    letter = traced.app.read("documents.dead", lambda message: message.key() == b"default/no-json")
    assert context(letter) == (sender.trace, sender.span, "01")
    assert context(told(traced, "default/no-json", "failed"))[0] == sender.trace
    topic = traced.deployment.topic
    work_name = f"process {topic('documents.raw')}"
    spans = of(sender.trace, traced.receiver.wait(lambda spans: named(of(sender.trace, spans), work_name)))
    work = the(spans, work_name)
    assert work.failed
    assert work.attributes["error.type"] == "bad_json"
    assert work.events["dead_letter"] == {"headrace.error.code": "bad_json", "headrace.error.attempts": 1}
    logged = [json.loads(line) for line in (traced.deployment.logs / "chunk.log").read_text().splitlines()]
    [line] = [line for line in logged if line["event"] == "message_dead_lettered"]
    assert (line["trace_id"], line["span_id"]) == (work.trace, work.id)


def test_no_span_has_what_documents_and_questions_say(traced: Traced) -> None:
    came = traced.receiver.wait(lambda spans: {span.service for span in spans} == {f"headrace-{s}" for s in GROUPS})
    for span in came:
        for content in (*CONTENT, b"default/", b"hush"):
            assert content not in span.raw, span.name


@pytest.mark.parametrize("why", ["trusted", "another authority", "expired", "another host", "no client certificate"])
def test_spans_go_to_a_receiver_that_is_trusted_and_trusts_us(tmp_path: Path, why: str) -> None:
    authority, other = Authority(tmp_path, "authority"), Authority(tmp_path, "other")
    hosts = ("collector.example",) if why == "another host" else HOSTS
    client = authority.sign("client")
    tls = {"ca": other.ca if why == "another authority" else authority.ca}
    if why != "no client certificate":
        tls |= {"certificate": client.certificate, "key": client.key}
    with receiving(authority, authority.sign("receiver", expired=why == "expired", hosts=hosts)) as receiver:
        tracer = build_tracer(
            TracingSettings.model_validate({"enabled": True, "endpoint": receiver.url, "tls": tls}), "headrace-chunk"
        )
        with tracer.message("process t", ()):
            pass
        tracer.stop()
    assert [span.name for span in receiver.spans] == (["process t"] if why == "trusted" else [])


def test_without_tracing_nothing_is_sent_and_the_trace_goes_on_as_it_came(deployment: Deployment) -> None:
    sender = producer()
    with receiving() as receiver:
        worker = deployment.start("chunk", environment={"HEADRACE_TRACING__ENDPOINT": receiver.url})
        deployment.wait_ready("chunk", worker)
        chunks = first_of(deployment, "documents.chunks", sender)
        stop(worker)
        assert dict(chunks.headers()) == dict(sender.headers[:2])
        assert receiver.spans == []
        # It would have come: the same worker with tracing on.
        worker = deployment.start(
            "chunk",
            environment={"HEADRACE_TRACING__ENDPOINT": receiver.url, "HEADRACE_TRACING__ENABLED": "true"},
        )
        deployment.wait_ready("chunk", worker)
        first_of(deployment, "documents.chunks", sender)
        stop(worker)
        # What a worker has not sent when it is told to stop is sent then.
        assert the(receiver.spans, f"process {deployment.topic('documents.raw')}").parent == sender.span


def test_a_receiver_that_is_away_is_no_matter(deployment: Deployment) -> None:
    sender = producer()
    with receiving() as gone:
        pass
    worker = deployment.start(
        "chunk", environment={"HEADRACE_TRACING__ENDPOINT": gone.url, "HEADRACE_TRACING__ENABLED": "true"}
    )
    deployment.wait_ready("chunk", worker)
    assert context(first_of(deployment, "documents.chunks", sender))[0] == sender.trace
    stop(worker)
    logged = [json.loads(line) for line in (deployment.logs / "chunk.log").read_text().splitlines()]
    assert "worker_stopped" in {line["event"] for line in logged}
    assert any("UNAVAILABLE" in line["message"] for line in logged if line["logger"].startswith("opentelemetry"))


def first_of(deployment: Deployment, topic: str, sender: Producer) -> Message:
    """The next record there, after a document was published."""
    kafka = deployment.settings.kafka
    app = App(kafka.bootstrap_servers, kafka.topic_prefix)
    reader = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": uuid.uuid4().hex})
    try:
        follow(reader, deployment.topic(topic))
        app.send("default/d", {"text": f"{TEXT} {uuid.uuid4()}"}, headers=sender.headers)
        for _ in range(60):
            message = reader.poll(1)
            if message is not None and message.error() is None:
                return message
        raise AssertionError(f"nothing came on {topic}")
    finally:
        app.close()
        reader.close()


def follow(reader: Consumer, topic: str) -> None:
    partitions = reader.list_topics(topic, timeout=10).topics[topic].partitions
    reader.assign(
        [TopicPartition(topic, one, reader.get_watermark_offsets(TopicPartition(topic, one))[1]) for one in partitions]
    )


def stop(worker: "subprocess.Popen[bytes]") -> None:
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.wait(STOPPED_WITHIN_S) == 0
