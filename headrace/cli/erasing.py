"""Deleting all that a tenant has."""

import time
from collections.abc import Iterable, Iterator
from contextlib import closing

import msgspec

from headrace import wiring
from headrace.cli.kafka import oldest_first, raw_key, raw_value
from headrace.cli.publishing import Outgoing, deletion
from headrace.cli.verifying import COMPACTED
from headrace.cli.worktable import WorkTable
from headrace.config import Settings
from headrace.verification import Fact, Known, Sent
from headrace.versions import DELETED_FINGERPRINT
from schemas import Key, Revision, parse_key
from schemas.document import Deletion, read_document
from schemas.revision import INT64_MAX, INT64_MIN


class Erasure:
    """The deletions of every document of a tenant that Kafka or a manifest knows and that isn't deleted."""

    def __init__(self, settings: Settings, tenant: str) -> None:
        self._settings = settings
        self._tenant = tenant
        self._table = WorkTable()
        manifests = wiring.build_manifests(settings)
        for page in manifests.scan(tenant):
            self._table.add((manifest.key, Known(manifest=manifest)) for manifest in page)
        self._table.add(self._sent())

    def count(self) -> int:
        """Documents."""
        return len({one.key for one in self.deletions()})

    def deletions(self) -> Iterator[Outgoing]:
        """Each wins over all that is known of its document, and goes to every topic that still has its text."""
        for key, facts in self._table.facts():
            yield from deletions_of(key, facts, now_ms=time.time_ns() // 1_000_000)

    def _sent(self) -> Iterator[tuple[Key, Fact]]:
        kafka = self._settings.kafka
        prefix = f"{self._tenant}/".encode()
        for topic in COMPACTED:
            with closing(oldest_first(kafka.confluent(), kafka.names.topic(topic))) as messages:
                for message in messages:
                    raw = raw_key(message)
                    if raw is None or not raw.startswith(prefix):
                        continue
                    try:
                        key = parse_key(raw)
                    except ValueError:
                        continue
                    version, fingerprint = _read(raw_value(message), message.timestamp()[1])
                    revision = Revision(
                        version=version,
                        timestamp=message.timestamp()[1],
                        offset=message.offset() or 0,
                        fingerprint=fingerprint,
                    )
                    place = {"partition": message.partition() or 0, "offset": message.offset() or 0}
                    yield key, Sent(topic=topic, revision=revision, **place)


def deletions_of(key: Key, facts: Iterable[Fact], *, now_ms: int) -> list[Outgoing]:
    """Of one document; none for one that is deleted everywhere. A null value where its time of sending wins as the
    version, else the next version after the highest.
    """
    last: dict[str, Sent] = {}
    highest = INT64_MIN
    standing = False
    for fact in facts:
        match fact:
            case Sent():
                before = last.get(fact.topic)
                last[fact.topic] = fact if before is None or fact.offset > before.offset else before
                highest = max(highest, fact.revision.version)
            case Known(manifest=manifest):
                for note in (manifest.intake, manifest.live):
                    if note is not None:
                        standing = standing or not note.deleted
                        highest = max(highest, note.revision.version)
    topics = [topic for topic, sent in last.items() if sent.revision.fingerprint != DELETED_FINGERPRINT]
    if standing and not topics:
        topics = [COMPACTED[0]]
    version = None if highest < now_ms else min(highest + 1, INT64_MAX)
    return [deletion(key, version, topic) for topic in topics]


def _read(value: bytes | None, timestamp: int) -> tuple[int, str]:
    """The version, and whether it is a deletion: by its fingerprint. What can't be read has the lowest version."""
    try:
        document = read_document(value)
    except msgspec.DecodeError:
        return INT64_MIN, ""
    version = timestamp if document.version is None else document.version
    return version, DELETED_FINGERPRINT if isinstance(document, Deletion) else ""
