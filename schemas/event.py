"""What became of a version of a document, for producers and operators."""

from typing import Literal

import msgspec

from schemas.document import Timestamp

Status = Literal["indexed", "deleted", "unchanged", "superseded", "failed"]


class EventError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a version failed; the record is in `documents.dead` under the same code."""

    code: str
    message: str


class DocumentEvent(msgspec.Struct, frozen=True, kw_only=True):
    """`indexed` means: both stores hold this version whole, and from now on it is the version that queries see.

    Of a record whose key or value can't be read, what can't be known is null.
    """

    status: Status
    stage: str
    at: Timestamp
    doc_id: str | None = None
    tenant: str | None = None
    version: int | None = None
    chunks: int | None = None
    error: EventError | None = None
