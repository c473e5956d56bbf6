"""Traces: what happened to one document or one question, from stage to stage."""

from headrace.tracing.settings import TracingSettings
from headrace.tracing.spans import (
    HEADERS_MAX_BYTES,
    NO_SPAN,
    Attributes,
    Headers,
    Span,
    Tracer,
    current,
    span,
    trace_context,
    within,
)

__all__ = [
    "HEADERS_MAX_BYTES",
    "NO_SPAN",
    "Attributes",
    "Headers",
    "Span",
    "Tracer",
    "TracingSettings",
    "build_tracer",
    "current",
    "span",
    "trace_context",
    "within",
]


def build_tracer(settings: TracingSettings, service: str, instance: str | None = None) -> Tracer:
    """Raises Misconfigured where a file of `tracing.tls` can't be used. That nobody answers at the endpoint is none.

    `service` and `instance` are what backends tell processes apart by.
    """
    if not settings.enabled:
        return Tracer()
    # A hundred modules that nobody needs who doesn't trace.
    from headrace.tracing.otlp import OtlpTracer

    return OtlpTracer(settings, service, instance)
