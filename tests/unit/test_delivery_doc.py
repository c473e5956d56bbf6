"""docs/delivery.md promises nothing that no test shows."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "delivery.md").read_text()
TESTS = {
    name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)\(", file.read_text())
}


def section(title: str) -> str:
    return TEXT.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def named(text: str) -> set[str]:
    return set(re.findall(r"`(test_\w+)`", text))


@pytest.mark.parametrize("name", sorted(named(TEXT)))
def test_each_test_that_is_named_exists(name: str) -> None:
    assert name in TESTS


def test_each_guarantee_each_stage_and_each_scenario_names_a_test() -> None:
    promises = section("The guarantees").strip().split("\n- ")
    steps = section("The steps of each stage").splitlines()
    rows = [line for line in (*steps, *section("What happens when").splitlines()) if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith(("| stage |", "| what happens |", "| --- "))]
    assert len(promises) >= 8
    assert len(rows) >= 30
    assert [promise for promise in (*promises, *rows) if not named(promise)] == []
