"""Dead letters: what could not be processed, why, and what was decided about each."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice
from typing import Literal, get_args

import msgspec
from confluent_kafka import Message

from agents.dead_letters import replays
from headrace.auth.bearer import AUTHORIZATION
from headrace.cli.kafka import (
    Place,
    headers_of,
    newest_first,
    oldest_first,
    raw_headers,
    raw_key,
    raw_value,
    read_places,
    watermarks,
)
from schemas import Settlement, decode
from topics.settings import KafkaSettings

SEARCH_S = 30.0
WINDOW = 200
"""Records read at once of a partition: they may be 10 MiB each."""
LAST_MS = 253_402_300_799_000
"""The last timestamp that a calendar of four-digit years has; a producer may have sent microseconds."""
ERROR = "headrace.error."
_NUMBERS = {"kafka_dlt-original-partition", "kafka_dlt-original-offset"}
"""Headers that are big-endian integers; all others are text."""

State = Literal["open", "replayed", "parked", "dropped"]
STATES: tuple[State, ...] = get_args(State)
Column = Literal["stage", "code", "tenant", "hour"]
Settlements = Mapping[Place, Settlement]


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter without its payload. `id` is its partition and offset in documents.dead, `at` the original's
    timestamp; `state` is None where nobody looked it up.
    """

    id: str
    at: datetime
    key: str | None
    stage: str
    code: str
    message: str
    attempts: str
    topic: str
    partition: str
    offset: str
    size: int
    replays: int = 0
    state: State | None = None

    @property
    def tenant(self) -> str:
        return (self.key or "").partition("/")[0]


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which letters are meant: those that meet every condition, with `places` none but these."""

    stage: str | None = None
    code: str | None = None
    tenant: str | None = None
    key: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    states: frozenset[State] = frozenset({"open"})
    places: tuple[Place, ...] = ()

    @property
    def everything(self) -> bool:
        return self == Selection(states=self.states)

    def takes(self, letter: DeadLetter) -> bool:
        return letter.state in self.states and self._describes(letter)

    def _describes(self, letter: DeadLetter) -> bool:
        return (
            (self.stage is None or letter.stage == self.stage)
            and (self.code is None or letter.code == self.code)
            and (self.tenant is None or letter.tenant == self.tenant)
            and (self.key is None or letter.key == self.key)
            and (self.since is None or letter.at >= self.since)
            and (self.until is None or letter.at < self.until)
        )


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Letters that have these columns in common."""

    by: dict[Column, str]
    letters: int
    first: datetime
    last: datetime


def read_dead_letter(message: Message, settled: Settlements | None = None) -> DeadLetter:
    """Whatever its headers say; what they don't is empty."""
    headers = dict(headers_of(message))

    def text(name: str) -> str:
        return headers.get(name, b"").decode(errors="replace")

    key = raw_key(message)
    return DeadLetter(
        id=name_of(place_of(message)),
        at=datetime.fromtimestamp(min(max(message.timestamp()[1], 0), LAST_MS) / 1000, UTC),
        key=None if key is None else key.decode(errors="backslashreplace"),
        stage=text(f"{ERROR}stage"),
        code=text(f"{ERROR}code"),
        message=text(f"{ERROR}message"),
        attempts=text(f"{ERROR}attempts"),
        topic=text("__connect.errors.topic"),
        partition=text("__connect.errors.partition"),
        offset=text("__connect.errors.offset"),
        size=len(raw_value(message) or b""),
        replays=replays(raw_headers(message)),
        state=None if settled is None else state_of(settled.get(place_of(message))),
    )


def place_of(message: Message) -> Place:
    return message.partition() or 0, message.offset() or 0


def name_of(place: Place) -> str:
    """The id of a letter: the key of its settlements."""
    return f"{place[0]}:{place[1]}"


def parse_place(name: str) -> Place:
    """Raises ValueError for what is not partition:offset."""
    partition, colon, offset = name.partition(":")
    if not (colon and partition.isdecimal() and offset.isdecimal()):
        raise ValueError("must be partition:offset, e.g. 3:17")
    return int(partition), int(offset)


def state_of(settlement: Settlement | None) -> State:
    return "open" if settlement is None or settlement.action == "reopened" else settlement.action


def settlements(kafka: KafkaSettings) -> dict[Place, Settlement]:
    """The newest decision about each letter; a small entry a letter is held."""
    topic = kafka.names.topic("documents.dead.settled")
    with closing(oldest_first(kafka.confluent(), topic)) as found:
        return dict(map(_read_settlement, found))


def history(kafka: KafkaSettings, place: Place) -> list[Settlement]:
    """What was decided about one letter, the oldest first, as far as compaction has kept it."""
    topic, key = kafka.names.topic("documents.dead.settled"), name_of(place).encode()
    with closing(oldest_first(kafka.confluent(), topic, key=key)) as found:
        return [_read_settlement(message)[1] for message in found if raw_key(message) == key]


def _read_settlement(message: Message) -> tuple[Place, Settlement]:
    return parse_place((raw_key(message) or b"").decode()), decode(raw_value(message) or b"", Settlement)


def counts(kafka: KafkaSettings) -> dict[State, int]:
    """How many letters there are of each state, without reading one."""
    bounds = watermarks(kafka.confluent(), kafka.names.topic("documents.dead"))
    found: dict[State, int] = dict.fromkeys(STATES, 0)
    found["open"] = sum(high - low for low, high in bounds.values())
    for (partition, offset), settlement in settlements(kafka).items():
        low, high = bounds.get(partition, (0, 0))
        # Decisions are kept longer than the letters, which retention takes.
        if low <= offset < high:
            found["open"] -= 1
            found[state_of(settlement)] += 1
    return found


def newest(kafka: KafkaSettings, selection: Selection, limit: int) -> tuple[list[DeadLetter], bool]:
    """The newest letters that are meant, and whether half a minute was enough to look at all that it took.

    One payload at a time is in memory, beside what was fetched ahead.
    """
    settled = settlements(kafka)

    def keep(message: Message) -> DeadLetter | None:
        letter = read_dead_letter(message, settled)
        return letter if selection.takes(letter) else None

    topic = kafka.names.topic("documents.dead")
    started = time.monotonic()
    with closing(newest_first(kafka.confluent(), topic, keep, window=WINDOW, within_s=SEARCH_S)) as found:
        letters = list(islice(found, limit))
    return letters, len(letters) == limit or time.monotonic() - started < SEARCH_S


def selected(
    kafka: KafkaSettings, selection: Selection, looked_at: Callable[[DeadLetter], None] = lambda _: None
) -> Iterable[tuple[DeadLetter, Message]]:
    """Every letter that is meant with its record, the oldest of each partition first; one payload at a time."""
    settled = settlements(kafka)
    config, topic = kafka.confluent(), kafka.names.topic("documents.dead")
    records = read_places(config, topic, selection.places) if selection.places else oldest_first(config, topic)
    with closing(records):
        for message in records:
            letter = read_dead_letter(message, settled)
            looked_at(letter)
            if selection.takes(letter):
                yield letter, message


def grouped(letters: Iterable[DeadLetter], columns: Sequence[Column]) -> list[Group]:
    """The largest group first; by time where the hour is a column."""
    groups: dict[tuple[str, ...], tuple[int, datetime, datetime]] = {}
    for letter in letters:
        values = tuple(_column(letter, column) for column in columns)
        count, first, last = groups.get(values, (0, letter.at, letter.at))
        groups[values] = count + 1, min(first, letter.at), max(last, letter.at)
    found = [
        Group(by=dict(zip(columns, values, strict=True)), letters=count, first=first, last=last)
        for values, (count, first, last) in groups.items()
    ]
    if "hour" in columns:
        return sorted(found, key=lambda group: (group.by["hour"], -group.letters))
    return sorted(found, key=lambda group: -group.letters)


def _column(letter: DeadLetter, column: Column) -> str:
    match column:
        case "stage":
            return letter.stage
        case "code":
            return letter.code
        case "tenant":
            return letter.tenant
        case "hour":
            return letter.at.strftime("%Y-%m-%dT%H:00Z")


def readable_headers(message: Message) -> list[tuple[str, str]]:
    """Text as text, integers as numbers, anything else in hex; a name may come twice. A token is not shown."""
    return [(name, "(no value)" if value is None else _readable(name, value)) for name, value in raw_headers(message)]


def _readable(name: str, value: bytes) -> str:
    if name == AUTHORIZATION:
        return f"(not shown, {len(value)} bytes)"
    if name in _NUMBERS:
        return str(int.from_bytes(value, "big", signed=True))
    try:
        return value.decode()
    except UnicodeDecodeError:
        return f"0x{value.hex()}"
