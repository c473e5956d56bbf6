"""One full instance of each message, with every field away from its default."""

from datetime import UTC, datetime

import msgspec
import numpy as np

from schemas import (
    Answer,
    AnswerError,
    AnswerText,
    Attributes,
    Chunk,
    ChunkBatch,
    Chunking,
    Citation,
    Delta,
    Document,
    DocumentEvent,
    EmbeddingBatch,
    EventError,
    Fusion,
    GenerationInfo,
    Generations,
    Hit,
    HitScores,
    Intake,
    Key,
    Live,
    Manifest,
    MetadataValue,
    Pending,
    Query,
    Receipt,
    Revision,
    Settlement,
    Sweep,
    chunk_id,
    revision_id,
)
from schemas.batches import pack_vectors
from schemas.document import Deletion

KEY = Key("acme", "manuals/pump 7/ü.md")
TEXT = "Open the sluice. Close it at night."
AT = datetime(2026, 2, 3, 4, 5, 6, 789000, tzinfo=UTC)
REVISION = Revision(version=7, timestamp=1_770_091_506_789, offset=41, fingerprint="8f14e45fceea167a5a36dedd4bea2543")
EARLIER = Revision(version=6, timestamp=1_770_000_000_000, offset=12, fingerprint="1679091c5a880faf6fb5e6087eb1b2dc")
CHUNK_ID = chunk_id(revision_id(KEY, REVISION), 0)
METADATA: dict[str, MetadataValue] = {
    "pages": 12,
    "weight": 0.5,
    "draft": False,
    "language": "en",
    "authors": ["Ada", "Lin"],
}
CHUNKS = [
    Chunk(ordinal=64, text=TEXT[:16], start=0, end=16, tokens=6, headings=["Pump 7", "Daily work"]),
    Chunk(ordinal=65, text=TEXT[17:], start=17, end=35, tokens=7, headings=["Pump 7", "Daily work"]),
]
ATTRIBUTES = Attributes(
    created_at=AT,
    title="Pump 7",
    source="https://example.org/pump-7",
    source_confidence=0.75,
    tags=["manual", "pump"],
    metadata=METADATA,
)

EXAMPLES: dict[str, msgspec.Struct] = {
    "document": Document(
        text=TEXT,
        doc_id=KEY.doc_id,
        tenant=KEY.tenant,
        title="Pump 7",
        content_type="text/markdown",
        source="https://example.org/pump-7",
        source_confidence=0.75,
        created_at=AT,
        tags=["manual", "pump"],
        metadata=METADATA,
        version=7,
        chunking=Chunking(strategy="hierarchical", max_tokens=128, overlap_tokens=16),
    ),
    "deletion": Deletion(doc_id=KEY.doc_id, tenant=KEY.tenant, version=8),
    "chunk_batch": ChunkBatch(
        tenant=KEY.tenant,
        doc_id=KEY.doc_id,
        revision=REVISION,
        total=66,
        first=64,
        attributes=ATTRIBUTES,
        chunks=CHUNKS,
        deleted=False,
    ),
    "embedding_batch": EmbeddingBatch(
        tenant=KEY.tenant,
        doc_id=KEY.doc_id,
        revision=REVISION,
        total=66,
        first=64,
        attributes=ATTRIBUTES,
        chunks=CHUNKS,
        encoder="sentence-transformers/all-MiniLM-L6-v2",
        dimension=4,
        vectors=pack_vectors(np.arange(8, dtype=np.float32).reshape(2, 4) / 8),
    ),
    "receipt": Receipt(
        tenant=KEY.tenant,
        doc_id=KEY.doc_id,
        revision=REVISION,
        store="opensearch",
        total=66,
        first=64,
        count=2,
    ),
    "document_event": DocumentEvent(
        status="failed",
        stage="chunk",
        at=AT,
        doc_id=KEY.doc_id,
        tenant=KEY.tenant,
        version=7,
        chunks=66,
        error=EventError(code="bad_document", message="Object missing required field `text`"),
    ),
    "query": Query(
        query="When is the sluice closed?",
        tenant=KEY.tenant,
        mode="answer",
        top_k=5,
        filters={
            "tags": {"any": ["manual"]},
            "doc_id": [KEY.doc_id],
            "source": "https://example.org/pump-7",
            "created_at": {"gte": "2026-01-01T00:00:00Z", "lt": "2027-01-01T00:00:00Z"},
            "metadata.pages": {"gt": 3, "lte": 100},
            "metadata.language": ["en", "de"],
            "metadata.draft": False,
        },
        fusion=Fusion(method="rrf", alpha=0.25),
        rerank=True,
        stream=True,
        request_id="r-1",
    ),
    "answer": Answer(
        request_id="r-1",
        hits=[
            Hit(
                rank=1,
                score=0.875,
                doc_id=KEY.doc_id,
                chunk_id=CHUNK_ID,
                ordinal=0,
                version=7,
                text=TEXT[17:],
                start=17,
                end=35,
                title="Pump 7",
                source="https://example.org/pump-7",
                source_confidence=0.75,
                tags=["manual", "pump"],
                metadata=METADATA,
                scores=HitScores(dense=0.5, bm25=7.25, rerank=0.125),
            )
        ],
        answer=AnswerText(
            text="At night [1].",
            citations=[Citation(marker="[1]", chunk_id=CHUNK_ID, doc_id=KEY.doc_id, start=17, end=35)],
            model="extractive",
        ),
        degraded=["rerank"],
        timings_ms={"embed": 12.5, "search": 8.0},
        error=AnswerError(code="rate_limited", message="too many questions", retry_after_ms=250),
    ),
    "settlement": Settlement(
        action="parked", at=AT, run="7f3a9c21d0e4", reason="it has been replayed 1 time and died again"
    ),
    "generations": Generations(
        live="2",
        telling=None,
        held=[""],
        known={
            "": GenerationInfo(encoder={"backend": "torch", "model": "small"}, since=AT),
            "2": GenerationInfo(encoder={"backend": "static"}, since=AT, state="live"),
        },
        highest=2,
        previous="",
        target="2",
        lease_s=5.0,
        phase="telling",
        marks={"documents.events.g2": {"0": 41}},
    ),
    "delta": Delta(delta="At night"),
    "manifest": Manifest(
        tenant=KEY.tenant,
        doc_id=KEY.doc_id,
        intake=Intake(revision=REVISION, content=EARLIER, chunks=66, at=AT),
        live=Live(
            revision=EARLIER,
            chunks=3,
            at=AT,
            swept=[Sweep(revision=EARLIER, milvus=[(0, 3)], opensearch=[(0, 2), (2, 3)])],
        ),
        pending=[Pending(revision=REVISION, total=66, milvus=[(0, 64)], opensearch=[(0, 64), (64, 66)])],
    ),
}
