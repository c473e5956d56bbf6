"""How many questions are answered at once, for how long, and for whom."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RateSettings(BaseModel):
    """A token bucket: `burst` questions at once, and `per_second` from then on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    per_second: Annotated[float, Field(gt=0)]
    burst: Annotated[int, Field(ge=1)]


class QuerySettings(BaseModel):
    """Of each query worker: two of them answer twice as many."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    in_flight: Annotated[int, Field(ge=1, le=1000)] = 50
    """Questions that are worked on at once."""
    waiting: Annotated[int, Field(ge=0, le=4000)] = 1000
    """Questions that wait for their turn, the newest first; beyond it the oldest is `rate_limited`."""
    timeout_s: Annotated[float, Field(gt=0, le=120)] = 60.0
    """A question's deadline where it names none, or a later one."""
    remember_s: Annotated[float, Field(ge=0)] = 60.0
    """For how long the same `request_id` gets the same answer; 0 is never."""
    remember_bytes: Annotated[int, Field(ge=0)] = 64_000_000
    """Of answers that are remembered; beyond it the oldest are forgotten earlier."""
    rate: RateSettings | None = None
    """Of every tenant that has no tier; null is no limit."""
    tiers: dict[str, RateSettings] = {}
    """Other rates, by name: `{"premium": {"per_second": 100, "burst": 200}}`."""
    tenants: dict[str, str] = {}
    """The tier of a tenant: `{"acme": "premium"}`."""

    @model_validator(mode="after")
    def _every_tier_is_there(self) -> "QuerySettings":
        if missing := sorted(set(self.tenants.values()) - set(self.tiers)):
            raise ValueError(f"query.tenants names tiers that query.tiers lacks: {', '.join(missing)}")
        return self
