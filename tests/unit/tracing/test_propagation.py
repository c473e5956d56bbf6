"""What is read of a record's headers, and what goes on to the next record."""

import subprocess
import sys

import pytest

from headrace import tracing
from headrace.tracing import HEADERS_MAX_BYTES, Headers, Tracer, trace_context
from headrace.tracing.spans import TRACESTATE_MAX_BYTES
from tests.fakes.tracer import KeepingTracer

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = ("traceparent", f"00-{TRACE}-{SPAN}-01".encode())
NOT_SAMPLED = ("traceparent", f"00-{TRACE}-{SPAN}-00".encode())
STATE = ("tracestate", b"app=1,other=2")


@pytest.mark.parametrize(
    ("headers", "read"),
    [
        ((), ()),
        ((("authorization", b"Bearer a"), STATE), ()),
        ((PARENT,), (PARENT,)),
        ((STATE, PARENT, ("baggage", b"a=b")), (PARENT, STATE)),
        ((("traceparent", b"00-ab-cd-01"), PARENT), (PARENT,)),
        ((PARENT, ("traceparent", b"00-ab-cd-01")), ()),
        ((("traceparent", f"00-{'0' * 32}-{SPAN}-01".encode()),), ()),
        ((("traceparent", f"00-{TRACE}-{'0' * 16}-01".encode()),), ()),
        ((("traceparent", f"ff-{TRACE}-{SPAN}-01".encode()),), ()),
        ((("traceparent", f"00-{TRACE.upper()}-{SPAN}-01".encode()),), ()),
        ((("traceparent", b"\xff\xfe"),), ()),
        ((PARENT, ("tracestate", b"a=" + b"x" * TRACESTATE_MAX_BYTES)), (PARENT,)),
        ((PARENT, ("tracestate", b"")), (PARENT,)),
    ],
)
def test_only_a_trace_of_the_right_form_is_followed(headers: Headers, read: Headers) -> None:
    assert trace_context(headers) == read
    assert Tracer().message("process t", headers).headers() == read


def test_headers_without_a_value_are_none() -> None:
    assert trace_context((("traceparent", None), ("tracestate", None))) == ()  # type: ignore[arg-type]


def test_a_message_belongs_to_its_producers_trace_and_what_follows_to_its_own_span() -> None:
    tracer = KeepingTracer()
    with tracer.message("process t", (PARENT, STATE, ("baggage", b"a=b"))) as work:
        assert work.ids is not None
        trace, own = work.ids
        assert work.headers() == (("traceparent", f"00-{trace}-{own}-01".encode()), STATE)
    span = tracer.the("process t")
    assert (trace, f"{span.parent.span_id:016x}") == (TRACE, SPAN)
    assert own != SPAN


def test_what_a_span_is_told_is_cut_short() -> None:
    tracer = KeepingTracer()
    with tracer.message("process t", ()) as work:
        work.set({"headrace.tenant": "t" * 10_000})
        work.event("dead_letter", {"headrace.error.code": "c" * 10_000})
    span = tracer.the("process t")
    [event] = span.events
    assert span.attributes is not None
    assert event.attributes is not None
    told = (span.attributes["headrace.tenant"], event.attributes["headrace.error.code"])
    assert [len(str(value)) for value in told] == [256, 256]


def test_a_trace_that_is_not_sampled_goes_on_unseen() -> None:
    tracer = KeepingTracer()
    with tracer.message("process t", (NOT_SAMPLED, STATE)) as work:
        assert not work.recording
        assert tracing.current() is work
        assert tracing.span("fuse") is tracing.NO_SPAN
        [(_, parent), state] = work.headers()
        assert parent.startswith(f"00-{TRACE}-".encode())
        assert parent.endswith(b"-00")
        assert state == STATE
    assert tracer.ended == ()


@pytest.mark.parametrize(("ratio", "seen"), [(0.0, 0), (1.0, 1)])
def test_the_ratio_is_for_traces_that_begin_here(ratio: float, seen: int) -> None:
    tracer = KeepingTracer(sample_ratio=ratio)
    with tracer.message("begins", ()):
        pass
    with tracer.message("follows", (PARENT,)):
        pass
    assert len(tracer.named("begins")) == seen
    assert len(tracer.named("follows")) == 1


def test_a_batch_is_seen_when_one_of_its_messages_is() -> None:
    tracer = KeepingTracer(sample_ratio=0.0)
    seen, unseen = tracer.message("seen", (PARENT,)), tracer.message("unseen", (NOT_SAMPLED,))
    with tracer.batch("chunk batch", [unseen], {}):
        pass
    assert tracer.ended == ()
    with tracer.batch("chunk batch", [unseen, seen], {}), tracing.span("admit"):
        pass
    seen.end()
    batch, message = tracer.the("chunk batch"), tracer.the("seen")
    assert batch.parent is None
    assert [link.context for link in batch.links] == [message.context]
    assert [link.context for link in message.links] == [batch.context]
    assert tracer.the("admit").parent == batch.context


def test_both_headers_at_their_longest_fit_the_room_that_is_kept_for_them() -> None:
    longest = (PARENT, ("tracestate", b"a=" + b"x" * (TRACESTATE_MAX_BYTES - 2)))
    assert trace_context(longest) == longest
    assert sum(len(name) + len(value) + 10 for name, value in longest) <= HEADERS_MAX_BYTES


def test_what_is_not_traced_imports_nothing_of_opentelemetry() -> None:
    program = (
        "import sys, agents.app\n"
        "from headrace.tracing import TracingSettings, build_tracer\n"
        "build_tracer(TracingSettings(), 'headrace-embed').message('process t', ())\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert ran.stdout.decode().strip() == "[]"
