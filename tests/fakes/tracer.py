"""A tracer whose spans stay in this process."""

from collections.abc import Sequence

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from headrace.tracing.otlp import RecordingTracer


class KeepingTracer(RecordingTracer):
    """`ended` has the spans that would have been sent, in the order in which they ended."""

    def __init__(self, *, sample_ratio: float = 1.0) -> None:
        self._kept = InMemorySpanExporter()
        super().__init__(SimpleSpanProcessor(self._kept), Resource({}), sample_ratio=sample_ratio)

    @property
    def ended(self) -> Sequence[ReadableSpan]:
        return self._kept.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.ended if span.name == name]

    def the(self, name: str) -> ReadableSpan:
        [found] = self.named(name)
        return found
