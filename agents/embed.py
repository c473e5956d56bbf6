"""documents.chunks(.urgent) -> documents.embeddings(.urgent): adds the vectors.

Key: tenant/doc_id. A replay is harmless: the same chunks keep their ids, so their rows are overwritten. A chunk that an
update left as it was may get the vector that it had, and no server is waited for to find that out. Poison: a batch that
can't be read.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from agents.stage import Item, Outgoing, Stage, reads
from headrace import telemetry, tracing
from headrace.encoders import Encoder, Vectors, context_of
from headrace.encoders.context import Context
from headrace.encoders.meter import RecentRate
from headrace.reuse import VectorReuse
from schemas import Chunk, ChunkBatch, EmbeddingBatch, encode
from schemas.batches import pack_chunks, pack_vectors
from topics import RECORD_MAX_BYTES, Lane

STAGE = "embed"
IN_FLIGHT = 3
"""While the model works on one batch, the next is tokenised and the one before is written."""
BATCH_ROOM_BYTES = RECORD_MAX_BYTES * 8 // 10
"""Of a record, for chunks with their vectors; a document's attributes and the record's own fields fit in the rest."""

decode_chunks = reads(ChunkBatch)


@dataclass(frozen=True, kw_only=True)
class Embedder:
    """Without `reuse` every chunk is embedded."""

    encoder: Encoder
    reuse: VectorReuse | None = None
    _rate: RecentRate = field(default_factory=RecentRate, init=False)

    def __post_init__(self) -> None:
        telemetry.EMBEDDING_QPS.set_function(self._rate.a_second)

    def stage(self, *, batch_messages: int, batch_bytes: int) -> Stage[ChunkBatch]:
        return Stage(
            name=STAGE,
            decode=decode_chunks,
            work=self.work,
            batch_messages=batch_messages,
            batch_bytes=batch_bytes,
            in_flight=IN_FLIGHT,
        )

    async def work(self, batch: Sequence[Item[ChunkBatch]]) -> list[Outgoing]:
        return await asyncio.to_thread(self._work, batch)

    def _work(self, batch: Sequence[Item[ChunkBatch]]) -> list[Outgoing]:
        lane = batch[0].record.lane
        vectors = self._vectors([item.message for item in batch], lane)
        outgoing: list[Outgoing] = []
        first = 0
        for item in batch:
            end = first + len(item.message.chunks)
            outgoing.extend(_embedded(item, vectors[first:end], self.encoder.identity.recipe))
            first = end
        return outgoing

    def _vectors(self, batches: Sequence[ChunkBatch], lane: Lane) -> Vectors:
        """Of all their chunks, in order (chunks x dimension)."""
        identity = self.encoder.identity
        chunks = [(batch, chunk) for batch in batches for chunk in batch.chunks]
        with tracing.span("reuse"):
            reused = self.reuse.vectors(batches) if self.reuse is not None else {}
        vectors = np.empty((len(chunks), identity.dimension), dtype=np.float32)
        for place, vector in reused.items():
            vectors[place] = vector
        anew = [place for place in range(len(chunks)) if place not in reused]
        if anew:
            with tracing.span("encode", {"headrace.chunks": len(anew)}):
                vectors[anew] = self.encoder.encode(
                    [chunks[place][1].text for place in anew],
                    contexts=[_context(identity.context, *chunks[place]) for place in anew],
                    urgent=lane == "urgent",
                )
            self._rate.count(len(anew))
        telemetry.CHUNKS_REUSED.labels(STAGE, lane).inc(len(reused))
        return vectors


def _context(context: Context, batch: ChunkBatch, chunk: Chunk) -> str:
    return context_of(context, batch.attributes.title, chunk.headings, chunk.text)


def _embedded(item: Item[ChunkBatch], vectors: npt.NDArray[np.float32], encoder: str) -> Iterator[Outgoing]:
    batch = item.message
    topic = "documents.embeddings.urgent" if item.record.lane == "urgent" else "documents.embeddings"
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
            published=None if item.record.sent_again else batch.published,
            encoder=encoder,
            dimension=dimension,
            vectors=pack_vectors(vectors[first : first + len(group)]),
        )
        yield Outgoing(
            topic=topic, key=batch.key.encode(), value=encode(embedded), chunks=len(group), cause=item.record
        )
        first += len(group)
