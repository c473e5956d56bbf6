"""What a dead letter's headers say, in the contract's words and in those that
Kafka Connect's and Spring's tools read; and what is left of them when it is sent again.
"""

import struct
from collections.abc import Sequence
from typing import TypeVar

from headrace.errors import Poison

MESSAGE_MAX_CHARACTERS = 2000
"""The reason is for people; what it is about is in the record itself."""
OWN_PREFIXES = ("headrace.error.", "__connect.errors.", "kafka_dlt-")

REPLAYS = "headrace.replays"
"""How often a record was sent again. No own prefix: it is kept when the record dies again, and ends a loop."""

_NOT_THE_RECORD = {"headrace.error.last_offset", "headrace.error.left_out_bytes"}
"""A letter with one of these holds a whole batch that could not be read, or a record without its value."""

Headers = Sequence[tuple[str, bytes]]
Maybe = TypeVar("Maybe", bound=bytes | None)
"""A header may come without a value."""


def dead_letter_headers(
    original: Headers,
    *,
    stage: str,
    poison: Poison,
    attempts: int,
    topic: str,
    partition: int,
    offset: int,
    last_offset: int | None = None,
) -> list[tuple[str, bytes]]:
    """The original's headers and, after them, why it is here and where it was.

    Those of an earlier burial of the same record are replaced, so a letter that dies again after a replay says so of
    its last try. `last_offset` is that of a whole batch, and `offset` then its first.
    """
    message = str(poison)[:MESSAGE_MAX_CHARACTERS].encode()
    name = f"{type(poison).__module__}.{type(poison).__qualname__}".encode()
    position = str(offset).encode()
    return [
        *_originals(original),
        ("headrace.error.stage", stage.encode()),
        ("headrace.error.code", poison.code.encode()),
        ("headrace.error.message", message),
        ("headrace.error.attempts", str(attempts).encode()),
        *([] if last_offset is None else [("headrace.error.last_offset", str(last_offset).encode())]),
        ("__connect.errors.topic", topic.encode()),
        ("__connect.errors.partition", str(partition).encode()),
        ("__connect.errors.offset", position),
        ("__connect.errors.exception.class.name", name),
        ("__connect.errors.exception.message", message),
        ("kafka_dlt-original-topic", topic.encode()),
        ("kafka_dlt-original-partition", struct.pack(">i", partition)),
        ("kafka_dlt-original-offset", struct.pack(">q", offset)),
        ("kafka_dlt-exception-fqcn", name),
        ("kafka_dlt-exception-message", message),
    ]


def is_whole(letter: Sequence[tuple[str, bytes | None]]) -> bool:
    """Whether the letter is the original record, which can be sent again."""
    return not any(name in _NOT_THE_RECORD for name, _ in letter)


def replay_headers(letter: Sequence[tuple[str, bytes | None]]) -> list[tuple[str, bytes | None]]:
    """The original's headers as they were, and after them how often it was sent again, this time included."""
    kept = [(name, value) for name, value in _originals(letter) if name != REPLAYS]
    return [*kept, (REPLAYS, str(replays(letter) + 1).encode())]


def replays(headers: Sequence[tuple[str, bytes | None]]) -> int:
    """How often a record was sent again; 0 where its header says nothing that can be read."""
    said = next((value for name, value in reversed(headers) if name == REPLAYS), None) or b""
    return int(said) if said.isdigit() and len(said) < 10 else 0


def _originals(headers: Sequence[tuple[str, Maybe]]) -> list[tuple[str, Maybe]]:
    return [(name, value) for name, value in headers if not name.startswith(OWN_PREFIXES)]
