"""A receiver of OTLP over gRPC, as a collector has one, which keeps what it gets."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.fakes.certificates import Authority, Pair

WITHIN_S = 60.0


@dataclass(frozen=True)
class Received:
    """A span as it came over the wire, ids in hex."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    kind: str
    attributes: Mapping[str, Any]
    events: Mapping[str, Mapping[str, Any]]
    links: tuple[tuple[str, str], ...]
    """The trace and the span of each."""
    state: str
    failed: bool
    resource: Mapping[str, Any]
    raw: bytes


@dataclass
class Receiver(TraceServiceServicer):
    url: str = ""
    spans: list[Received] = field(default_factory=list)
    metadata: list[tuple[str, str | bytes]] = field(default_factory=list)
    _more: threading.Condition = field(default_factory=threading.Condition)

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802  gRPC's name
        with self._more:
            self.metadata += context.invocation_metadata()
            for sent in request.resource_spans:
                resource = _values(sent.resource.attributes)
                self.spans += [_received(resource, span) for scope in sent.scope_spans for span in scope.spans]
            self._more.notify_all()
        return ExportTraceServiceResponse()

    def wait(self, holds: Callable[[list[Received]], object], within: float = WITHIN_S) -> list[Received]:
        """All that came by the time that it holds."""
        deadline = time.monotonic() + within
        with self._more:
            while not holds(self.spans):
                assert self._more.wait(deadline - time.monotonic()), [(s.service, s.name, s.trace) for s in self.spans]
            return list(self.spans)


@contextmanager
def receiving(authority: Authority | None = None, server: Pair | None = None) -> Iterator[Receiver]:
    """In the clear, or with TLS, for which each client has to show a certificate of the same authority."""
    receiver = Receiver()
    served = grpc.server(ThreadPoolExecutor(4))
    add_TraceServiceServicer_to_server(receiver, served)  # type: ignore[no-untyped-call]
    if authority is None or server is None:
        receiver.url = f"http://127.0.0.1:{served.add_insecure_port('127.0.0.1:0')}"
    else:
        pair = (server.key.read_bytes(), server.certificate.read_bytes())
        credentials = grpc.ssl_server_credentials([pair], authority.ca.read_bytes(), require_client_auth=True)
        receiver.url = f"https://localhost:{served.add_secure_port('127.0.0.1:0', credentials)}"
    served.start()
    try:
        yield receiver
    finally:
        served.stop(None).wait()


def _received(resource: Mapping[str, Any], span: Span) -> Received:
    return Received(
        service=resource["service.name"],
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        attributes=_values(span.attributes),
        events={event.name: _values(event.attributes) for event in span.events},
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        state=span.trace_state,
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        resource=resource,
        raw=span.SerializeToString(),
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)
