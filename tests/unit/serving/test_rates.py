import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.serving.errors import RateLimited
from headrace.serving.rates import Rates, TokenBucket
from headrace.serving.settings import QuerySettings, RateSettings


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def taken(rates: Rates, tenant: str, times: int) -> int:
    count = 0
    for _ in range(times):
        try:
            rates.take(tenant)
        except RateLimited:
            continue
        count += 1
    return count


def test_without_a_rate_nothing_is_limited() -> None:
    assert taken(Rates(QuerySettings()), "a", 1000) == 1000


def test_a_tenants_burst_is_its_own() -> None:
    clock = Clock()
    rates = Rates(QuerySettings(rate=RateSettings(per_second=1, burst=3)), clock)
    assert (taken(rates, "a", 10), taken(rates, "b", 10)) == (3, 3)
    clock.now = 2
    assert (taken(rates, "a", 10), taken(rates, "b", 1)) == (2, 1)


def test_a_tier_has_its_own_rate_also_where_others_have_none() -> None:
    premium = {"premium": RateSettings(per_second=1, burst=20)}
    settings = QuerySettings(rate=RateSettings(per_second=1, burst=2), tiers=premium, tenants={"acme": "premium"})
    assert (taken(Rates(settings, Clock()), "acme", 50), taken(Rates(settings, Clock()), "a", 50)) == (20, 2)
    assert taken(Rates(QuerySettings(tiers=premium, tenants={"acme": "premium"}), Clock()), "acme", 50) == 20


def test_who_waits_as_long_as_told_is_let_in_and_no_sooner() -> None:
    clock = Clock()
    rates = Rates(QuerySettings(rate=RateSettings(per_second=4, burst=1)), clock)
    rates.take("a")
    with pytest.raises(RateLimited) as refused:
        rates.take("a")
    clock.now = refused.value.retry_after_s - 0.01
    with pytest.raises(RateLimited):
        rates.take("a")
    clock.now = refused.value.retry_after_s
    rates.take("a")


@given(
    st.floats(0.1, 100),
    st.integers(1, 50),
    st.lists(st.floats(0, 5), min_size=1, max_size=60),
)
def test_never_more_than_the_burst_and_what_has_flowed_in(per_second: float, burst: int, waits: list[float]) -> None:
    bucket, now, let_in = TokenBucket(RateSettings(per_second=per_second, burst=burst), 0.0, burst), 0.0, 0
    for wait in waits:
        now += wait
        let_in += bucket.take(now) == 0
    assert let_in <= burst + now * per_second + 1e-6


def test_a_tier_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="gold"):
        QuerySettings(tenants={"acme": "gold"})
