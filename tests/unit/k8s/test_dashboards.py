"""Dashboards and alerts ask for metrics and labels that exist, and Grafana finds what it needs."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, get_args

import prometheus_client
import promql_parser as promql
import pytest
from prometheus_client.metrics import MetricWrapperBase

from bench import prometheus
from headrace import telemetry
from headrace.llm.port import Outcome
from headrace.retrieval.breakers import Breaker
from schemas.query import ErrorCode
from topics import GROUPS, LANES

SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
TARGET = {"namespace", "pod", "container", "job", "instance", "generation"}
"""What a PodMonitor adds to every series; the last one is of a second generation's."""
KEDA_LABELS = {"namespace", "exported_namespace", "metric", "scaledObject", "scaler", "triggerIndex", "type"}
KEDA = {
    "keda_scaler_active": KEDA_LABELS,
    "keda_scaler_metrics_value": KEDA_LABELS,
    "keda_scaled_object_errors_total": {"namespace", "exported_namespace", "scaledObject"},
}
"""As https://keda.sh/docs/2.20/integrations/prometheus/ names them, labelled as KEDA's `prommetrics.go` does."""
PROCESS = {"process_start_time_seconds", "process_resident_memory_bytes", "process_cpu_seconds_total"}
"""Of prometheus-client's own collector."""
BUILT_IN = {"up": set[str](), "ALERTS": {"alertname", "alertstate", "severity"}}
"""Of Prometheus itself."""

ALERTS = prometheus.alerts()
RECORDED = {r["record"]: r["expr"] for group in prometheus.rules()["groups"] for r in group["rules"] if "record" in r}
DASHBOARDS = prometheus.dashboards()
PANELS = [
    pytest.param(panel, id=f"{name}: {panel['title']}")
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    if panel["type"] != "row"
]
EXPRESSIONS = {
    **{f"{q.dashboard}: {q.panel}: {q.expr}": q.expr for q in prometheus.queries()},
    **{alert: rule["expr"] for alert, rule in ALERTS.items()},
    **RECORDED,
}


def own_metrics() -> Iterator[tuple[str, set[str]]]:
    """Each series name of headrace.telemetry with its labels."""
    for metric in vars(telemetry).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            for suffix in SUFFIXES[family.type]:
                le = {"le"} if suffix == "_bucket" else set[str]()
                yield family.name + suffix, set(metric._labelnames) | TARGET | le


METRICS: dict[str, set[str]] = {
    **dict(own_metrics()),
    **{name: labels | TARGET for name, labels in {**KEDA, **BUILT_IN}.items()},
    **dict.fromkeys(PROCESS, TARGET),
    **{name: {"namespace", *(("lane",) if "_lane:" in name else ())} for name in RECORDED},
}


def labels_of(node: promql.Expr, problems: list[str]) -> set[str]:
    """The labels that the result can have, as far as names go; `problems` gets each name that isn't there."""

    def known(asked: Any, have: set[str], where: object) -> None:
        problems.extend(f"no label {label} in {where}" for label in asked if label not in have)

    match node:
        case promql.VectorSelector():
            labels = METRICS.get(node.name or "")
            if labels is None:
                problems.append(f"no metric {node.name}")
                return set()
            known((matcher.name for matcher in node.matchers.matchers), labels, node)
            return set(labels)
        case promql.MatrixSelector():
            return labels_of(node.vector_selector, problems)
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            return labels_of(node.expr, problems)
        case promql.AggregateExpr():
            inner = labels_of(node.expr, problems)
            if node.modifier is None:
                return inner if str(node.op) in {"topk", "bottomk"} else set()
            assert node.modifier.type == promql.AggModifierType.By, "what is left out grows with every new label"
            known(node.modifier.labels, inner, node)
            return set(node.modifier.labels)
        case promql.Call():
            inner = set[str]().union(*(labels_of(arg, problems) for arg in node.args))
            if node.func.name == "label_replace":
                known([node.args[3].val], inner, node)
                inner |= {node.args[1].val}
            return set() if node.func.name in {"scalar", "vector", "absent"} else inner
        case promql.BinaryExpr():
            left, right = labels_of(node.lhs, problems), labels_of(node.rhs, problems)
            matching = node.modifier.matching if node.modifier else None
            if matching is not None:
                known(matching.labels, left & right, node)
            return left | right
        case _:
            return set()


def problems_of(expr: str) -> list[str]:
    problems: list[str] = []
    labels_of(promql.parse(expr), problems)
    return problems


@pytest.mark.parametrize("place", EXPRESSIONS)
def test_every_metric_and_label_that_is_asked_for_exists(place: str) -> None:
    assert problems_of(EXPRESSIONS[place]) == []


@pytest.mark.parametrize(
    ("expr", "problem"),
    [
        ("rate(headrace_message_total[5m])", "no metric headrace_message_total"),
        ('headrace_waiting{server="milvus"}', "no label server in"),
        ("sum by (lane) (headrace_waiting)", "no label lane in"),
        ("sum by (stage) (sum by (lane) (headrace_buffered_bytes))", "no label stage in"),
        ("headrace_waiting and on (lane) headrace_buffered_bytes", "no label lane in"),
        ('label_replace(headrace_waiting, "a", "$1", "lane", "(.+)")', "no label lane in"),
    ],
)
def test_a_metric_or_label_that_does_not_exist_is_found(expr: str, problem: str) -> None:
    (found,) = problems_of(expr)
    assert found.startswith(problem)


def test_promises_in_the_alerts_are_buckets_of_the_histograms() -> None:
    """A bound between two buckets would count nothing."""
    bounds = {f"{bound:.1f}" for bound in telemetry.LONG_SECONDS}
    asked = {bound for expr in RECORDED.values() for bound in re.findall(r'le="([^"]+)"', expr)}
    assert asked
    assert asked <= bounds


def test_values_of_labels_that_are_asked_for_are_those_of_the_code(
    overlay: Callable[[str], list[dict[str, Any]]],
) -> None:
    """No registry lists them."""
    scaled = [o for o in overlay("base") if o["kind"] == "ScaledObject"]
    allowed = {
        "stage": set(GROUPS),
        "lane": set(LANES),
        "direction": {"in", "out"},
        "code": set(get_args(ErrorCode)),
        "outcome": set(get_args(Outcome)),
        "scaler": {trigger["name"] for o in scaled for trigger in o["spec"]["triggers"] if trigger["type"] == "kafka"},
    }
    asked: dict[str, set[str]] = {name: set() for name in allowed}
    for expr in EXPRESSIONS.values():
        for name, values in re.findall(r'\b(\w+)[=!]~?"([\w|-]+)"', expr):
            if name in asked:
                asked[name] |= set(values.split("|"))
    for name, values in asked.items():
        assert values, f"no query asks for a {name} any more"
        assert values <= allowed[name]


def test_a_breaker_that_never_opened_has_a_series() -> None:
    """Else its panel would say nothing while all is well."""
    Breaker("never-opened", "b", failures=1, reset_s=1)
    assert prometheus_client.REGISTRY.get_sample_value("headrace_breaker_open", {"service": "never-opened"}) == 0


# Grafana


@pytest.mark.parametrize("panel", PANELS)
def test_each_panel_says_what_it_shows_and_in_what_unit(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert len(panel["description"]) > len(panel["title"])
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert target["legendFormat"]


@pytest.mark.parametrize("panel", PANELS)
def test_each_query_of_a_worker_is_of_the_namespace_that_was_chosen(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        selectors: list[promql.VectorSelector] = []
        find(promql.parse(prometheus.with_values(target["expr"])), selectors.append)
        for selector in selectors:
            if selector.name not in {*KEDA, "ALERTS"}:  # Whose namespace may be KEDA's, or absent.
                assert "namespace" in {matcher.name for matcher in selector.matchers.matchers}


def find(node: promql.Expr, found: Callable[[promql.VectorSelector], None]) -> None:
    if isinstance(node, promql.VectorSelector):
        found(node)
    for name in ("expr", "lhs", "rhs", "vector_selector"):
        if (child := getattr(node, name, None)) is not None:
            find(child, found)
    for child in getattr(node, "args", ()):
        find(child, found)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_what_grafana_reads(name: str) -> None:
    dashboard = DASHBOARDS[name]
    assert dashboard["schemaVersion"] >= 39
    assert dashboard["uid"]
    assert dashboard["title"]
    assert "id" not in dashboard, "which is another one in every Grafana"
    variables = {v["name"]: v for v in dashboard["templating"]["list"]}
    assert variables.keys() == {"datasource", "namespace"}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert variables["namespace"]["allValue"] == ".*", "else workers without that label would be left out"
    (asked,) = re.findall(r"label_values\((\w+), (\w+)\)", variables["namespace"]["definition"])
    assert asked[1] in METRICS[asked[0]]
    panels = dashboard["panels"]
    assert panels[0]["type"] == "row"
    for key in ("id", "title"):
        assert len({panel[key] for panel in panels}) == len(panels)
    others = {board["uid"] for other, board in DASHBOARDS.items() if other != name}
    assert {link["url"].removeprefix("/d/") for link in dashboard["links"]} == others


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_do_not_overlap_and_stay_within_the_grid(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARDS[name]["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_dashboards_come_as_the_sidecar_looks_for_them(with_component: Callable[..., list[dict[str, Any]]]) -> None:
    maps = [o for o in with_component("grafana") if o["metadata"].get("labels", {}).get("grafana_dashboard") == "1"]
    (found,) = maps
    assert {name: json.loads(text) for name, text in found["data"].items()} == DASHBOARDS
    # kubectl apply keeps the object once more in an annotation, which may have 256 KiB.
    assert sum(map(len, found["data"].values())) < 200_000
