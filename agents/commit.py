"""documents.stored -> the manifests, then documents.events: makes a version live when both stores hold it, and sweeps
what it replaced.

Key: tenant/doc_id, so one document's receipts come on one partition. A replay is harmless: a receipt that was counted
counts once, and one of the live version sweeps and tells again what a worker that died may have left undone. Poison: a
receipt that can't be read. The order is: make its rows searchable, flip the manifest, sweep, send the events, ack.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import msgspec

from agents.freshness import Freshness
from agents.stage import Item, Outgoing, Record, Stage, reads
from headrace import tracing
from headrace.stores.ports import ManifestStore, Stored, TextStore, VectorStore
from headrace.versions import Fate, Received, receive, sampled_ids, swept_ids
from schemas import DocumentEvent, Key, Receipt, Revision, encode

STAGE = "commit"
LINGER_S = 0.2
"""A document's two receipts usually come within moments: waiting a little saves a second write of its manifest."""

decode_receipt = reads(Receipt)


@dataclass(frozen=True, kw_only=True)
class Committer:
    manifests: ManifestStore
    vectors: VectorStore
    texts: TextStore
    freshness: Freshness = field(default_factory=Freshness)

    def stage(self, *, batch_messages: int, batch_bytes: int) -> Stage[Receipt]:
        return Stage(
            name=STAGE,
            decode=decode_receipt,
            work=self.work,
            batch_messages=batch_messages,
            batch_bytes=batch_bytes,
            linger_s=LINGER_S,
        )

    async def work(self, batch: Sequence[Item[Receipt]]) -> list[Outgoing]:
        return await asyncio.to_thread(self._work, batch)

    def _work(self, batch: Sequence[Item[Receipt]]) -> list[Outgoing]:
        receipts: dict[Key, list[Receipt]] = defaultdict(list)
        for item in batch:
            receipts[item.message.key].append(item.message)
        received = self._receive(receipts)
        self._sweep(received)
        causes = _causes(batch)
        return [
            self._event(key, fate, causes.get((key, fate.revision), causes[key, None]))
            for key, outcome in received.items()
            for fate in outcome.fates
        ]

    def _receive(self, receipts: dict[Key, list[Receipt]]) -> dict[Key, Received]:
        """Write the manifests. Where somebody else wrote one first, look at it again."""
        received: dict[Key, Received] = {}
        undecided: Iterable[Key] = receipts.keys()
        while undecided:
            stored = self.manifests.read(undecided)
            replacements: dict[Key, Stored] = {}
            for key in undecided:
                outcome = received[key] = receive(stored[key].manifest, receipts[key], at=datetime.now(UTC))
                if outcome.manifest is not None:
                    replacements[key] = msgspec.structs.replace(stored[key], manifest=outcome.manifest)
            outcomes = {key: received[key] for key in undecided}
            self._make_searchable(outcomes)
            becoming = {
                key: outcome.became_live for key, outcome in outcomes.items() if outcome.became_live is not None
            }
            for key, live in becoming.items():
                self.freshness.becomes_live(key, live, receipts[key])
            undecided = self.manifests.write(replacements)
            for key in becoming.keys() & undecided:
                self.freshness.did_not(key, becoming[key])
        return received

    def _make_searchable(self, received: dict[Key, Received]) -> None:
        """Stores confirm a row before searches find it (1 to 2 s);
        a version is live only from then on, or it would be gone meanwhile.
        """
        samples: dict[str, list[str]] = defaultdict(list)
        for key, outcome in received.items():
            if outcome.became_live is not None:
                samples[key.tenant] += sampled_ids(key, outcome.became_live)
        with tracing.span("make searchable"):
            for tenant, ids in samples.items():
                if ids:
                    self.vectors.make_searchable(tenant, ids)
                    self.texts.make_searchable(tenant)

    def _sweep(self, received: dict[Key, Received]) -> None:
        milvus: dict[str, list[str]] = defaultdict(list)
        opensearch: dict[str, list[str]] = defaultdict(list)
        for key, outcome in received.items():
            for sweep in outcome.sweeps:
                milvus[key.tenant] += swept_ids(key, sweep, "milvus")
                opensearch[key.tenant] += swept_ids(key, sweep, "opensearch")
        with tracing.span("sweep"):
            for tenant, ids in milvus.items():
                self.vectors.delete(tenant, ids)
            for tenant, ids in opensearch.items():
                self.texts.delete(tenant, ids)

    def _event(self, key: Key, fate: Fate, cause: Record) -> Outgoing:
        event = DocumentEvent(
            status=fate.status,
            stage=STAGE,
            at=datetime.now(UTC),
            doc_id=key.doc_id,
            tenant=key.tenant,
            version=fate.revision.version,
            chunks=fate.chunks,
        )
        return Outgoing(
            topic="documents.events",
            key=key.encode(),
            value=encode(event),
            cause=cause,
            on_confirmed=partial(self.freshness.told, key, fate.revision),
        )


def _causes(batch: Sequence[Item[Receipt]]) -> dict[tuple[Key, Revision | None], Record]:
    """What decided a version's fate: the last receipt of its own, and under None the document's last one. A version
    that another one outdid may have had its own receipts long before.
    """
    causes: dict[tuple[Key, Revision | None], Record] = {}
    for item in batch:
        key, revision = item.message.key, item.message.revision
        causes[key, revision] = causes[key, None] = item.record
    return causes
