"""Dead letters: what could not be processed, and why."""

from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice

import msgspec
from confluent_kafka import Message

from headrace.cli.kafka import headers_of, newest_first, raw_key, raw_value, read_one
from headrace.config import KafkaSettings

SEARCH_S = 30.0
WINDOW = 200
"""Records read at once of a partition: they may be 10 MiB each."""
ERROR = "headrace.error."
_NUMBERS = {"kafka_dlt-original-partition", "kafka_dlt-original-offset"}
"""Headers that are big-endian integers; all others are text."""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter without its payload. `id` is its partition and offset in documents.dead."""

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

    @property
    def tenant(self) -> str:
        return (self.key or "").partition("/")[0]


def read_dead_letter(message: Message) -> DeadLetter:
    """Whatever its headers say; what they don't is empty."""
    headers = dict(headers_of(message))

    def text(name: str) -> str:
        return headers.get(name, b"").decode(errors="replace")

    key = raw_key(message)
    return DeadLetter(
        id=f"{message.partition()}:{message.offset()}",
        at=datetime.fromtimestamp(message.timestamp()[1] / 1000, UTC),
        key=None if key is None else key.decode(errors="replace"),
        stage=text(f"{ERROR}stage"),
        code=text(f"{ERROR}code"),
        message=text(f"{ERROR}message"),
        attempts=text(f"{ERROR}attempts"),
        topic=text("__connect.errors.topic"),
        partition=text("__connect.errors.partition"),
        offset=text("__connect.errors.offset"),
        size=len(raw_value(message) or b""),
    )


def dead_letters(kafka: KafkaSettings, wanted: Callable[[DeadLetter], bool], limit: int) -> list[DeadLetter]:
    """The newest of those wanted, as far as half a minute's search finds them; one payload at a time is in memory."""

    def keep(message: Message) -> DeadLetter | None:
        letter = read_dead_letter(message)
        return letter if wanted(letter) else None

    topic = kafka.names.topic("documents.dead")
    with closing(newest_first(kafka.confluent(), topic, keep, window=WINDOW, within_s=SEARCH_S)) as found:
        return list(islice(found, limit))


def dead_letter(kafka: KafkaSettings, partition: int, offset: int) -> Message | None:
    """The whole record; None when there is none (any more) at this place."""
    return read_one(kafka.confluent(), kafka.names.topic("documents.dead"), partition, offset)


def readable_headers(message: Message) -> dict[str, str]:
    """Text as text, integers as numbers, anything else in hex."""
    return {name: _readable(name, value) for name, value in headers_of(message)}


def _readable(name: str, value: bytes) -> str:
    if name in _NUMBERS:
        return str(int.from_bytes(value, "big", signed=True))
    try:
        return value.decode()
    except UnicodeDecodeError:
        return f"0x{value.hex()}"
