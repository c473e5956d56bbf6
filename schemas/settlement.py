"""What operators decided about a dead letter."""

from typing import Literal

import msgspec

from schemas.document import Timestamp

Action = Literal["replayed", "parked", "dropped", "reopened"]


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """A decision about one dead letter; the newest one counts. Without one, or `reopened`, it is open."""

    action: Action
    at: Timestamp
    run: str
    reason: str | None = None
