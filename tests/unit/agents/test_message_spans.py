"""What a trace shows of messages, and which trace each record that is written goes on with."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pytest
from opentelemetry.trace import SpanKind, StatusCode
from tenacity import wait_none

from agents.message_spans import MessageSpans
from agents.stage import Item, Outgoing, RequestStage, Stage, StageRunner, Write
from headrace import telemetry, tracing
from headrace.errors import Poison, Transient
from tests.fakes.tracer import KeepingTracer
from tests.fakes.wire import FakeEvent, FakeMessage, FakeSource, FakeWire
from topics import Names

NAMES = Names("prod.", "prod-")
TOPIC = "prod.documents.chunks"
SECRET = "what the document says"


class Bug(Exception):
    """Nobody expected it; its words quote the document."""


def trace(number: int) -> str:
    return f"{number:032x}"


def carried(number: int, flags: str = "01") -> list[tuple[str, bytes]]:
    return [("traceparent", f"00-{trace(number)}-{'b' * 16}-{flags}".encode()), ("baggage", b"a=b")]


@dataclass
class Bench:
    """A stage that writes two records for each message that it gets, whatever its key; `failing` is raised first."""

    tracer: tracing.Tracer

    def __post_init__(self) -> None:
        self.failing: list[Exception] = []
        self.logged: dict[str, str] = {}
        self.wire = FakeWire([])
        self.source = FakeSource([], TOPIC)
        spans = MessageSpans(stage="embed", tracer=self.tracer, names=NAMES)
        stage = Stage(
            name="embed",
            decode=lambda record: (record.value or b"").decode(),
            work=self.work,
            batch_messages=8,
            batch_bytes=1_000_000,
            linger_s=0.0,
        )
        self.runner = StageRunner(stage, self.wire, spans=spans)

    async def work(self, batch: Sequence[Item[str]]) -> Iterable[Outgoing]:
        if self.failing:
            raise self.failing.pop(0)
        with tracing.span("encode"):
            self.logged = telemetry._add_trace(None, "info", {"event": "encoding"})
        for item in batch:
            if item.message.startswith("poison"):
                raise Poison("bad_json", SECRET)
            if item.message.startswith("bug"):
                raise Bug(SECRET)
        # The last message's first: by their order nobody can tell what follows from what.
        return [
            Outgoing(topic="documents.embeddings", key=b"default/d", value=item.message.encode(), cause=item.record)
            for item in reversed(batch)
            for _ in range(2)
        ]

    async def process(self, *messages: tuple[str, list[tuple[str, bytes]]]) -> None:
        for offset, (value, headers) in enumerate(messages):
            message = FakeMessage(TOPIC, offset, b"default/d", value.encode(), headers=headers)
            self.source._events.append(FakeEvent(message, []))
        self.source._more.set()
        lane = asyncio.create_task(self.runner.run_lane("bulk", self.source))
        await until(lambda: lane.done() or (self.source.empty() and not self.runner.in_hand))
        lane.cancel()
        with suppress(asyncio.CancelledError):
            await lane

    def sent(self, topic: str) -> list[tuple[bytes | None, dict[str, bytes]]]:
        return [(one.value, dict(one.headers)) for one in self.wire.of(topic)]


async def until(holds: Callable[[], object]) -> None:
    """Wait until it holds; what it looks at has no event of its own to wait for."""
    for _ in range(10_000):
        if holds():
            return
        await asyncio.sleep(0.0005)
    raise AssertionError("still not so")


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.stage.RETRY_WAIT", wait_none())


@pytest.fixture
def tracer() -> KeepingTracer:
    return KeepingTracer()


@pytest.fixture
def bench(tracer: KeepingTracer) -> Bench:
    return Bench(tracer)


async def test_each_record_goes_on_with_the_trace_of_what_it_comes_of(bench: Bench, tracer: KeepingTracer) -> None:
    await bench.process(("a", carried(1)), ("b", carried(2)), ("c", carried(3)))
    sending = tracer.named("send prod.documents.embeddings")
    assert len(sending) == 3
    parents = {f"00-{s.context.trace_id:032x}-{s.context.span_id:016x}-01".encode(): s for s in sending}
    for value, headers in bench.sent("documents.embeddings"):
        assert headers.keys() == {"traceparent"}
        span = parents[headers["traceparent"]]
        assert f"{span.context.trace_id:032x}" == trace(" abc".index((value or b"").decode()))
        assert span.kind is SpanKind.PRODUCER
        assert span.attributes["messaging.batch.message_count"] == 2
        [work] = [one for one in tracer.named(f"process {TOPIC}") if one.context == span.parent]
        assert f"{work.parent.span_id:016x}" == "b" * 16
    [batch] = tracer.named("embed batch")
    assert batch.attributes["messaging.batch.message_count"] == 3
    works = {work.context.span_id for work in tracer.named(f"process {TOPIC}")}
    assert {link.context.span_id for link in batch.links} == works
    assert tracer.the("encode").parent == batch.context


async def test_the_work_on_a_message_lasts_until_its_records_are_confirmed(bench: Bench, tracer: KeepingTracer) -> None:
    bench.wire.confirming.clear()
    working = asyncio.create_task(bench.process(("a", carried(1))))
    await until(lambda: "send documents.embeddings" in bench.wire.journal)
    assert [span.name for span in tracer.ended] == ["encode", "embed batch"]
    bench.wire.confirming.set()
    await working
    assert [span.name for span in tracer.ended][2:] == ["send prod.documents.embeddings", f"process {TOPIC}"]


async def test_a_poisonous_message_is_an_error_and_its_neighbours_are_not(bench: Bench, tracer: KeepingTracer) -> None:
    await bench.process(("a", carried(1)), ("poison", carried(2)), ("c", carried(3)))
    works = {f"{span.context.trace_id:032x}": span for span in tracer.named(f"process {TOPIC}")}
    assert [works[trace(n)].status.status_code for n in (1, 2, 3)] == [
        StatusCode.UNSET,
        StatusCode.ERROR,
        StatusCode.UNSET,
    ]
    dead = works[trace(2)]
    assert dead.attributes["error.type"] == "bad_json"
    [event] = dead.events
    assert (event.name, dict(event.attributes)) == (
        "dead_letter",
        {"headrace.error.code": "bad_json", "headrace.error.attempts": 1},
    )
    [(_, letter)] = bench.sent("documents.dead")
    assert [letter["traceparent"], letter["baggage"]] == [value for _, value in carried(2)]
    [(_, told)] = bench.sent("documents.events")
    assert told["traceparent"].startswith(f"00-{trace(2)}-".encode())
    assert told["traceparent"] != letter["traceparent"]


async def test_waiting_for_a_server_is_told_on_the_batch_and_on_each_message(
    bench: Bench, tracer: KeepingTracer
) -> None:
    bench.failing = [Transient("milvus", SECRET), Transient("milvus", SECRET)]
    await bench.process(("a", carried(1)), ("b", carried(2)))
    for span in (*tracer.named("embed batch"), *tracer.named(f"process {TOPIC}")):
        assert [(event.name, dict(event.attributes)) for event in span.events] == [
            ("waiting_for_service", {"headrace.service": "milvus", "attempt": attempt}) for attempt in (1, 2)
        ]
        assert span.status.status_code is StatusCode.UNSET


async def test_what_breaks_the_worker_is_an_error_by_its_class_alone(bench: Bench, tracer: KeepingTracer) -> None:
    with pytest.raises(Bug):
        await bench.process(("a", carried(1)), ("bug", carried(2)))
    works = {f"{span.context.trace_id:032x}": span for span in tracer.named(f"process {TOPIC}")}
    assert works[trace(1)].status.status_code is StatusCode.UNSET
    assert works[trace(2)].attributes["error.type"] == "Bug"
    assert works[trace(2)].status.status_code is StatusCode.ERROR


async def test_no_span_says_what_was_worked_on(bench: Bench, tracer: KeepingTracer) -> None:
    await bench.process((SECRET, carried(1)), ("poison", carried(2)))
    with pytest.raises(Bug):
        await bench.process(("bug", carried(3)))
    assert len(tracer.named(f"process {TOPIC}")) == 3
    for span in tracer.ended:
        said = span.to_json()
        assert SECRET not in said
        assert "default/d" not in said


async def test_a_message_that_is_not_sampled_leaves_no_span_and_is_passed_on(
    bench: Bench, tracer: KeepingTracer
) -> None:
    await bench.process(("a", carried(1, "00")), ("b", carried(2)))
    assert {f"{span.context.trace_id:032x}" for span in tracer.named(f"process {TOPIC}")} == {trace(2)}
    flags = {(value, headers["traceparent"][-2:]) for value, headers in bench.sent("documents.embeddings")}
    assert flags == {(b"a", b"00"), (b"b", b"01")}


async def test_without_tracing_each_record_carries_what_its_cause_came_with() -> None:
    bench = Bench(tracing.Tracer())
    await bench.process(("a", carried(1)), ("b", []))
    assert bench.sent("documents.embeddings") == [(b"b", {})] * 2 + [(b"a", dict(carried(1)[:1]))] * 2


async def test_a_reply_goes_on_with_its_requests_trace(tracer: KeepingTracer) -> None:
    async def serve(item: Item[bytes], write: Write) -> None:
        with tracing.span("embed"):
            await write([Outgoing(topic="replies", key=None, value=item.message)])

    journal: list[str] = []
    wire, source = FakeWire(journal), FakeSource(journal, "queries")
    spans = MessageSpans(stage="query", tracer=tracer, names=NAMES)
    runner = StageRunner(
        RequestStage(name="query", decode=lambda record: record.value or b"", serve=serve), wire, spans=spans
    )
    source.put("a", "b")
    lane = asyncio.create_task(runner.run_lane("bulk", source))
    await until(lambda: {"ack a", "ack b"} <= set(journal))
    lane.cancel()
    with suppress(asyncio.CancelledError):
        await lane
    requests = {span.context.trace_id: span for span in tracer.named("process queries")}
    assert len(requests) == 2
    for span in (*tracer.named("embed"), *tracer.named("send prod.replies")):
        assert span.parent == requests[span.context.trace_id].context
    assert {int(dict(one.headers)["traceparent"].split(b"-")[1], 16) for one in wire.of("replies")} == requests.keys()


async def test_log_lines_have_the_ids_of_the_work_that_they_tell_of(bench: Bench, tracer: KeepingTracer) -> None:
    await bench.process(("a", carried(1)))
    ids = tracer.the("encode").context
    assert bench.logged == {
        "event": "encoding",
        "trace_id": f"{ids.trace_id:032x}",
        "span_id": f"{ids.span_id:016x}",
    }
    assert telemetry._add_trace(None, "info", {"event": "idle"}) == {"event": "idle"}
