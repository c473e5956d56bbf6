"""How many questions a tenant may ask: a token bucket each."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from cachetools import LRUCache

from headrace.serving.errors import RateLimited
from headrace.serving.settings import QuerySettings, RateSettings

TENANTS = 10_000
"""Buckets kept; a tenant that has not asked for longest begins with a full one again."""


@dataclass
class TokenBucket:
    """Full at first. Times are seconds of one clock that never goes back."""

    rate: RateSettings
    at: float
    tokens: float

    def take(self, now: float) -> float:
        """Take a token and return 0, or take none and return the seconds until there is one."""
        self.tokens = min(self.rate.burst, self.tokens + (now - self.at) * self.rate.per_second)
        self.at = now
        if self.tokens >= 1:
            self.tokens -= 1
            return 0.0
        return (1 - self.tokens) / self.rate.per_second


class Rates:
    """Every tenant's bucket, by its tier."""

    def __init__(self, settings: QuerySettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._buckets: LRUCache[str, TokenBucket] = LRUCache(TENANTS)

    def take(self, tenant: str) -> None:
        """Raises RateLimited when the tenant has asked too much."""
        tier = self._settings.tenants.get(tenant)
        rate = self._settings.rate if tier is None else self._settings.tiers[tier]
        if rate is None:
            return
        now = self._clock()
        bucket = self._buckets.get(tenant)
        if bucket is None:
            bucket = self._buckets[tenant] = TokenBucket(rate, now, rate.burst)
        if wait_s := bucket.take(now):
            raise RateLimited(
                f"{tenant} may ask {rate.per_second:g} questions a second, {rate.burst} at once", retry_after_s=wait_s
            )
