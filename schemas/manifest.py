"""What is live: one small record a document in OpenSearch, kept for ever, also after a delete (as a tombstone).

Only `chunk` writes `intake`; only `commit` writes `live` and `pending`. Both by compare-and-set.
"""

from datetime import datetime

import msgspec

from schemas.key import Key
from schemas.revision import Revision, revision_id

Span = tuple[int, int]
"""Ordinals from the first up to, not including, the second."""


class Intake(msgspec.Struct, frozen=True, kw_only=True):
    """The newest version that was let in, noted before its chunks are sent on."""

    revision: Revision
    content: Revision
    """The revision whose rows hold this content: an earlier one, when the document came again unchanged."""
    chunks: int
    at: datetime
    deleted: bool = False


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """A version on its way: which rows each store has so far."""

    revision: Revision
    total: int
    milvus: list[Span] = []
    opensearch: list[Span] = []
    deleted: bool = False


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one version that must go from both stores. `chunks` is how many that version has."""

    revision: Revision
    milvus: list[Span]
    opensearch: list[Span]
    chunks: int = 0
    told: bool = False
    """Whether its producer was told of it before: it was live, and its event was confirmed."""


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """The version that queries see. `swept` is what it replaced:
    swept again if the worker died before it was confirmed.
    """

    revision: Revision
    chunks: int
    at: datetime
    deleted: bool = False
    swept: list[Sweep] = []


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    tenant: str
    doc_id: str
    intake: Intake | None = None
    live: Live | None = None
    pending: list[Pending] = []

    @property
    def key(self) -> Key:
        return Key(self.tenant, self.doc_id)

    @property
    def live_revision(self) -> str | None:
        """The id of the revision that queries see; None while there is none, or it is a deletion."""
        if self.live is None or self.live.deleted:
            return None
        return revision_id(self.key, self.live.revision)
