"""docs/operations.md lists every metric and every log event, and none that doesn't exist."""

import ast
import logging
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from headrace import telemetry
from tests.unit import operations_tables

ROOT = Path(__file__).parents[2]
LEVELS = {
    "debug": "debug",
    "info": "info",
    "warning": "warning",
    "error": "error",
    "exception": "error",
    "critical": "critical",
}
NOT_BY_CONVENTION = {"search_latency_ms", "embedding_qps", "ingest_requests"}
UNITS = ("_seconds", "_bytes", "_messages", "_ratio", "_info")
OF_A_STATE = {"headrace_waiting", "headrace_breaker_open"}
BOUNDED = {
    "code", "device", "direction", "kind", "lane", "model", "outcome", "reason", "service", "stage", "step", "tenant", "until",
    "version", "part",
}  # fmt: skip


def metrics() -> Iterator[tuple[str, MetricWrapperBase]]:
    """Every metric of the registry, by its name as Prometheus has it."""
    for metric in vars(telemetry).values():
        if isinstance(metric, MetricWrapperBase):
            yield metric._name + ("_total" if isinstance(metric, Counter) else ""), metric


def logged() -> dict[str, set[str]]:
    """The levels that each event is logged at. What libraries log is one event."""
    found: dict[str, set[str]] = {"library_message": {*LEVELS.values()}}
    for folder in ("agents", "headrace", "schemas", "topics"):
        for file in (ROOT / folder).rglob("*.py"):
            for call in ast.walk(ast.parse(file.read_text())):
                if isinstance(call, ast.Call) and (level := _level(call.func)) is not None:
                    event = call.args[0]
                    assert isinstance(event, ast.Constant), f"{file}:{call.lineno}: an event has a name of its own"
                    found.setdefault(str(event.value), set()).add(level)
    return found


def _level(called: ast.expr) -> str | None:
    if not isinstance(called, ast.Attribute):
        return None
    logger = ast.unparse(called.value)
    return LEVELS.get(called.attr) if logger == "log" or logger.startswith("structlog.get_logger(") else None


def test_the_table_lists_every_metric_with_its_labels() -> None:
    assert operations_tables.metrics() == {name: set(metric._labelnames) for name, metric in metrics()}


def test_metrics_are_named_by_the_conventions() -> None:
    for name, metric in metrics():
        if name in NOT_BY_CONVENTION:
            continue
        assert name.startswith("headrace_")
        assert isinstance(metric, Counter | Gauge | Histogram)
        assert isinstance(metric, Counter) or name.endswith(UNITS) or name in OF_A_STATE, name
        assert set(metric._labelnames) <= BOUNDED, name
        assert metric._documentation


def test_the_table_lists_every_log_event_with_its_levels() -> None:
    assert operations_tables.log_events() == logged()


def test_the_levels_are_those_of_logging() -> None:
    assert {logging.getLevelName(level.upper()) for level in LEVELS.values()} == {10, 20, 30, 40, 50}
