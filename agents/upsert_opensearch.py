"""documents.embeddings(.urgent) -> OpenSearch, then documents.stored: stores the texts.

Key: tenant/doc_id. A replay is harmless: a row is overwritten by the same row, and a receipt that comes twice says
nothing new. It only adds rows; `commit` alone takes them away. Poison: a batch that can't be read.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from structlog.contextvars import bound_contextvars

from agents.stage import Item, Outgoing, Stage
from agents.upserts import IN_FLIGHT, by_tenant, decode_embeddings, receipt
from headrace.reuse import content_hash
from headrace.stores.ports import TextRow, TextStore
from schemas import EmbeddingBatch, chunk_id, revision_id

STAGE = "upsert-opensearch"


@dataclass(frozen=True, kw_only=True)
class OpenSearchUpserter:
    texts: TextStore

    def stage(self, *, batch_messages: int, batch_bytes: int) -> Stage[EmbeddingBatch]:
        return Stage(
            name=STAGE,
            decode=decode_embeddings,
            work=self.work,
            batch_messages=batch_messages,
            batch_bytes=batch_bytes,
            in_flight=IN_FLIGHT,
        )

    async def work(self, batch: Sequence[Item[EmbeddingBatch]]) -> list[Outgoing]:
        return await asyncio.to_thread(self._work, batch)

    def _work(self, batch: Sequence[Item[EmbeddingBatch]]) -> list[Outgoing]:
        for tenant, batches in by_tenant(batch).items():
            with bound_contextvars(tenant=tenant):
                self.texts.upsert(tenant, [row for embedded in batches for row in _rows(embedded)])
        return [receipt(item, "opensearch") for item in batch]


def _rows(batch: EmbeddingBatch) -> Iterator[TextRow]:
    revision = revision_id(batch.key, batch.revision)
    for chunk in batch.chunks:
        yield TextRow(
            id=chunk_id(revision, chunk.ordinal),
            doc_id=batch.doc_id,
            version=batch.revision.version,
            ordinal=chunk.ordinal,
            content_hash=content_hash(batch, chunk, batch.encoder),
            attributes=batch.attributes,
            text=chunk.text,
            start=chunk.start,
            end=chunk.end,
            headings=chunk.headings,
        )
