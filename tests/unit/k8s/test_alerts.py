"""The alerts are rules that Prometheus takes, fire when they should and only then, and lead to a runbook."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from bench import prometheus

ROOT = Path(__file__).parents[3]
RULE_TESTS = sorted((ROOT / "tests" / "data" / "prometheus").glob("*.yaml"))
RUNBOOKS = ROOT / "docs" / "operations.md"
ALERTS = prometheus.alerts()


@pytest.fixture(scope="module")
def promtool() -> str:
    found = prometheus.program("promtool")
    if found is None:
        pytest.skip("no promtool (Debian's package prometheus has it) and no Go here")
    return found


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(prometheus.rules(), sort_keys=False))
    return path


def ran(*command: str | Path) -> str:
    """What it says; fails with that when the command does."""
    done = subprocess.run([*command], capture_output=True, text=True, check=False, timeout=60)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def test_prometheus_takes_every_rule(promtool: str, rules: Path) -> None:
    assert f"{len(re.findall('(?m)^  - (?:alert|record):', rules.read_text()))} rules found" in ran(
        promtool, "check", "rules", rules
    )


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(promtool: str, rules: Path, path: Path) -> None:
    ran(promtool, "test", "rules", shutil.copy(path, rules.parent))


def test_a_rule_test_that_is_wrong_is_found(promtool: str, rules: Path) -> None:
    wrong = (
        (ROOT / "tests" / "data" / "prometheus" / "workers.yaml").read_text().replace("eval_time: 10m", "eval_time: 4m")
    )
    (rules.parent / "wrong.yaml").write_text(wrong)
    with pytest.raises(AssertionError, match="FAILED"):
        ran(promtool, "test", "rules", rules.parent / "wrong.yaml")


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_a_rule_test_in_which_it_fires(alert: str) -> None:
    fires = False
    for path in RULE_TESTS:
        for case in yaml.safe_load(path.read_text())["tests"]:
            fires |= any(t["alertname"] == alert and t["exp_alerts"] for t in case.get("alert_rule_test", []))
            fires |= any(
                f'alertname="{alert}",alertstate="firing"' in sample["labels"]
                for t in case.get("promql_expr_test", [])
                for sample in t["exp_samples"]
            )
    assert fires


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_says_what_is_wrong_how_bad_it_is_and_what_to_do(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    # Of what is absent there is no value.
    assert "$value" in rule["annotations"]["description"] or re.search(r"== [01]\b|absent\(|up\{", rule["expr"])


def sections() -> dict[str, str]:
    """The texts below the headings of the operator's handbook, by the anchors that GitHub gives them."""
    parts = re.split(r"(?m)^#{2,4} (.+)$", RUNBOOKS.read_text())
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"): text
        for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_leads_to_a_runbook_that_names_it_and_begins_with_a_command(alert: str) -> None:
    path, anchor = ALERTS[alert]["annotations"]["runbook_url"].split("#")
    assert ROOT / path == RUNBOOKS
    runbook = sections()[anchor]
    assert f"`{alert}`" in runbook
    assert runbook.lstrip().startswith("```\n")
    for part in ("It shows", "What to do", "It is over"):
        assert f"**{part}" in runbook
