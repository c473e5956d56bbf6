"""Whether what Kafka, a document's manifest and both stores hold of it fits together: pure rules over what was read.

Of a document at rest, the newest record that the compacted topics hold was let in (`intake` has its order, or a higher
one: the record of that may have been compacted away), what was let in is live, nothing is pending, and both stores hold
the rows of what is live, the same ones, and no others.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from headrace.stores.ports import StoredRow
from schemas import Key, Manifest, Revision, Store
from schemas.batches import STORES
from schemas.revision import chunk_id, revision_id, revision_of

Kind = Literal[
    "not_admitted",
    "not_live",
    "pending",
    "rows_missing",
    "rows_differ",
    "rows_orphaned",
    "rows_without_manifest",
    "no_document",
]
Remedy = Literal["redeliver", "sweep"]

MEANINGS: dict[Kind, str] = {
    "not_admitted": "Kafka has a newer version than was let in",
    "not_live": "a version was let in and never went live",
    "pending": "a version that nobody waits for is half stored",
    "rows_missing": "a store lacks rows of what is live",
    "rows_differ": "rows of what is live are not what they should be, or differ between the stores",
    "rows_orphaned": "a store holds rows of a version that is neither live nor on its way",
    "rows_without_manifest": "a store holds rows of a document that has no manifest",
    "no_document": "live, but Kafka no longer has it: it could not be rebuilt",
}
NOTES: frozenset[Kind] = frozenset({"no_document"})
"""Worth knowing, and not a fault: retention and compaction may have taken the record."""
_UNSETTLED: frozenset[Kind] = frozenset({"not_admitted", "not_live"})
_SHOWN = 5


class Sent(msgspec.Struct, frozen=True, kw_only=True, tag="sent"):
    """A record of a compacted topic (by its name in the table), and the revision that `chunk` makes of it."""

    topic: str
    partition: int
    offset: int
    revision: Revision


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """A record of a compacted topic that can be read and is a dead letter all the same: it is no document."""

    topic: str
    partition: int
    offset: int


class Known(msgspec.Struct, frozen=True, kw_only=True, tag="known"):
    manifest: Manifest


class Held(msgspec.Struct, frozen=True, kw_only=True, tag="held"):
    store: Store
    row: StoredRow


Fact = Sent | Refused | Known | Held


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """All that was read of one document.

    `newest` is the record that wins, of those that Kafka still has and that are no dead letters. `refused` counts
    these.
    """

    key: Key
    newest: Sent | None = None
    refused: int = 0
    manifest: Manifest | None = None
    rows: dict[Store, list[StoredRow]] = msgspec.field(default_factory=lambda: {store: [] for store in STORES})


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """`rows` are the ids of the rows that are too many. `remedy` is None where nothing that is left can mend it."""

    kind: Kind
    tenant: str
    doc_id: str
    what: str
    store: Store | None = None
    rows: list[str] = []
    remedy: Remedy | None = None


def gather(key: Key, facts: Iterable[Fact]) -> Evidence:
    sent: dict[tuple[str, int, int], Sent] = {}
    refused: set[tuple[str, int, int]] = set()
    manifest: Manifest | None = None
    rows: dict[Store, list[StoredRow]] = {store: [] for store in STORES}
    for fact in facts:
        match fact:
            case Sent():
                sent[fact.topic, fact.partition, fact.offset] = fact
            case Refused():
                refused.add((fact.topic, fact.partition, fact.offset))
            case Known():
                manifest = fact.manifest
            case Held():
                rows[fact.store].append(fact.row)
    good = [one for place, one in sent.items() if place not in refused]
    newest = max(good, key=lambda one: one.revision.order, default=None)
    return Evidence(key=key, newest=newest, refused=len(sent) - len(good), manifest=manifest, rows=rows)


def can_be_rebuilt(newest: Sent | None, manifest: Manifest | None) -> bool:
    """Whether Kafka still has what is to be live: the newest version itself, or an older record of the same content."""
    if newest is None:
        return False
    intake = manifest.intake if manifest is not None else None
    return (
        intake is None
        or newest.revision.order >= intake.revision.order
        or newest.revision.fingerprint == intake.content.fingerprint
    )


def differences(evidence: Evidence) -> list[Difference]:
    """Everything in which a document is not as one at rest is."""
    found = [*_of_versions(evidence), *_of_live_rows(evidence), *_of_other_rows(evidence)]
    if not any(difference.kind in _UNSETTLED for difference in found):
        return found
    # What a version that is still to go live replaces is swept by the flip, and maybe one of these rows is its own.
    return [
        msgspec.structs.replace(difference, remedy="redeliver") if _waits(difference, evidence) else difference
        for difference in found
    ]


def spared(manifest: Manifest | None, key: Key, rows: Sequence[str]) -> set[str]:
    """Those of these rows that belong to what is live, on its way, or let in: never to be swept."""
    if manifest is None:
        return set()
    live = set(_live_ids(manifest))
    whole = {revision_id(key, revision) for revision in _on_their_way(manifest)}
    return {row for row in rows if row in live or revision_of(row) in whole}


def _waits(difference: Difference, evidence: Evidence) -> bool:
    return difference.remedy == "sweep" and can_be_rebuilt(evidence.newest, evidence.manifest)


def _of_versions(evidence: Evidence) -> Iterator[Difference]:
    newest, manifest = evidence.newest, evidence.manifest
    intake = manifest.intake if manifest is not None else None
    live = manifest.live if manifest is not None else None
    remedy: Remedy | None = "redeliver" if can_be_rebuilt(newest, manifest) else None
    if newest is not None and (intake is None or newest.revision.order > intake.revision.order):
        let_in = "nothing" if intake is None else f"version {intake.revision.version}"
        place = f"{newest.topic} {newest.partition}:{newest.offset}"
        what = f"version {newest.revision.version} ({place}) was sent, {let_in} was let in"
        yield _difference(evidence, "not_admitted", what, remedy="redeliver")
    if intake is not None and (live is None or live.revision != intake.content):
        instead = "nothing" if live is None else f"version {live.revision.version}"
        what = f"version {intake.content.version} was let in, {instead} is live"
        yield _difference(evidence, "not_live", what, remedy=remedy)
    for entry in manifest.pending if manifest is not None else ():
        if intake is None or entry.revision != intake.content:
            yield _difference(evidence, "pending", f"version {entry.revision.version} is half stored")
    if live is not None and not live.deleted and remedy is None:
        yield _difference(evidence, "no_document", f"version {live.revision.version} is live, Kafka does not have it")


def _of_live_rows(evidence: Evidence) -> Iterator[Difference]:
    manifest = evidence.manifest
    if manifest is None or manifest.live is None:
        return
    live = manifest.live
    remedy: Remedy | None = "redeliver" if can_be_rebuilt(evidence.newest, manifest) else None
    ids = _live_ids(manifest)
    held = {store: {row.id: row for row in evidence.rows[store]} for store in STORES}
    for store in STORES:
        missing = [ordinal for ordinal, name in enumerate(ids) if name not in held[store]]
        if missing:
            what = f"{store} lacks {len(missing)} of {live.chunks} rows of version {live.revision.version}"
            what += f" ({_shown(missing)})"
            yield _difference(evidence, "rows_missing", what, store=store, remedy=remedy)
    wrong = [
        ordinal
        for ordinal, name in enumerate(ids)
        if not _agree([rows[name] for rows in held.values() if name in rows], live.revision.version, ordinal)
    ]
    if wrong:
        what = f"{len(wrong)} of {live.chunks} rows of version {live.revision.version} are wrong ({_shown(wrong)})"
        yield _difference(evidence, "rows_differ", what, remedy=remedy)


def _of_other_rows(evidence: Evidence) -> Iterator[Difference]:
    kind: Kind = "rows_orphaned" if evidence.manifest is not None else "rows_without_manifest"
    for store in STORES:
        names = [row.id for row in evidence.rows[store]]
        orphans = sorted(set(names) - spared(evidence.manifest, evidence.key, names))
        if orphans:
            what = f"{store} holds {len(orphans)} rows that belong to nothing ({_shown(orphans, 1)})"
            yield _difference(evidence, kind, what, store=store, rows=orphans, remedy="sweep")


def _difference(
    evidence: Evidence,
    kind: Kind,
    what: str,
    *,
    store: Store | None = None,
    rows: Sequence[str] = (),
    remedy: Remedy | None = None,
) -> Difference:
    tenant, doc_id = evidence.key
    return Difference(kind=kind, tenant=tenant, doc_id=doc_id, what=what, store=store, rows=list(rows), remedy=remedy)


def _agree(rows: Sequence[StoredRow], version: int, ordinal: int) -> bool:
    return len({row.content_hash for row in rows}) <= 1 and all(
        (row.version, row.ordinal) == (version, ordinal) for row in rows
    )


def _on_their_way(manifest: Manifest) -> Iterator[Revision]:
    """Revisions that may get rows, or have them, and aren't live."""
    live = manifest.live.revision if manifest.live is not None else None
    revisions = {entry.revision for entry in manifest.pending}
    if manifest.intake is not None:
        revisions.add(manifest.intake.content)
    return (revision for revision in revisions if revision != live)


def _live_ids(manifest: Manifest) -> list[str]:
    """The ids of the rows that are live, by ordinal."""
    if manifest.live is None:
        return []
    revision = revision_id(manifest.key, manifest.live.revision)
    return [chunk_id(revision, ordinal) for ordinal in range(manifest.live.chunks)]


def _shown(items: Sequence[object], most: int = _SHOWN) -> str:
    return ", ".join(map(str, items[:most])) + (", …" if len(items) > most else "")
