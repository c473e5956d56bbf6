import promql_parser as promql
import pytest

from bench import alerts, prometheus


@pytest.mark.parametrize(
    ("expr", "divided"),
    [
        ("rate(a[10m]) > 0.05", "rate(a[20s]) > 0.05"),
        ("a offset 30m >= 20", "a offset 60s >= 20"),
        ("increase(a[3d]) > 300 * b", "increase(a[8640s]) > 10 * b"),
        ("namespace:a:ratio_rate5m > 14.4 * 0.01", "namespace:a:ratio_rate5m > 14.4 * 0.01"),
        ('a{le="300.0"} - b{le="120.0"}', 'a{le="10.0"} - b{le="5.0"}'),
        ("a > 3.5 * 86400", "a > 3.5 * 86400"),
    ],
)
def test_times_are_divided_and_shares_and_counts_are_not(expr: str, divided: str) -> None:
    assert alerts.faster(expr) == divided


def test_an_hour_is_two_and_a_half_seconds_where_a_day_is_a_minute() -> None:
    expr = "increase(a[1h]) > 5 * increase(a[1d] offset 1h)"
    its = "increase(a[2500ms]) > 5 * increase(a[60s] offset 2500ms)"
    assert alerts.faster(expr, alerts.A_DAY_A_MINUTE) == its


def test_every_rule_is_one_afterwards_too() -> None:
    rules = [rule for group in prometheus.rules()["groups"] for rule in group["rules"]]
    assert rules
    for rule in rules:
        promql.parse(alerts.faster(rule["expr"]))
        promql.parse(alerts.faster(rule["expr"], alerts.A_DAY_A_MINUTE))


def test_what_is_said_not_to_be_provoked_is_there() -> None:
    assert alerts.ELSEWHERE.keys() < prometheus.alerts().keys()
    assert alerts.DAYS.keys() < prometheus.alerts().keys() - alerts.ELSEWHERE.keys()
