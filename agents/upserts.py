"""What the two upsert stages share: reading an EmbeddingBatch, and the receipt that follows its rows."""

from collections import defaultdict
from collections.abc import Sequence

from agents.stage import Item, Outgoing, reads
from schemas import EmbeddingBatch, Receipt, Store, encode

IN_FLIGHT = 2
"""While a store writes one batch, the next is built."""

decode_embeddings = reads(EmbeddingBatch)


def by_tenant(batch: Sequence[Item[EmbeddingBatch]]) -> dict[str, list[EmbeddingBatch]]:
    grouped: dict[str, list[EmbeddingBatch]] = defaultdict(list)
    for item in batch:
        grouped[item.message.tenant].append(item.message)
    return grouped


def receipt(item: Item[EmbeddingBatch], store: Store) -> Outgoing:
    """Says that `store` holds these rows; goes out only after the store has confirmed them."""
    batch = item.message
    stored = Receipt(
        tenant=batch.tenant,
        doc_id=batch.doc_id,
        revision=batch.revision,
        store=store,
        total=batch.total,
        first=batch.first,
        count=len(batch.chunks),
        deleted=batch.deleted,
        published=None if item.record.sent_again else batch.published,
        urgent=item.record.lane == "urgent",
    )
    return Outgoing(
        topic="documents.stored",
        key=batch.key.encode(),
        value=encode(stored),
        chunks=len(batch.chunks),
        cause=item.record,
    )
