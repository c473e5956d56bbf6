"""Where a document is on its way: what its manifest says, its last events, and why it failed."""

from contextlib import closing
from itertools import islice
from typing import Literal

import msgspec
from confluent_kafka import Message

from headrace.cli.deadletters import DeadLetter, read_dead_letter
from headrace.cli.kafka import newest_first, raw_key
from headrace.cli.publishing import read_event
from schemas import DocumentEvent, Key, Manifest, Pending, Span, Store
from schemas.batches import STORES
from topics.settings import KafkaSettings

EVENTS_SHOWN = 5
DEAD_LETTERS_SHOWN = 3
SEARCH_S = 5.0

Place = Literal["unknown", "accepted", "storing", "live", "deleted", "failed"]


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """A version on its way: how many of its chunks each store has."""

    version: int
    total: int
    deleted: bool
    stored: dict[Store, int]


class Whereabouts(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a document. `place` sums it up for its newest version."""

    tenant: str
    doc_id: str
    place: Place
    live_version: int | None
    live_chunks: int
    manifest: Manifest
    arriving: list[Arrival]
    events: list[DocumentEvent]
    dead_letters: list[DeadLetter]


def locate(key: Key, manifest: Manifest, kafka: KafkaSettings) -> Whereabouts:
    """Join the manifest with what the topics still hold of the document's last events and dead letters."""
    events = recent_events(key, kafka)
    return Whereabouts(
        tenant=key.tenant,
        doc_id=key.doc_id,
        place=place_of(manifest, events),
        live_version=manifest.live.revision.version if manifest.live and not manifest.live.deleted else None,
        live_chunks=manifest.live.chunks if manifest.live else 0,
        manifest=manifest,
        arriving=[_arrival(pending) for pending in manifest.pending],
        events=events,
        dead_letters=recent_dead_letters(key, kafka),
    )


def place_of(manifest: Manifest, events: list[DocumentEvent]) -> Place:
    """Where the newest version is. `events` are the newest first."""
    intake, live = manifest.intake, manifest.live
    newest = max((note.revision.version for note in (intake, live) if note), default=None)
    last = events[0] if events else None
    if last and last.status == "failed" and (newest is None or last.version is None or last.version >= newest):
        return "failed"
    if intake and (live is None or live.revision.order < intake.revision.order) and not _same_content(manifest):
        begun = any(pending.revision.order == intake.revision.order for pending in manifest.pending)
        return "storing" if begun else "accepted"
    if live:
        return "deleted" if live.deleted else "live"
    return "unknown"


def _same_content(manifest: Manifest) -> bool:
    """The newest version came with the content that is live: nothing has to be stored for it."""
    intake, live = manifest.intake, manifest.live
    return intake is not None and live is not None and intake.content.order == live.revision.order


def _arrival(pending: Pending) -> Arrival:
    spans: dict[Store, list[Span]] = {"milvus": pending.milvus, "opensearch": pending.opensearch}
    return Arrival(
        version=pending.revision.version,
        total=pending.total,
        deleted=pending.deleted,
        stored={store: sum(end - start for start, end in spans[store]) for store in STORES},
    )


def recent_events(key: Key, kafka: KafkaSettings) -> list[DocumentEvent]:
    """The document's last events, newest first: those that the topic still holds and a few seconds' search finds."""
    wanted = key.encode()

    def keep(message: Message) -> DocumentEvent | None:
        return read_event(message)[1] if raw_key(message) == wanted else None

    topic = kafka.names.topic("documents.events")
    with closing(newest_first(kafka.confluent(), topic, keep, key=wanted, within_s=SEARCH_S)) as found:
        return list(islice(found, EVENTS_SHOWN))


def recent_dead_letters(key: Key, kafka: KafkaSettings) -> list[DeadLetter]:
    """The document's last dead letters, newest first, as far as a few seconds' search finds them."""
    wanted = key.encode()

    def keep(message: Message) -> DeadLetter | None:
        return read_dead_letter(message) if raw_key(message) == wanted else None

    topic = kafka.names.topic("documents.dead")
    with closing(newest_first(kafka.confluent(), topic, keep, key=wanted, within_s=SEARCH_S)) as found:
        return list(islice(found, DEAD_LETTERS_SHOWN))
