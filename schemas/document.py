"""The document that a producer sends."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from schemas.revision import INT64_MAX, INT64_MIN
from schemas.wire import decode

Strategy = Literal["fixed", "sentence", "hierarchical"]
ContentType = Literal["text/plain", "text/markdown", "text/html"]
MetadataValue = str | bool | int | float | list[str]
Timestamp = Annotated[datetime, msgspec.Meta(tz=True)]
Version = Annotated[int, msgspec.Meta(ge=INT64_MIN, le=INT64_MAX)]


class Chunking(msgspec.Struct, frozen=True, kw_only=True):
    """How a document is cut. Tokens are counted as the encoder reads them, its special tokens included."""

    strategy: Strategy = "fixed"
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] = 256
    overlap_tokens: Annotated[int, msgspec.Meta(ge=0)] = 64


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a document.

    `doc_id` and `tenant` come from the record's key; where they are given, they must agree with it. Without a `version`
    the record's timestamp, then its offset, order the versions; without `created_at` it is the record's timestamp.
    """

    text: str
    op: Literal["upsert"] = "upsert"
    doc_id: str | None = None
    tenant: str | None = None
    title: str | None = None
    content_type: ContentType = "text/plain"
    source: str | None = None
    source_confidence: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    created_at: Timestamp | None = None
    tags: list[str] = []
    metadata: dict[str, MetadataValue] = {}
    version: Version | None = None
    chunking: Chunking | None = None


class Deletion(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a document, as a version without content. A record without a value means the same."""

    op: Literal["delete"] = "delete"
    doc_id: str | None = None
    tenant: str | None = None
    version: Version | None = None


class _Operation(msgspec.Struct):
    op: Literal["upsert", "delete"] = "upsert"


def read_document(value: bytes | None) -> Document | Deletion:
    """Read the value of a record of `documents.raw` or `documents.urgent`; raises as `decode` does."""
    if value is None:
        return Deletion()
    if not value:
        raise msgspec.DecodeError("the value is empty; a record without a value (null) is a deletion")
    message_type: type[Document | Deletion] = Document if decode(value, _Operation).op == "upsert" else Deletion
    return decode(value, message_type)
