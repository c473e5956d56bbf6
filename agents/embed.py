"""documents.chunks(.urgent) -> documents.embeddings(.urgent): adds the vectors.

Key: tenant/doc_id. A replay is harmless: the same chunks keep their ids, so their rows are overwritten. Poison: a batch
that can't be read.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agents.stage import Item, Outgoing, Stage, reads
from headrace import telemetry
from headrace.encoders import Encoder, context_of
from schemas import ChunkBatch, EmbeddingBatch, encode
from schemas.batches import pack_chunks, pack_vectors
from topics import RECORD_MAX_BYTES, Lane

STAGE = "embed"
BATCH_ROOM_BYTES = RECORD_MAX_BYTES * 8 // 10
"""Of a record, for chunks with their vectors; a document's attributes and the record's own fields fit in the rest."""

decode_chunks = reads(ChunkBatch)


@dataclass(frozen=True, kw_only=True)
class Embedder:
    encoder: Encoder

    def stage(self, *, batch_messages: int, batch_bytes: int) -> Stage[ChunkBatch]:
        return Stage(
            name=STAGE, decode=decode_chunks, work=self.work, batch_messages=batch_messages, batch_bytes=batch_bytes
        )

    async def work(self, batch: Sequence[Item[ChunkBatch]]) -> list[Outgoing]:
        return await asyncio.to_thread(self._work, batch)

    def _work(self, batch: Sequence[Item[ChunkBatch]]) -> list[Outgoing]:
        identity = self.encoder.identity
        texts = [chunk.text for item in batch for chunk in item.message.chunks]
        vectors: npt.NDArray[np.float32] = np.zeros((0, identity.dimension), dtype=np.float32)
        if texts:
            started = time.perf_counter()
            vectors = self.encoder.encode(texts, contexts=self._contexts(batch))
            telemetry.EMBEDDING_QPS.set(len(texts) / (time.perf_counter() - started))
        outgoing: list[Outgoing] = []
        first = 0
        for item in batch:
            end = first + len(item.message.chunks)
            outgoing.extend(_embedded(item.message, vectors[first:end], identity.recipe, item.record.lane))
            first = end
        return outgoing

    def _contexts(self, batch: Sequence[Item[ChunkBatch]]) -> list[str]:
        context = self.encoder.identity.context
        return [
            context_of(context, item.message.attributes.title, chunk.headings, chunk.text)
            for item in batch
            for chunk in item.message.chunks
        ]


def _embedded(batch: ChunkBatch, vectors: npt.NDArray[np.float32], encoder: str, lane: Lane) -> Iterator[Outgoing]:
    topic = "documents.embeddings.urgent" if lane == "urgent" else "documents.embeddings"
    dimension = vectors.shape[1]
    vector_bytes = dimension * 4 * 4 // 3 + 4
    first = 0
    for group in pack_chunks(batch.chunks, room=BATCH_ROOM_BYTES, each=vector_bytes) if batch.chunks else ([],):
        embedded = EmbeddingBatch(
            tenant=batch.tenant,
            doc_id=batch.doc_id,
            revision=batch.revision,
            total=batch.total,
            first=batch.first + first,
            attributes=batch.attributes,
            chunks=group,
            deleted=batch.deleted,
            encoder=encoder,
            dimension=dimension,
            vectors=pack_vectors(vectors[first : first + len(group)]),
        )
        yield Outgoing(topic=topic, key=batch.key.encode(), value=encode(embedded), chunks=len(group))
        first += len(group)
