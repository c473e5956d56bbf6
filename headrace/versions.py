"""Which version of a document is let in, which is live, and which rows must go: pure rules over its manifest.

`admit` is what `chunk` asks before it sends a version on; `receive` is what `commit` makes of the stores' receipts.
Neither reads a clock or a store, so a replay of the same messages comes to the same manifest.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from enum import Enum

import msgspec

from schemas import (
    Chunking,
    Document,
    Intake,
    Key,
    Live,
    Manifest,
    Pending,
    Receipt,
    Replaced,
    Revision,
    Span,
    Status,
    Store,
    Sweep,
)
from schemas.batches import CHUNKS_PER_BATCH, STORES
from schemas.revision import chunk_id, revision_id

DELETED_FINGERPRINT = "deleted"


def fingerprint(document: Document, chunking: Chunking, encoder: str) -> str:
    """32 hex digits over everything that decides what the rows of a version hold.

    A `created_at` that the producer doesn't name counts as absent, not as the record's timestamp: else sending a
    document again unchanged would make it a new one.
    """
    described = [
        document.content_type,
        document.title,
        document.source,
        document.source_confidence,
        document.created_at,
        document.tags,
        document.metadata,
        chunking,
        encoder,
    ]
    digest = hashlib.blake2b(digest_size=16)
    for part in (document.text.encode(), msgspec.json.encode(described)):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


class Admission(Enum):
    """What is to be done with a version that arrives."""

    SEND = "send"
    """Note it in `intake`, then send it on."""
    UNCHANGED = "unchanged"
    """Its content is live already: note it, so that an older version arriving late still loses, and send nothing."""
    SUPERSEDED = "superseded"
    """A newer version was let in before."""


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict, and the manifest to write before it is acted upon (None: as it stands)."""

    admission: Admission
    manifest: Manifest | None


def admit(
    manifest: Manifest, revision: Revision, *, chunks: Callable[[], int], deleted: bool, at: datetime
) -> Admitted:
    """Decide on a version that arrives at `chunk`. `chunks` cuts and counts it: asked only for one that is new.

    The same version again (a redelivery) is sent on again: whether the first try came through can't be known.
    What came between decides, too: with A live and B on its way, A again is *not* unchanged (`intake` is B's).
    """
    intake, live = manifest.intake, manifest.live
    if intake is not None and revision.order < intake.revision.order:
        return Admitted(admission=Admission.SUPERSEDED, manifest=None)
    same_content = intake is not None and intake.revision.fingerprint == revision.fingerprint
    if intake is not None and same_content and live is not None and live.revision == intake.content:
        if intake.revision == revision:
            # A redelivery of what is live is sent on again if it is this revision's own content, else it was skipped
            # before.
            if intake.content == revision:
                return Admitted(admission=Admission.SEND, manifest=None)
            return Admitted(admission=Admission.UNCHANGED, manifest=None)
        noted = Intake(revision=revision, content=intake.content, chunks=intake.chunks, at=at, deleted=deleted)
        return Admitted(admission=Admission.UNCHANGED, manifest=msgspec.structs.replace(manifest, intake=noted))
    if intake is not None and intake.revision == revision and intake.content == revision:
        return Admitted(admission=Admission.SEND, manifest=None)
    noted = Intake(revision=revision, content=revision, chunks=chunks(), at=at, deleted=deleted)
    return Admitted(admission=Admission.SEND, manifest=msgspec.structs.replace(manifest, intake=noted))


def replaced(manifest: Manifest, revision: Revision) -> Replaced | None:
    """The live version that this one is to replace, if it has chunks.

    None for what is live itself: when that comes again, its rows are to be made anew, for they may be spoilt.
    """
    live = manifest.live
    if live is None or not live.chunks or live.revision == revision:
        return None
    return Replaced(revision=live.revision, chunks=live.chunks)


class Fate(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a version: an event for producers."""

    revision: Revision
    status: Status
    chunks: int


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """What `commit` does, in this order: write the manifest (None: as it stands), sweep, send the events, ack."""

    manifest: Manifest | None
    sweeps: list[Sweep]
    fates: list[Fate]
    became_live: Live | None = None
    """What the manifest makes live; its rows must be searchable before."""


def receive(manifest: Manifest, receipts: Iterable[Receipt], *, at: datetime) -> Received:
    """Take in receipts of one document.

    A version becomes live when both stores hold every chunk of it. What it replaces is swept, here and again whenever a
    receipt of the live version is redelivered, since the worker may have died between the flip and the sweep. Receipts
    of a version that lost are answered by sweeping just the rows that they name.
    """
    live = manifest.live
    pending = {entry.revision: entry for entry in manifest.pending}
    sweeps: list[Sweep] = []
    fates: dict[Revision, Fate] = {}
    again = False
    for receipt in receipts:
        if live is not None and receipt.revision == live.revision:
            again = True
        elif live is not None and not _may_replace(receipt.revision, manifest):
            sweeps.append(_sweep(receipt))
            fates[receipt.revision] = Fate(revision=receipt.revision, status="superseded", chunks=receipt.total)
        else:
            entry = pending.get(receipt.revision) or Pending(
                revision=receipt.revision, total=receipt.total, deleted=receipt.deleted
            )
            pending[receipt.revision] = _noted(entry, receipt)
    intended = manifest.intake.content if manifest.intake is not None else None
    winner = max(
        filter(_complete, pending.values()),
        key=lambda entry: (entry.revision.order, entry.revision == intended),
        default=None,
    )
    if winner is not None:
        outdone = [entry for entry in pending.values() if _loses_to(entry, winner, intended)]
        swept = [
            Sweep(revision=entry.revision, milvus=entry.milvus, opensearch=entry.opensearch, chunks=entry.total)
            for entry in outdone
        ]
        if live is not None:
            rows: list[Span] = [(0, live.chunks)] if live.chunks else []
            swept.append(
                Sweep(revision=live.revision, milvus=rows, opensearch=rows, chunks=live.chunks, told=not again)
            )
            # If a worker died after it made that one live, what it had yet to sweep and to tell comes with this one.
            swept += live.swept if again else []
        for entry in (winner, *outdone):
            del pending[entry.revision]
        live = Live(revision=winner.revision, chunks=winner.total, at=at, deleted=winner.deleted, swept=swept)
        again = True
    if again and live is not None:
        sweeps += live.swept
        fates |= {
            sweep.revision: Fate(revision=sweep.revision, status="superseded", chunks=sweep.chunks)
            for sweep in live.swept
            if not sweep.told
        }
        status: Status = "deleted" if live.deleted else "indexed"
        fates[live.revision] = Fate(revision=live.revision, status=status, chunks=live.chunks)
    changed = msgspec.structs.replace(manifest, live=live, pending=list(pending.values()))
    return Received(
        manifest=changed if changed != manifest else None,
        sweeps=[sweep for sweep in sweeps if sweep.milvus or sweep.opensearch],
        fates=list(fates.values()),
        became_live=live if winner is not None else None,
    )


def swept_ids(key: Key, sweep: Sweep, store: Store) -> list[str]:
    """The ids of the rows that a sweep takes from a store."""
    revision = revision_id(key, sweep.revision)
    spans: list[Span] = getattr(sweep, store)
    return [chunk_id(revision, ordinal) for first, end in spans for ordinal in range(first, end)]


def sampled_ids(key: Key, live: Live) -> list[str]:
    """Ids of rows that stand for all of a version when the question is whether searches can find it."""
    revision = revision_id(key, live.revision)
    ordinals = {*range(0, live.chunks, CHUNKS_PER_BATCH), live.chunks - 1} - {-1}
    return [chunk_id(revision, ordinal) for ordinal in sorted(ordinals)]


def _may_replace(revision: Revision, manifest: Manifest) -> bool:
    live, intake = manifest.live, manifest.intake
    if live is None or revision.order > live.revision.order:
        return True
    # The same record processed under other settings: the newest intake decides, whichever was live before.
    same_record = revision.order == live.revision.order
    return same_record and intake is not None and intake.content == revision


def _loses_to(entry: Pending, winner: Pending, intended: Revision | None) -> bool:
    if entry.revision.order == winner.revision.order:
        return entry is not winner and entry.revision != intended
    return entry.revision.order < winner.revision.order


def _sweep(receipt: Receipt) -> Sweep:
    spans: list[Span] = [(receipt.first, receipt.first + receipt.count)] if receipt.count else []
    return Sweep(
        revision=receipt.revision,
        milvus=spans if receipt.store == "milvus" else [],
        opensearch=spans if receipt.store == "opensearch" else [],
        chunks=receipt.total,
    )


def _noted(entry: Pending, receipt: Receipt) -> Pending:
    spans: list[Span] = getattr(entry, receipt.store)
    merged = merge_spans([*spans, (receipt.first, receipt.first + receipt.count)])
    return msgspec.structs.replace(entry, **{receipt.store: merged})


def merge_spans(spans: Sequence[Span]) -> list[Span]:
    """Sorted, disjoint and joined where they touch.
    An empty span stays if it is the only one: it says "came, held nothing".
    """
    merged: list[Span] = []
    for first, end in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((first, end))
    return merged


def _complete(entry: Pending) -> bool:
    return all(merge_spans(getattr(entry, store)) == [(0, entry.total)] for store in STORES)
