"""Which generations there are, and how far each has got."""

from datetime import datetime
from typing import Any

import msgspec

from headrace.cli.flipping import STATE_LIVE, display
from headrace.cli.groups import GroupReader
from headrace.config import Settings
from headrace.errors import Misconfigured
from topics.generations import read_generations
from topics.table import DOCUMENT_STAGES


class GenerationStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`waiting` messages are those between Kafka's ends and what its stages have finished; None without its topics."""

    name: str
    live: bool
    state: str
    encoder: dict[str, Any]
    since: datetime | None
    waiting: int | None
    workers: dict[str, int]


class GenerationsStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`phase` is `done` where nothing is on its way."""

    phase: str
    held: list[str]
    generations: list[GenerationStatus]


def generation_status(settings: Settings) -> GenerationsStatus:
    """Asks Kafka alone. Raises as `read_generations` does."""
    record = read_generations(settings.kafka)
    found = []
    for name in sorted({record.live, *record.known}, key=lambda one: int(one or 1)):
        info = record.known.get(name)
        waiting, workers = _progress(settings.of_generation(name))
        found.append(
            GenerationStatus(
                name=display(name),
                live=name == record.live,
                state=info.state if info is not None else STATE_LIVE,
                encoder=info.encoder if info is not None else settings.encoder.vectors(),
                since=info.since if info is not None else None,
                waiting=waiting,
                workers=workers,
            )
        )
    return GenerationsStatus(phase=record.phase, held=[display(name) for name in record.held], generations=found)


def _progress(settings: Settings) -> tuple[int | None, dict[str, int]]:
    try:
        groups = GroupReader(settings.kafka).read()
    except Misconfigured:  # Its topics are not there (any more).
        return None, {}
    waiting = sum(sum(groups.lag(stage).values()) for stage in DOCUMENT_STAGES)
    return waiting, {stage: groups.groups[stage].workers for stage in DOCUMENT_STAGES}
