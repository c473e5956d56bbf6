"""documents.stored -> the manifests, then documents.events: makes a version live when both stores hold it, and sweeps
what it replaced.

Key: tenant/doc_id, so one document's receipts come on one partition. A replay is harmless: a receipt that was counted
counts once, and one of the live version sweeps and tells again what a worker that died may have left undone. Poison: a
receipt that can't be read. The order is: make its rows searchable, flip the manifest, sweep, send the events, ack.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from agents.stage import Item, Outgoing, Stage, reads
from headrace.stores.ports import ManifestStore, Stored, TextStore, VectorStore
from headrace.versions import Fate, Received, receive, sampled_ids, swept_ids
from schemas import DocumentEvent, Key, Receipt, encode

STAGE = "commit"
LINGER_S = 0.2
"""A document's two receipts usually come within moments: waiting a little saves a second write of its manifest."""

decode_receipt = reads(Receipt)


@dataclass(frozen=True, kw_only=True)
class Committer:
    manifests: ManifestStore
    vectors: VectorStore
    texts: TextStore

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
        return [_event(key, fate) for key, outcome in received.items() for fate in outcome.fates]

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
            self._make_searchable({key: received[key] for key in undecided})
            undecided = self.manifests.write(replacements)
        return received

    def _make_searchable(self, received: dict[Key, Received]) -> None:
        """Stores confirm a row before searches find it (1 to 2 s);
        a version is live only from then on, or it would be gone meanwhile.
        """
        samples: dict[str, list[str]] = defaultdict(list)
        for key, outcome in received.items():
            if outcome.became_live is not None:
                samples[key.tenant] += sampled_ids(key, outcome.became_live)
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
        for tenant, ids in milvus.items():
            self.vectors.delete(tenant, ids)
        for tenant, ids in opensearch.items():
            self.texts.delete(tenant, ids)


def _event(key: Key, fate: Fate) -> Outgoing:
    event = DocumentEvent(
        status=fate.status,
        stage=STAGE,
        at=datetime.now(UTC),
        doc_id=key.doc_id,
        tenant=key.tenant,
        version=fate.revision.version,
        chunks=fate.chunks,
    )
    return Outgoing(topic="documents.events", key=key.encode(), value=encode(event))
