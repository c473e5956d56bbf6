"""What a worker tells of itself: JSON logs with stable event names, Prometheus metrics, and health over HTTP."""

import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib.metadata import version
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import Any, TypeAlias
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics, make_wsgi_app

from headrace import tracing
from headrace.errors import Misconfigured, Transient

# A series more for each series, which says when it began; `rate` needs none.
disable_created_metrics()  # type: ignore[no-untyped-call]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
MILLISECONDS = (5, 10, 25, 50, 75, 100, 150, 250, 500, 1000, 2500, 5000, 10000)
LONG_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

MESSAGES = Counter(
    "headrace_messages", "Messages taken (in) and confirmed by the broker (out)", ["stage", "lane", "direction"]
)
CHUNKS = Counter("headrace_chunks", "Chunks that passed a stage", ["stage", "lane"])
CHUNKS_REUSED = Counter(
    "headrace_chunks_reused", "Chunks whose vectors came from the version that theirs replaces", ["stage", "lane"]
)
STEP_SECONDS = Histogram("headrace_step_seconds", "Time of each step of a batch", ["stage", "step"], buckets=SECONDS)
BATCH_MESSAGES = Histogram("headrace_batch_messages", "Messages in a batch", ["stage"], buckets=SIZES)
IN_HAND = Gauge("headrace_in_hand_messages", "Messages taken and not acked", ["stage"])
BUFFERED_BYTES = Gauge("headrace_buffered_bytes", "Record bytes fetched and not acked", ["stage", "lane"])
LAG = Gauge("headrace_consumer_lag_messages", "Messages from the committed position to the end", ["stage", "lane"])
OLDEST_UNPROCESSED = Gauge(
    "headrace_oldest_unprocessed_seconds", "Age of the oldest record that is not done, 0 without lag", ["stage", "lane"]
)
FRESHNESS = Histogram(
    "headrace_freshness_seconds",
    "From a document record's timestamp until its version is live and its event confirmed",
    ["lane"],
    buckets=LONG_SECONDS,
)
RETRIES = Counter("headrace_retries", "Tries again because a server was away or overloaded", ["stage", "service"])
WAITING = Gauge("headrace_waiting", "1 while a stage waits for a server", ["stage", "service"])
DEAD_LETTERS = Counter("headrace_dead_letters", "Messages sent to documents.dead", ["stage", "code"])
PROGRESS = Gauge("headrace_last_progress_timestamp_seconds", "When a stage last acked something (Unix time)", ["stage"])
STANDSTILL = Gauge(
    "headrace_standstill_seconds", "For how long something that should move has not: it ends the worker", ["stage"]
)
REBALANCES = Counter("headrace_rebalances", "Times that the consumer group gave this worker its partitions", ["stage"])
ENCODER_TOKENS = Counter("headrace_encoder_tokens", "Tokens that the encoder has read, without padding")
ENCODER_SECONDS = Counter("headrace_encoder_seconds", "Seconds in which the encoder had something to read")
# Labelled by device so that they have no samples where there is none: a 0 would say that it is idle.
GPU_MEMORY = Gauge(
    "headrace_gpu_memory_bytes",
    "Memory of the encoder's GPU: total, used, and reserved by this process",
    ["device", "kind"],
)
GPU_UTILIZATION = Gauge(
    "headrace_gpu_utilization_ratio", "Share of the last moment in which the encoder's GPU was busy", ["device"]
)
TENANT_DOCUMENTS = Counter(
    "headrace_tenant_documents", "Documents and deletions that were taken in, of the first tenants", ["tenant"]
)
TENANT_QUESTIONS = Counter("headrace_tenant_questions", "Questions that were asked, of the first tenants", ["tenant"])
QUERY_SECONDS = Histogram(
    "headrace_query_seconds", "Time of each step of a question that got an answer", ["step"], buckets=SECONDS
)
ANSWERS = Counter("headrace_answers", "Replies, those that carry an error included")
ANSWER_ERRORS = Counter("headrace_answer_errors", "Replies that carry an error", ["code"])
BREAKER_OPEN = Gauge("headrace_breaker_open", "1 while a server that failed is not asked", ["service"])
LLM_REQUESTS = Counter("headrace_llm_requests", "Calls of the language model, by how they ended", ["model", "outcome"])
LLM_TOKENS = Counter("headrace_llm_tokens", "Tokens that it read (input) and wrote (output)", ["model", "direction"])
LLM_USAGE_ESTIMATED = Counter(
    "headrace_llm_usage_estimated", "Calls whose tokens the server didn't count, so that they are estimated", ["model"]
)
LLM_COST = Counter("headrace_llm_cost", "What it cost, in the currency of the settings' prices", ["model"])
LLM_SECONDS = Histogram(
    "headrace_llm_seconds", "From asking until the first piece, and until the end", ["model", "until"], buckets=SECONDS
)
CITATIONS_REMOVED = Counter(
    "headrace_citations_removed",
    "Markers and quotations that answers had and their passages don't bear out",
    ["reason"],
)
DEGRADED = Counter("headrace_degraded_answers", "Answers made without a part", ["part"])
REPLY_ADDRESSES_REFUSED = Counter(
    "headrace_reply_addresses_refused", "Requests whose reply topic or partition can't be used; answered on `replies`"
)
# Under the names that dashboards of such pipelines already have.
# This one only grows; it is no Counter because the client would add `_total` to its name.
INGEST_REQUESTS = Gauge("ingest_requests", "Documents and deletions received")
SEARCH_LATENCY_MS = Histogram(
    "search_latency_ms", "From taking a query to its reply, in milliseconds", buckets=MILLISECONDS
)
EMBEDDING_QPS = Gauge("embedding_qps", "Texts embedded a second, over the last minute")
BUILD_INFO = Gauge("headrace_build_info", "1, with the version that runs", ["version"])
BUILD_INFO.labels(version("headrace")).set(1)

OTHER = "other"
LIBRARY_MESSAGE_CHARACTERS = 500


class Firsts:
    """The label of a value that anybody may choose: itself for the first so many that are seen, `other` for the rest.

    Thread-safe. A series is never taken back, so counters only grow.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def label(self, value: str) -> str:
        if value in self._seen:
            return value
        with self._lock:
            if value not in self._seen and len(self._seen) >= self.most:
                return OTHER
            self._seen.add(value)
        return value


tenants = Firsts(20)
"""Of this process; `most` is set from `metrics.tenants`."""

ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None]


def configure_logging(level: str, log_format: str, service: str) -> None:
    """One line an event on stderr: for people where that is a terminal and `log_format` is `auto`, else JSON.

    `service` is on every line, and so is what is bound to the context (structlog.contextvars). Of an exception whose
    words are not headrace's own only types and places are told: those words may quote what was being worked on.
    """

    def add_service(_logger: Any, _method: str, event: Any) -> Any:
        event["service"] = service
        return event

    for_people = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_service,
        _add_trace,
    ]
    renderer = structlog.dev.ConsoleRenderer() if for_people else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _library_message],
            use_get_message=False,
            pass_foreign_args=True,
            processors=[
                structlog.processors.ExceptionRenderer(without_words),
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer,
            ],
        )
    )
    handler.addFilter(_Seldom("aiokafka", seconds=30.0))
    handler.addFilter(_Seldom("opentelemetry", seconds=30.0))
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_crash
    threading.excepthook = lambda ended: _log_crash(ended.exc_type, ended.exc_value, ended.exc_traceback)
    # Libraries that tell of every connection and request; their warnings stay.
    for name in (
        "agents.transport",
        "aiokafka",
        "faust",
        "mode",
        "pymilvus",
        "opensearch",
        "urllib3",
        "httpx",
        "httpx2",
        "httpcore2",
        "openai",
        "anthropic",
        "sentence_transformers",
    ):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level)))


def without_words(exc_info: ExcInfo) -> str:
    """Types and places of an exception and of those behind it, innermost first; and what an exception says where
    that is headrace's own or the operating system's.
    """
    return "".join(_told(exc_info[1]))


def _told(exc: BaseException) -> Iterator[str]:
    behind = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
    if behind is not None:
        yield from _told(behind)
    for one in exc.exceptions if isinstance(exc, BaseExceptionGroup) else ():
        yield from _told(one)
    yield from traceback.format_tb(exc.__traceback__)
    said = f": {exc}" if isinstance(exc, Misconfigured | Transient | OSError) else ""
    yield f"{type(exc).__module__}.{type(exc).__qualname__}{said}\n"


def _library_message(_logger: Any, _method: str, event: Any) -> Any:
    """What a library logs has words in the place of a name, and often a value behind a line break."""
    message, args = event["event"], event.pop("positional_args")
    if isinstance(args, tuple):
        args = tuple(type(arg).__name__ if isinstance(arg, BaseException) else arg for arg in args)
    with suppress(TypeError, ValueError, KeyError):  # A library's own mistake: it is told as it stands.
        message = message % args if args else message
    event["message"] = message.strip().partition("\n")[0][:LIBRARY_MESSAGE_CHARACTERS]
    event["event"] = "library_message"
    return event


def _add_trace(_logger: Any, _method: str, event: Any) -> Any:
    ids = tracing.current().ids
    if ids is not None:
        event["trace_id"], event["span_id"] = ids
    return event


def _log_crash(kind: type[BaseException], exc: BaseException | None, where: TracebackType | None) -> None:
    if exc is None or issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    structlog.get_logger("headrace").critical("crashed", exc_info=(kind, exc, where))


class _Seldom(logging.Filter):
    """Lets a library that tries again many times a second say so once in a while."""

    def __init__(self, library: str, seconds: float) -> None:
        super().__init__()
        self._library = library
        self._seconds = seconds
        self._said: dict[object, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(self._library):
            return True
        # What is said about another partition or node is the same again.
        about = record.msg
        if record.created - self._said.get(about, float("-inf")) < self._seconds:
            return False
        self._said[about] = record.created
        return True


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, *args: Any, **kwargs: Any) -> None:
        """Scrapes and probes come every few seconds; a line for each would bury the log."""


def serve_health(
    host: str,
    port: int,
    *,
    stuck: Callable[[], str | None],
    unready: Callable[[], str | None],
) -> int:
    """Serve /metrics, /healthz and /readyz from a thread of its own, and return the port (a free one for port 0).

    `stuck` and `unready` give the reason why not, or None; they are called from that thread, so a probe is answered
    also while the event loop is held up. Raises Misconfigured when the port is taken.
    """
    metrics = make_wsgi_app()
    checks = {"/healthz": stuck, "/readyz": unready}

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        check = checks.get(environ["PATH_INFO"])
        if check is not None:
            reason = check()
            start_response("200 OK" if reason is None else "503 Service Unavailable", [("Content-Type", "text/plain")])
            return [(reason or "ok").encode() + b"\n"]
        if environ["PATH_INFO"] == "/metrics":
            answer: Iterable[bytes] = metrics(environ, start_response)
            return answer
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"/metrics, /healthz and /readyz are here\n"]

    try:
        server = make_server(host, port, application, server_class=_ThreadingServer, handler_class=_QuietHandler)
    except OSError as exc:
        raise Misconfigured(
            f"can't listen on {host}:{port} ({exc.strerror}): end what listens there, or set HEADRACE_WORKER__PORT"
        ) from exc
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server.server_port
