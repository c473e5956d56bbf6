"""Which generation of collections and indexes is live: one record that every worker goes by."""

from typing import Any

import msgspec

from schemas.document import Timestamp

GENERATION_PATTERN = r"([2-9]|[1-9][0-9]{1,3})?"
"""The first generation has no name; those after it are numbered from 2."""
FIRST = ""
LEASE_S = 5.0
"""How long a worker goes by what it has read while a change is near: whoever changes the record waits for as long."""
IDLE_LEASE_S = 30.0
"""The same while no change is near: a partition that is without a leader for a while holds nobody up."""
HALF_DONE = frozenset({"closing", "flipped", "telling"})
"""Phases in which documents wait, or events do. The record before one of them has the short lease already."""


class GenerationInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A generation that is there. `encoder` are the settings that say which vectors it holds, without secrets."""

    encoder: dict[str, Any]
    since: Timestamp
    state: str = ""


class Generations(msgspec.Struct, frozen=True, kw_only=True):
    """Which generations there are, and what each may do. Without such a record the first one does everything, alone."""

    live: str = FIRST
    telling: str | None = FIRST
    held: list[str] = []
    known: dict[str, GenerationInfo] = {}
    highest: int = 1
    previous: str | None = None
    target: str | None = None
    lease_s: float = IDLE_LEASE_S
    phase: str = "done"
    marks: dict[str, dict[str, int]] = {}
