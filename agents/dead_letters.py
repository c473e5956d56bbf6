"""What a dead letter's headers say, in the contract's words and in those that
Kafka Connect's and Spring's tools read.
"""

import struct
from collections.abc import Sequence

from headrace.errors import Poison

MESSAGE_MAX_CHARACTERS = 2000
"""The reason is for people; what it is about is in the record itself."""
OWN_PREFIXES = ("headrace.error.", "__connect.errors.", "kafka_dlt-")

Headers = Sequence[tuple[str, bytes]]


def dead_letter_headers(
    original: Headers, *, stage: str, poison: Poison, attempts: int, topic: str, partition: int, offset: int
) -> list[tuple[str, bytes]]:
    """The original's headers and, after them, why it is here and where it was.

    Those of an earlier burial of the same record are replaced, so a letter that dies again after a replay says so of
    its last try.
    """
    message = str(poison)[:MESSAGE_MAX_CHARACTERS].encode()
    name = f"{type(poison).__module__}.{type(poison).__qualname__}".encode()
    position = str(offset).encode()
    return [
        *((header, value) for header, value in original if not header.startswith(OWN_PREFIXES)),
        ("headrace.error.stage", stage.encode()),
        ("headrace.error.code", poison.code.encode()),
        ("headrace.error.message", message),
        ("headrace.error.attempts", str(attempts).encode()),
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
