"""documents.embeddings(.urgent) -> Milvus, then documents.stored: stores the vectors.

Key: tenant/doc_id. A replay is harmless: a row is overwritten by the same row, and a receipt that comes twice says
nothing new. It only adds rows; `commit` alone takes them away. Poison: a batch that can't be read, vectors that don't
fit their dimension.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from structlog.contextvars import bound_contextvars

from agents.stage import Item, Outgoing, Stage
from agents.upserts import IN_FLIGHT, by_tenant, decode_embeddings, receipt
from headrace.errors import Misconfigured, Poison
from headrace.reuse import content_hash
from headrace.stores.ports import VectorRow, VectorStore
from schemas import EmbeddingBatch, chunk_id, revision_id
from schemas.batches import unpack_vectors
from schemas.encoder import EncoderIdentity

STAGE = "upsert-milvus"


@dataclass(frozen=True, kw_only=True)
class MilvusUpserter:
    vectors: VectorStore
    encoder: EncoderIdentity

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
                self.vectors.upsert(tenant, [row for embedded in batches for row in self._rows(embedded)])
        return [receipt(item, "milvus") for item in batch]

    def _rows(self, batch: EmbeddingBatch) -> Iterator[VectorRow]:
        if (batch.encoder, batch.dimension) != (self.encoder.recipe, self.encoder.dimension):
            raise Misconfigured(
                f"embed sends vectors of {batch.encoder} ({batch.dimension} dimensions), and this worker is set to"
                f" {self.encoder.recipe} ({self.encoder.dimension}): give all workers the same"
                " HEADRACE_ENCODER__MODEL and HEADRACE_ENCODER__CONTEXT"
            )
        try:
            vectors = unpack_vectors(batch.vectors, batch.dimension)
        except ValueError as exc:
            raise Poison("bad_vectors", str(exc)) from exc
        if len(vectors) != len(batch.chunks):
            raise Poison("bad_vectors", f"{len(batch.chunks)} chunks came with {len(vectors)} vectors")
        revision = revision_id(batch.key, batch.revision)
        for chunk, vector in zip(batch.chunks, vectors, strict=True):
            yield VectorRow(
                id=chunk_id(revision, chunk.ordinal),
                doc_id=batch.doc_id,
                version=batch.revision.version,
                ordinal=chunk.ordinal,
                content_hash=content_hash(batch, chunk, batch.encoder),
                attributes=batch.attributes,
                vector=vector,
            )
