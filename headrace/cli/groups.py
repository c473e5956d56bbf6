"""What Kafka knows of the stages' consumer groups: how far each has got, and how many workers it has."""

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from headrace.cli.condition import Place
from headrace.cli.kafka import ANSWER_WITHIN_S, QUIET, Positions, translated
from headrace.errors import Misconfigured, Transient
from topics import GROUPS, LANES, Lane
from topics.provisioning import existing_topics
from topics.settings import KafkaSettings

DEAD = "documents.dead"
# A broker that has just started, or a cluster whose first group this is.
_COORDINATOR_MOVES = {
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
}
_REBALANCING = {ConsumerGroupState.PREPARING_REBALANCING, ConsumerGroupState.COMPLETING_REBALANCING}


@dataclass(frozen=True, kw_only=True)
class Group:
    """One stage's group. `committed` lacks the partitions of which nothing is committed yet."""

    committed: Mapping[Place, int] = field(default_factory=dict)
    workers: int = 0
    rebalancing: bool = False


@dataclass(frozen=True, kw_only=True)
class Groups:
    """All groups at one moment. Offsets count the marks of transactions, too, which no stage works on."""

    topics: Mapping[str, Mapping[Lane, list[str]]]
    """What each stage reads."""
    begins: Mapping[Place, int]
    ends: Mapping[Place, int]
    groups: Mapping[str, Group]
    dead: int
    """Dead letters that were ever written."""

    def lag(self, stage: str) -> dict[Lane, int]:
        """Records between the committed position and the end, for each lane that the stage has."""
        return {lane: self._behind(stage, topics) for lane, topics in self.topics[stage].items() if topics}

    def unfinished(self, stage: str, lane: Lane) -> dict[Place, int]:
        """The committed position of each partition that has something behind it."""
        positions = {place: self._position(stage, place) for place in self._places(self.topics[stage][lane])}
        return {place: position for place, position in positions.items() if position < self.ends[place]}

    def _behind(self, stage: str, topics: Iterable[str]) -> int:
        return sum(max(0, self.ends[place] - self._position(stage, place)) for place in self._places(topics))

    def done_since(self, before: "Groups", stage: str) -> int:
        """Records that the stage has committed since then. A position that was set back counts for nothing."""
        places = self._places(topic for topics in self.topics[stage].values() for topic in topics)
        return sum(
            max(0, self._position(stage, place) - before._position(stage, place))
            for place in places
            if place in before.begins
        )

    def _position(self, stage: str, place: Place) -> int:
        return max(self.groups[stage].committed.get(place, 0), self.begins[place])

    def _places(self, topics: Iterable[str]) -> list[Place]:
        wanted = set(topics)
        return [place for place in self.ends if place[0] in wanted]


class GroupReader:
    """Asks Kafka alone, so it also tells of workers elsewhere. One connection for all readings."""

    def __init__(self, settings: KafkaSettings) -> None:
        """Raises Transient, or Misconfigured: also where topics are missing."""
        self._config = {**settings.confluent(), **QUIET}
        self._ids = {stage: settings.names.group(stage) for stage in GROUPS}
        self._topics = {stage: {lane: settings.names.read_by(stage, lane) for lane in LANES} for stage in GROUPS}
        self._dead = settings.names.topic(DEAD)
        there = existing_topics(self._config)
        wanted = {topic for lanes in self._topics.values() for topics in lanes.values() for topic in topics}
        wanted.add(self._dead)
        if missing := sorted(wanted - set(there)):
            raise Misconfigured(f"missing topics: {', '.join(missing)} (`headrace topics create` makes them)")
        self._places = [TopicPartition(topic, number) for topic in sorted(wanted) for number in range(there[topic])]
        with translated(self._config):
            self._admin = AdminClient(self._config)
        self._positions = Positions(self._config)

    def close(self) -> None:
        self._positions.__exit__()

    def read(self) -> Groups:
        """Ends are older than positions: what has none before it is done."""
        with translated(self._config):
            ends = self._ask_offsets(OffsetSpec.latest())  # type: ignore[no-untyped-call]
            begins = self._ask_offsets(OffsetSpec.earliest())  # type: ignore[no-untyped-call]
            members = self._members()
            groups = {
                stage: Group(committed=self._committed(stage), workers=workers, rebalancing=rebalancing)
                for stage, (workers, rebalancing) in members.items()
            }
            known_ends, known_begins = _offsets(ends), _offsets(begins)
        return Groups(
            topics=self._topics,
            begins=known_begins,
            ends=known_ends,
            groups=groups,
            dead=sum(end for (topic, _), end in known_ends.items() if topic == self._dead),
        )

    def _committed(self, stage: str) -> dict[Place, int]:
        read = {topic for topics in self._topics[stage].values() for topic in topics}
        places = [(place.topic, place.partition) for place in self._places if place.topic in read]
        return self._positions.committed(self._ids[stage], places)

    def _members(self) -> dict[str, tuple[int, bool]]:
        """How many each stage's group has, and whether partitions are being given out anew."""
        give_up = time.monotonic() + ANSWER_WITHIN_S
        while True:
            asked = self._admin.describe_consumer_groups(list(self._ids.values()), request_timeout=ANSWER_WITHIN_S)
            try:
                return {stage: _described(asked[group]) for stage, group in self._ids.items()}
            except KafkaException as exc:
                code = exc.args[0].code()
            if code not in _COORDINATOR_MOVES or time.monotonic() > give_up:
                # The code's own text: that of the error may be empty.
                raise KafkaException(KafkaError(code))
            time.sleep(0.2)

    def _ask_offsets(self, spec: OffsetSpec) -> "_Offsets":
        return self._admin.list_offsets(dict.fromkeys(self._places, spec), request_timeout=ANSWER_WITHIN_S)


_Offsets = Mapping[TopicPartition, "Future[Any]"]


def _offsets(asked: _Offsets) -> dict[Place, int]:
    found = {(place.topic, place.partition): future.result().offset for place, future in asked.items()}
    # librdkafka tells of a leader that didn't answer in time by offsets that no partition has, and by no error.
    if min(found.values(), default=0) < 0:
        raise Transient("kafka", f"the leaders of partitions did not answer within {ANSWER_WITHIN_S:.0f} s")
    return found


def _described(asked: "Future[Any]") -> tuple[int, bool]:
    try:
        described = asked.result()
    except KafkaException as exc:
        # Brokers since 4.0 say so where older ones describe a dead group without members.
        if exc.args[0].code() != KafkaError.GROUP_ID_NOT_FOUND:
            raise
        return 0, False
    return len(described.members), described.state in _REBALANCING
