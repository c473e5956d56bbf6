"""A real Prometheus and its promtool, on a machine that has them or Go, over the rules and dashboards of k8s/."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

ROOT = Path(__file__).parents[1]
ALERTS = ROOT / "k8s" / "components" / "prometheus-operator" / "alerts.yaml"
DASHBOARDS = ROOT / "k8s" / "components" / "grafana"
VERSION = "v0.316.0"
"""Of the module; the programs call it 3.16."""


@cache
def program(name: Literal["promtool", "prometheus"]) -> str | None:
    """Where the program is; None where this machine has none and can't make one. Making it takes a minute or two."""
    if found := shutil.which(name):
        return found
    made = ROOT / ".headrace" / "bin" / f"{name}-{VERSION}"
    if not made.is_file():
        if not shutil.which("go"):
            return None
        built = made.parent / "new"
        # Without the discovery of clouds, whose libraries are most of it.
        command = ["go", "install", "-tags", "remove_all_sd", f"github.com/prometheus/prometheus/cmd/{name}@{VERSION}"]
        environment = os.environ | {"GOBIN": str(built)}
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=1800)
        (built / name).replace(made)
    return str(made)


def rules() -> dict[str, Any]:
    """What Prometheus reads as a rule file: the PrometheusRule's spec."""
    spec: dict[str, Any] = yaml.safe_load(ALERTS.read_text())["spec"]
    return spec


def alerts() -> dict[str, dict[str, Any]]:
    """Alerting rules by their names."""
    return {rule["alert"]: rule for group in rules()["groups"] for rule in group["rules"] if "alert" in rule}


def dashboards() -> dict[str, dict[str, Any]]:
    """Grafana's JSON, by the names of the files."""
    return {path.name: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}


class Query(NamedTuple):
    dashboard: str
    panel: str
    expr: str
    """As Prometheus reads it: with values for Grafana's variables."""


def queries() -> Iterator[Query]:
    for name, dashboard in dashboards().items():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                yield Query(name, panel["title"], with_values(target["expr"]))


def with_values(expr: str, *, rate_interval: str = "5m", shown: str = "6h", namespace: str = ".*") -> str:
    """The expression as Grafana would send it."""
    values = {"$__rate_interval": rate_interval, "$__range": shown, "$namespace": namespace}
    for variable, value in values.items():
        expr = expr.replace(variable, value)
    return expr
