"""What is sent: keys, values and headers as the contract wants them. What it does not want is refused here."""

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from headrace_client.errors import Invalid
from headrace_client.messages import DEFAULT_TENANT, TENANT_PATTERN, Deletion, Document, Query, decode, encode

DOCUMENT_MAX_BYTES = 10 * 1024 * 1024
"""The largest record of `documents.raw` and `documents.urgent`."""
QUERY_MAX_BYTES = 1_000_000
FRAMING_BYTES = 100
"""Kafka holds a batch against the limit: 61 bytes of it, and about 20 of the record, are neither key nor value."""
DOC_ID_MAX_BYTES = 512

CORRELATION_ID = "kafka_correlationId"
REPLY_TOPIC = "kafka_replyTopic"
REPLY_PARTITION = "kafka_replyPartition"
DEADLINE = "headrace.deadline"
AUTHORIZATION = "authorization"
ALREADY_MEANT = {
    CORRELATION_ID,
    REPLY_TOPIC,
    REPLY_PARTITION,
    DEADLINE,
    "REPLY_CORRELATION_ID",
    "REPLY_TOPIC",
    "REPLY_PARTITION",
}
"""Headers by which a reply finds its way; nobody else may set them."""

Headers = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, kw_only=True)
class Record:
    topic: str
    key: bytes
    value: bytes | None
    headers: Headers = ()

    @property
    def size(self) -> int:
        """About what Kafka holds against the topic's limit, and never less."""
        headers = sum(len(name.encode()) + len(value) + 10 for name, value in self.headers)
        return len(self.key) + len(self.value or b"") + headers + FRAMING_BYTES


def document_key(message: Document | Deletion) -> bytes:
    """`tenant/doc_id`. Raises Invalid when either is not of the contract's form."""
    tenant = DEFAULT_TENANT if message.tenant is None else message.tenant
    if not re.fullmatch(TENANT_PATTERN, tenant):
        raise Invalid(f"tenant {tenant[:80]!r} does not match {TENANT_PATTERN}")
    if not message.doc_id:
        raise Invalid("a doc_id is needed: it names the document")
    try:
        doc_id = message.doc_id.encode()
    except UnicodeEncodeError as exc:
        raise Invalid(f"doc_id {message.doc_id!r} is not valid Unicode: {exc.reason}") from None
    if len(doc_id) > DOC_ID_MAX_BYTES:
        raise Invalid(f"the doc_id has {len(doc_id)} bytes; at most {DOC_ID_MAX_BYTES} are allowed")
    return tenant.encode() + b"/" + doc_id


def document_record(topic: str, message: Document | Deletion, headers: Headers) -> Record:
    """A Deletion without a version is a record without a value, whose version is its timestamp.

    Raises Invalid for what headrace would put into its dead letters by its form, and for what Kafka would not take.
    """
    key = document_key(message)
    value = None if isinstance(message, Deletion) and message.version is None else _encoded(message)
    record = Record(topic=topic, key=key, value=value, headers=headers)
    if record.size > DOCUMENT_MAX_BYTES:
        raise Invalid(
            f"{key.decode()} has {record.size:,} bytes as a record; at most {DOCUMENT_MAX_BYTES:,} are allowed: "
            "split the document"
        )
    return record


def query_record(topic: str, query: Query, key: bytes, headers: Headers) -> Record:
    record = Record(topic=topic, key=key, value=_encoded(query), headers=headers)
    if record.size > QUERY_MAX_BYTES:
        raise Invalid(f"the query has {record.size:,} bytes as a record; at most {QUERY_MAX_BYTES:,} are allowed")
    return record


def reply_headers(correlation_id: bytes, topic: str, partition: int, deadline_ms: int) -> Headers:
    """`deadline_ms` is Unix time."""
    return (
        (CORRELATION_ID, correlation_id),
        (REPLY_TOPIC, topic.encode()),
        (REPLY_PARTITION, struct.pack(">i", partition)),
        (DEADLINE, str(deadline_ms).encode()),
    )


def own_headers(*sets: Mapping[str, str]) -> Headers:
    """The headers that a user gives; a later set wins."""
    merged: dict[str, str] = {}
    for headers in sets:
        merged.update(headers)
    if taken := ALREADY_MEANT & merged.keys():
        raise Invalid(f"{', '.join(sorted(taken))}: the client sets these headers itself")
    try:
        return tuple((name, value.encode()) for name, value in merged.items())
    except UnicodeEncodeError as exc:
        raise Invalid(f"a header is not valid Unicode: {exc.reason}") from None


def _encoded(message: Document | Deletion | Query) -> bytes:
    """Written, and read once: types and bounds are checked when a message is read, not when it is made."""
    try:
        value = encode(message)
        decode(value, type(message))
    except (TypeError, ValueError) as exc:
        raise Invalid(f"{type(message).__name__}: {exc}") from exc
    return value
