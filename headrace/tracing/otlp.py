"""Spans that are recorded, by OpenTelemetry's SDK, and sent over OTLP by gRPC from a thread of its own.

The SDK's global provider is left alone, and so is its context: libraries that trace by themselves, such as a provider's
SDK with its prompts, find nobody who listens, and baggage has nowhere to be.
"""

import os
import socket
import ssl
import threading
from collections.abc import Sequence
from contextvars import Token
from importlib.metadata import version
from types import TracebackType
from typing import Self

import grpc  # type: ignore[import-untyped]
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes as SdkAttributes

from headrace.errors import Poison, Transient
from headrace.tracing.settings import TLS_SECTION, TracingSettings
from headrace.tracing.spans import (
    NO_SPAN,
    TRACEPARENT,
    TRACESTATE,
    Attributes,
    Headers,
    Kind,
    Span,
    Tracer,
    enter,
    leave,
    trace_context,
)

SCOPE = "headrace"
QUEUED_SPANS = 16_384
"""What waits for a receiver that is away, about 3 kB each; beyond it the oldest are dropped."""
EXPORT_EVERY_MS = 1000
EXPORT_TIMEOUT_S = 10.0
STOP_WITHIN_S = 3.0
"""How long a worker that ends waits for its receiver; one second more for what it gives up."""
ATTRIBUTE_CHARACTERS = 256
LINKS = 4096
"""Of one span: a batch has at most so many messages (`worker.batch_messages`)."""

_KINDS = {"internal": SpanKind.INTERNAL, "client": SpanKind.CLIENT, "producer": SpanKind.PRODUCER}
_w3c = TraceContextTextMapPropagator()


class RecordingTracer(Tracer):
    """Gives the spans that are sampled to a processor of the SDK."""

    __slots__ = ("_tracer",)

    def __init__(self, processor: SpanProcessor, resource: Resource, *, sample_ratio: float) -> None:
        provider = TracerProvider(
            sampler=ParentBased(_NewTraces(sample_ratio)),
            resource=resource,
            span_limits=SpanLimits(max_links=LINKS, max_attribute_length=ATTRIBUTE_CHARACTERS),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(processor)
        self._tracer = provider.get_tracer(SCOPE)

    def message(self, name: str, headers: Headers) -> Span:
        came = {name: value.decode("ascii", "replace") for name, value in trace_context(headers)}
        context = _w3c.extract(came, Context())
        return _span(self._tracer, self._tracer.start_span(name, context, SpanKind.CONSUMER))

    def batch(self, name: str, messages: Sequence[Span], attributes: Attributes) -> Span:
        recorded = [message for message in messages if isinstance(message, Recorded)]
        if not recorded:
            return NO_SPAN
        links = [Link(message.context) for message in recorded]
        made = _span(self._tracer, self._tracer.start_span(name, Context(), attributes=attributes, links=links))
        for message in recorded:
            message.link(made)
        return made


class OtlpTracer(RecordingTracer):
    """Sends them. A receiver that is away is noticed by the log alone."""

    __slots__ = ("_exporter", "_processor")

    def __init__(self, settings: TracingSettings, service: str, instance: str | None) -> None:
        """Asks nobody. Raises Misconfigured where a file of `tracing.tls` can't be used."""
        self._exporter = OTLPSpanExporter(
            endpoint=settings.endpoint,
            insecure=not settings.encrypted,
            credentials=_credentials(settings) if settings.encrypted else None,
            headers={name.lower(): value.get_secret_value() for name, value in settings.headers.items()},
            timeout=EXPORT_TIMEOUT_S,
        )
        self._processor = BatchSpanProcessor(
            self._exporter, max_queue_size=QUEUED_SPANS, schedule_delay_millis=EXPORT_EVERY_MS
        )
        super().__init__(self._processor, _resource(settings, service, instance), sample_ratio=settings.sample_ratio)

    def stop(self) -> None:
        sending = threading.Thread(target=self._processor.shutdown, name="last-spans", daemon=True)
        sending.start()
        sending.join(STOP_WITHIN_S)
        if sending.is_alive():
            self._exporter.shutdown()
            sending.join(1.0)


class _Followed(Span):
    """A span that OpenTelemetry knows."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self._token: Token[Span] | None = None

    @property
    def context(self) -> trace.SpanContext:
        return self._span.get_span_context()

    @property
    def ids(self) -> tuple[str, str]:
        context = self.context
        return trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)

    def headers(self) -> Headers:
        carrier: dict[str, str] = {}
        _w3c.inject(carrier, trace.set_span_in_context(self._span, Context()))
        parent, state = carrier[TRACEPARENT].encode(), carrier.get(TRACESTATE, "").encode()
        return ((TRACEPARENT, parent), (TRACESTATE, state)) if state else ((TRACEPARENT, parent),)

    def __enter__(self) -> Self:
        self._token = enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            leave(self._token)
        if isinstance(error, Exception):  # Being cancelled is no failure of this work.
            self.failed(error)
        self.end()


class Unrecorded(_Followed):
    """Of a trace that is not sampled: it goes on, and nobody sees it."""

    __slots__ = ()


class Recorded(_Followed):
    """One that is sent when it ends."""

    __slots__ = ("_tracer",)

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        super().__init__(span)
        self._tracer = tracer

    @property
    def recording(self) -> bool:
        return self._span.is_recording()

    def child(self, name: str, attributes: Attributes | None = None, kind: Kind = "internal") -> Span:
        context = trace.set_span_in_context(self._span, Context())
        return _span(self._tracer, self._tracer.start_span(name, context, _KINDS[kind], attributes))

    def set(self, attributes: Attributes) -> None:
        if self.recording:
            self._span.set_attributes(attributes)

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        if self.recording:
            self._span.add_event(name, attributes)

    def link(self, other: Span) -> None:
        if self.recording and isinstance(other, _Followed):
            self._span.add_link(other.context)

    def failed(self, error: BaseException | str) -> None:
        if self.recording:
            self._span.set_attribute("error.type", _error_type(error))
            if isinstance(error, Transient):
                self._span.set_attribute("headrace.service", error.service)
            self._span.set_status(Status(StatusCode.ERROR))

    def end(self) -> None:
        if self.recording:
            self._span.end()


class _NewTraces(Sampler):
    """So many of those that begin here; a batch always, for it begins only when one of its messages is sampled."""

    def __init__(self, ratio: float) -> None:
        self._new = TraceIdRatioBased(ratio)

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: SdkAttributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        sampler: Sampler = ALWAYS_ON if links else self._new
        return sampler.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return f"{self._new.get_description()}, and every batch"


def _span(tracer: trace.Tracer, span: trace.Span) -> Span:
    return Recorded(tracer, span) if span.is_recording() else Unrecorded(span)


def _error_type(error: BaseException | str) -> str:
    match error:
        case str():
            return error
        case Poison():
            return error.code
    return type(error).__name__


def _resource(settings: TracingSettings, service: str, instance: str | None) -> Resource:
    """With what OTEL_RESOURCE_ATTRIBUTES has, as OpenTelemetry's operator sets it in Kubernetes."""
    host = socket.gethostname()
    return Resource.create(
        {
            "service.namespace": "headrace",
            "service.version": version("headrace"),
            "service.instance.id": instance or f"{host}:{os.getpid()}",
            "host.name": host,
            "process.pid": os.getpid(),
            **settings.resource,
            "service.name": service,
        }
    )


def _credentials(settings: TracingSettings) -> grpc.ChannelCredentials:
    tls = settings.tls
    trusted = tls.context(TLS_SECTION).get_ca_certs(binary_form=True)
    roots = "".join(ssl.DER_cert_to_PEM_cert(certificate) for certificate in trusted)
    return grpc.ssl_channel_credentials(
        # Without any, gRPC's own.
        root_certificates=roots.encode() or None,
        private_key=tls.key.read_bytes() if tls.key is not None else None,
        certificate_chain=tls.certificate.read_bytes() if tls.certificate is not None else None,
    )
