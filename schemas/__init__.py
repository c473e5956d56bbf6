"""What travels: the messages of docs/contract.md as frozen msgspec Structs, and their published form.

Readers ignore fields they do not know; a new field always has a default; a field's type never changes.
"""

from schemas.batches import Attributes, Batch, Chunk, ChunkBatch, EmbeddingBatch, Receipt, Replaced, Store
from schemas.document import Chunking, Deletion, Document, MetadataValue, Strategy
from schemas.encoder import EncoderIdentity
from schemas.event import DocumentEvent, EventError, Status
from schemas.generations import GenerationInfo, Generations
from schemas.key import Key, parse_key
from schemas.manifest import Intake, Live, Manifest, Pending, Span, Sweep
from schemas.query import (
    Answer,
    AnswerError,
    AnswerText,
    Citation,
    Delta,
    ErrorCode,
    Explanation,
    Fusion,
    Highlight,
    Hit,
    HitScores,
    Passage,
    Query,
    Usage,
)
from schemas.revision import Revision, chunk_id, revision_id
from schemas.settlement import Action, Settlement
from schemas.wire import decode, encode

__all__ = [
    "Action",
    "Answer",
    "AnswerError",
    "AnswerText",
    "Attributes",
    "Batch",
    "Chunk",
    "ChunkBatch",
    "Chunking",
    "Citation",
    "Deletion",
    "Delta",
    "Document",
    "DocumentEvent",
    "EmbeddingBatch",
    "EncoderIdentity",
    "ErrorCode",
    "EventError",
    "Explanation",
    "Fusion",
    "GenerationInfo",
    "Generations",
    "Highlight",
    "Hit",
    "HitScores",
    "Intake",
    "Key",
    "Live",
    "Manifest",
    "MetadataValue",
    "Passage",
    "Pending",
    "Query",
    "Receipt",
    "Replaced",
    "Revision",
    "Settlement",
    "Span",
    "Status",
    "Store",
    "Strategy",
    "Sweep",
    "Usage",
    "chunk_id",
    "decode",
    "encode",
    "parse_key",
    "revision_id",
]
