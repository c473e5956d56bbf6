"""Vectors of chunks that an update left as they were, taken from the rows of the version that it replaces.

A vector is taken only where `content_hash` is the same, and that covers all that a vector is made of. So which rows are
looked at decides how much is found and never what: rows that a sweep takes away meanwhile are not found, or found as
they were, and either is right. Nothing is remembered from one batch to the next.
"""

import hashlib
import time
from collections import defaultdict
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import structlog

from headrace.errors import Transient
from headrace.stores.ports import TenantAway, VectorStore
from schemas import Batch, Chunk, ChunkBatch, chunk_id, revision_id

log = structlog.get_logger("headrace.reuse")

TIMEOUT_S = 1.0
"""Of each request. To embed a batch anew takes a CPU about as long, so more is not worth waiting."""
PAUSE_S = 15.0
"""For so long the store is not asked again when it was away: its time-out would be added to every batch."""


def content_hash(batch: Batch, chunk: Chunk, encoder: str) -> str:
    """32 hex digits over what a chunk's vector is made of: the encoder's recipe, the title, the headings and the text.

    Whether the recipe reads titles and headings makes no difference, so that both stores' stages come to the same.
    """
    made_of = msgspec.json.encode([encoder, batch.attributes.title, chunk.headings, chunk.text])
    return hashlib.blake2b(made_of, digest_size=16).hexdigest()


class VectorReuse:
    """Thread-safe. `encoder` is the recipe of the vectors that are wanted."""

    def __init__(self, store: VectorStore, encoder: str) -> None:
        self._store = store
        self._encoder = encoder
        self._paused_until = float("-inf")

    def vectors(self, batches: Sequence[ChunkBatch]) -> dict[int, npt.NDArray[np.float32]]:
        """What need not be embedded, by the chunk's place among all chunks of these batches.

        Nothing while the store is away. Raises Misconfigured when it holds vectors of another encoder.
        """
        ids: dict[str, list[str]] = defaultdict(list)
        for batch in batches:
            ids[batch.tenant] += likely_rows(batch)
        stored = {tenant: self._stored(tenant, wanted) for tenant, wanted in ids.items()}
        chunks = ((batch, chunk) for batch in batches for chunk in batch.chunks)
        return {
            place: vector
            for place, (batch, chunk) in enumerate(chunks)
            if batch.replaces is not None
            and (vector := stored[batch.tenant].get(content_hash(batch, chunk, self._encoder))) is not None
        }

    def _stored(self, tenant: str, ids: list[str]) -> dict[str, npt.NDArray[np.float32]]:
        """By the hash of their content."""
        if not ids or time.monotonic() < self._paused_until:
            return {}
        try:
            return self._store.vectors(tenant, ids)
        except TenantAway:
            return {}
        except Transient as exc:
            self._paused_until = time.monotonic() + PAUSE_S
            log.warning("reuse_paused", reason=str(exc), pause_s=PAUSE_S)
            return {}


def likely_rows(batch: ChunkBatch) -> list[str]:
    """Ids of the rows of what it replaces that may have the same chunks: at most six for each chunk.

    What stands before all changes keeps its ordinal, and what stands behind them its distance from the end. A batch's
    length to either side of both leaves room for what lies between changes.
    """
    if batch.replaces is None:
        return []
    count, total = len(batch.chunks), batch.replaces.chunks
    firsts = (batch.first - count, batch.first - count + total - batch.total)
    ordinals = {ordinal for first in firsts for ordinal in range(max(first, 0), min(first + 3 * count, total))}
    revision = revision_id(batch.key, batch.replaces.revision)
    return [chunk_id(revision, ordinal) for ordinal in sorted(ordinals)]
