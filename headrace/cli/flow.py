"""How far the document stages have got: whether anything is at work, and when all that was at work is done."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from headrace.cli.condition import Place, offsets
from headrace.cli.kafka import QUIET, Positions, has_records, translated
from headrace.errors import Misconfigured
from topics import LANES
from topics.provisioning import existing_topics
from topics.settings import KafkaSettings
from topics.table import DOCUMENT_STAGES

POLL_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Look:
    """The ends of all topics on a document's way, and how many records each stage has yet to finish."""

    ends: dict[Place, int]
    behind: dict[str, dict[Place, int]]

    @property
    def messages(self) -> int:
        return sum(sum(places.values()) for places in self.behind.values())


class Flow:
    """Asks Kafka alone, so it also tells of workers elsewhere."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._config = {**settings.confluent(), **QUIET}
        self._names = settings.names
        self._topics = {
            stage: [topic for lane in LANES for topic in settings.names.read_by(stage, lane)]
            for stage in DOCUMENT_STAGES
        }
        there = existing_topics(self._config)
        wanted = {topic for topics in self._topics.values() for topic in topics}
        if missing := sorted(wanted - set(there)):
            raise Misconfigured(f"missing topics: {', '.join(missing)} (`headrace topics create` makes them)")
        self._partitions = {topic: there[topic] for topic in wanted}
        with translated(self._config):
            self._admin = AdminClient(self._config)
        self._positions = Positions(self._config)

    def look(self) -> Look:
        """The ends are older than the positions: a stage that has none of them before it has finished all of it."""
        with translated(self._config):
            ends = self._ends(list(self._partitions))
            begins = self._offsets(list(self._partitions), OffsetSpec.earliest())  # type: ignore[no-untyped-call]
            return Look(ends=ends, behind={stage: self._behind(stage, ends, begins) for stage in DOCUMENT_STAGES})

    def quiet(self, within_s: float, show: Callable[[int], None] = lambda _: None) -> Look:
        """Wait until nothing is at work, for so long at most; the last look.

        One look at zero is not enough: what a stage has just written may be behind the ends that it saw.
        """
        give_up = time.monotonic() + within_s
        before = self.look()
        while True:
            now = self.look()
            show(now.messages)
            still = now.ends == before.ends
            if still and now.messages:
                now = self._without_markers(now)
            if (still and not now.messages) or time.monotonic() > give_up:
                return now
            before = now
            time.sleep(POLL_S)

    def passed(
        self, *, idle_s: float, within_s: float = math.inf, show: Callable[[int], None] = lambda _: None
    ) -> bool:
        """Wait until all that is at work now is done, stage after stage. False when it isn't within so long, or nothing
        moves for so long.

        What is sent meanwhile isn't waited for, so this ends under load, too.
        """
        give_up = time.monotonic() + within_s
        for stage in DOCUMENT_STAGES:
            with translated(self._config):
                ends = self._ends(self._topics[stage])
                begins = self._offsets(self._topics[stage], OffsetSpec.earliest())  # type: ignore[no-untyped-call]
            moved_at, before = time.monotonic(), -1
            while True:
                with translated(self._config):
                    behind = self._behind(stage, ends, begins)
                left = sum(behind.values())
                show(left)
                if left != before:
                    moved_at, before = time.monotonic(), left
                elif left and not self._records(stage, behind):
                    left = 0
                elif left and time.monotonic() - moved_at > idle_s:
                    return False
                if not left:
                    break
                if time.monotonic() > give_up:
                    return False
                time.sleep(POLL_S)
        return True

    def _without_markers(self, look: Look) -> Look:
        """Less what is only the end of a transaction: an offset that no record has, and no stage ever finishes."""
        return Look(
            ends=look.ends,
            behind={
                stage: behind if self._records(stage, behind) else {} for stage, behind in look.behind.items() if behind
            },
        )

    def _records(self, stage: str, behind: dict[Place, int]) -> bool:
        """Whether anything but the marks of transactions is left for a stage."""
        committed = self._positions.committed(self._names.group(stage), behind)
        return has_records(self._config, {place: committed.get(place, 0) for place in behind})

    def _behind(self, stage: str, ends: dict[Place, int], begins: dict[Place, int]) -> dict[Place, int]:
        places = [place for place in ends if place[0] in self._topics[stage]]
        committed = self._positions.committed(self._names.group(stage), places)
        counts = {place: ends[place] - max(committed.get(place, 0), begins[place]) for place in places}
        return {place: count for place, count in counts.items() if count > 0}

    def _ends(self, topics: list[str]) -> dict[Place, int]:
        return self._offsets(topics, OffsetSpec.latest())  # type: ignore[no-untyped-call]

    def _offsets(self, topics: list[str], spec: OffsetSpec) -> dict[Place, int]:
        places = [TopicPartition(topic, number) for topic in topics for number in range(self._partitions[topic])]
        return offsets(self._admin, places, spec)
