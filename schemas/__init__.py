"""What travels: the messages of docs/contract.md as frozen msgspec Structs, and their published form.

Readers ignore fields they do not know; a new field always has a default; a field's type never changes.
"""

from schemas.batches import Attributes, Chunk, ChunkBatch, EmbeddingBatch, Receipt, Store
from schemas.document import Chunking, Deletion, Document, MetadataValue, Strategy
from schemas.encoder import EncoderIdentity
from schemas.event import DocumentEvent, EventError, Status
from schemas.key import Key, parse_key
from schemas.manifest import Intake, Live, Manifest, Pending, Span, Sweep
from schemas.query import (
    Answer,
    AnswerError,
    AnswerText,
    Citation,
    Delta,
    ErrorCode,
    Fusion,
    Hit,
    HitScores,
    Query,
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
    "Fusion",
    "Hit",
    "HitScores",
    "Intake",
    "Key",
    "Live",
    "Manifest",
    "MetadataValue",
    "Pending",
    "Query",
    "Receipt",
    "Revision",
    "Settlement",
    "Span",
    "Status",
    "Store",
    "Strategy",
    "Sweep",
    "chunk_id",
    "decode",
    "encode",
    "parse_key",
    "revision_id",
]
