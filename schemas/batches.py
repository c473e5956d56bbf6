"""What travels between the stages: chunks, their embeddings, and the receipts of the stores."""

import base64
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.document import MetadataValue, Timestamp
from schemas.key import Key
from schemas.revision import Revision

Store = Literal["milvus", "opensearch"]
STORES: tuple[Store, ...] = ("milvus", "opensearch")
CHUNKS_PER_BATCH = 64


class Attributes(msgspec.Struct, frozen=True, kw_only=True):
    """What a document says of itself beside its text; every chunk's row carries it."""

    created_at: Timestamp
    title: str | None = None
    source: str | None = None
    source_confidence: float | None = None
    tags: list[str] = []
    metadata: dict[str, MetadataValue] = {}


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """One passage. `start` and `end` are character offsets into the document's text as it was sent.

    `text` is exactly that slice for plain text and Markdown; for HTML it is what a reader sees of it.
    """

    ordinal: int
    text: str
    start: int
    end: int
    tokens: int
    headings: list[str] = []


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Up to 64 consecutive chunks of one revision: ordinals `first` to `first + len(chunks)`, of `total`.

    A deletion, and a document without any text, is one batch with `total` 0. `published` is the timestamp of the
    document's record (Unix ms), where freshness is to be measured from it.
    """

    tenant: str
    doc_id: str
    revision: Revision
    total: int
    first: int
    attributes: Attributes
    chunks: list[Chunk]
    deleted: bool = False
    published: int | None = None

    @property
    def key(self) -> Key:
        return Key(self.tenant, self.doc_id)


class Replaced(msgspec.Struct, frozen=True, kw_only=True):
    """The version that was live when another one was let in, and how many chunks it has."""

    revision: Revision
    chunks: int


class ChunkBatch(Batch, frozen=True, kw_only=True):
    """Up to 64 consecutive chunks of one revision: ordinals `first` to `first + len(chunks)`, of `total`.

    A deletion, and a document without any text, is one batch with `total` 0. `replaces` only hints at where vectors of
    the same chunks may be: it may be gone by now, and a replay may name another version or none.
    """

    replaces: Replaced | None = None


class EmbeddingBatch(Batch, frozen=True, kw_only=True):
    """A batch of chunks and its vectors: base64 of a C-ordered little-endian float32 matrix, `len(chunks)` x
    `dimension`.
    """

    encoder: str
    dimension: int
    vectors: str


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """`store` holds the rows `first` to `first + count` of this revision, which has `total`. `published` is as in the
    batch, `urgent` says that it came on the fast path.
    """

    tenant: str
    doc_id: str
    revision: Revision
    store: Store
    total: int
    first: int
    count: int
    deleted: bool = False
    published: int | None = None
    urgent: bool = False

    @property
    def key(self) -> Key:
        return Key(self.tenant, self.doc_id)


def pack_vectors(vectors: npt.NDArray[np.floating[Any]]) -> str:
    """Vectors (n x dimension) as they travel."""
    return base64.b64encode(np.ascontiguousarray(vectors, dtype="<f4").tobytes()).decode("ascii")


def unpack_vectors(packed: str, dimension: int) -> npt.NDArray[np.float32]:
    """The inverse of `pack_vectors`, float32 (n x dimension), read-only;
    raises ValueError when the size does not fit.
    """
    return np.frombuffer(base64.b64decode(packed, validate=True), dtype="<f4").reshape(-1, dimension)


def pack_chunks(chunks: Iterable[Chunk], *, room: int, each: int = 0) -> Iterator[list[Chunk]]:
    """Group consecutive chunks into lists of up to 64 whose JSON, and `each` bytes beside every chunk, take up to
    `room` bytes.

    A chunk that needs more than `room` stands alone.
    """
    group: list[Chunk] = []
    size = 0
    for chunk in chunks:
        needed = len(msgspec.json.encode(chunk)) + each + 1
        if group and (len(group) == CHUNKS_PER_BATCH or size + needed > room):
            yield group
            group, size = [], 0
        group.append(chunk)
        size += needed
    if group:
        yield group
