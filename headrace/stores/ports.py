"""What the stages and the retrieval need of a store. Everything here blocks (call it from a thread) and is thread-safe.

Every method raises Transient while its server is away or overloaded, and Misconfigured when what is there can't be
used.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from headrace.errors import Transient
from headrace.stores.filters import Filters
from schemas import Attributes, Key, Manifest


class TenantAway(Transient):
    """One tenant's rows can't be served now, while the server itself answers."""


class VectorRow(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk in the vector store. `vector` is float32, one-dimensional."""

    id: str
    doc_id: str
    version: int
    ordinal: int
    content_hash: str
    attributes: Attributes
    vector: npt.NDArray[np.float32]


class TextRow(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk in the text store."""

    id: str
    doc_id: str
    version: int
    ordinal: int
    content_hash: str
    attributes: Attributes
    text: str
    start: int
    end: int
    headings: list[str] = []


class Candidate(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a search found: a chunk's id, its document, the searcher's score (higher is better)."""

    id: str
    doc_id: str
    score: float


class LiveRead(NamedTuple):
    """Rows by chunk id, manifests by doc_id, and the live revision's id of each document that has one."""

    rows: dict[str, TextRow]
    manifests: dict[str, Manifest]
    revisions: dict[str, str]


class StoredRow(msgspec.Struct, frozen=True, kw_only=True):
    """What a store says of a chunk that it holds, without its vector and its text."""

    id: str
    doc_id: str
    version: int
    ordinal: int
    content_hash: str


class StoreCount(msgspec.Struct, frozen=True, kw_only=True):
    documents: int
    chunks: int


class VectorStore(Protocol):
    """Milvus: a collection a tenant, made when its first row comes."""

    def check(self) -> None:
        """Raise Transient or Misconfigured if the server, or a collection of another encoder, can't be used."""

    def upsert(self, tenant: str, rows: Sequence[VectorRow]) -> None:
        """Return when the server has confirmed every row. A row of the same id is overwritten."""

    def delete(self, tenant: str, ids: Sequence[str]) -> None:
        """Delete by id, whatever of it is there. A tenant without a collection has nothing to delete."""

    def search(self, tenant: str, vector: npt.NDArray[np.float32], *, limit: int, filters: Filters) -> list[Candidate]:
        """The nearest rows by cosine, best first. [] for a tenant without a collection."""

    def vectors(self, tenant: str, ids: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """The vectors of these rows, bit by bit as they were stored, by their `content_hash`.

        Rows that are not there, or were stored a moment ago, are left out; one that was deleted a moment ago may be
        there. {} for a tenant without a collection. Takes no longer than a search may, for each 2,000 rows.
        """

    def count(self, tenant: str) -> StoreCount:
        """Exact, with strong consistency; meant for people and tests, not for the hot path."""

    def rows(self, tenant: str, doc_ids: Collection[str] | None = None) -> Iterator[list[StoredRow]]:
        """Every row, or those of a few hundred documents, once and page by page, in the memory of one page.

        Nothing that was stored before this call is left out. Nothing comes for a tenant without a collection.
        """

    def make_searchable(self, tenant: str, ids: Sequence[str]) -> None:
        """Return when every search from now on can find these rows, but for those that are gone from the store.

        Raises Transient when that takes too long.
        """

    def tenants(self) -> list[str]: ...


class TextStore(Protocol):
    """OpenSearch: an index a tenant, made when its first row comes."""

    def check(self) -> None:
        """Raise Transient or Misconfigured if the server can't be used."""

    def upsert(self, tenant: str, rows: Sequence[TextRow]) -> None:
        """Return when the server has confirmed every row. A row of the same id is overwritten."""

    def delete(self, tenant: str, ids: Sequence[str]) -> None:
        """Delete by id, whatever of it is there, also what no refresh has made visible yet."""

    def search(self, tenant: str, text: str, *, limit: int, filters: Filters) -> list[Candidate]:
        """BM25 over text and title, best first. [] for a tenant without an index."""

    def read(
        self, tenant: str, chunk_ids: Sequence[str], doc_ids: Sequence[str]
    ) -> tuple[dict[str, TextRow], dict[str, Manifest]]:
        """Rows by chunk id and manifests by doc_id, in one realtime multi-get; what isn't there is left out."""

    def read_live(
        self, tenant: str, chunk_ids: Sequence[str], doc_ids: Sequence[str], others: Sequence[str]
    ) -> LiveRead:
        """As `read`, and of `others` the live revision alone, as it is now.

        A manifest of `others` that was read lately and has not been written since is not sent again.
        """

    def highlight(self, tenant: str, text: str, chunk_ids: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
        """Where words of `text`, in any form that a search takes for the same, stand in the rows' texts.

        Character offsets (first, behind the last), in order and apart. Rows without any, and rows that no search can
        find yet, are left out.
        """

    def count(self, tenant: str) -> StoreCount:
        """Exact, after a refresh; meant for people and tests, not for the hot path."""

    def rows(self, tenant: str, doc_ids: Collection[str] | None = None) -> Iterator[list[StoredRow]]:
        """Every row, or those of a few hundred documents, once and page by page, in the memory of one page.

        Nothing that was stored before this call is left out. Nothing comes for a tenant without an index.
        """

    def make_searchable(self, tenant: str) -> None:
        """Return when every search from now on can find every row that was stored before this call."""

    def tenants(self) -> list[str]: ...


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest as it was read, and what a compare-and-set needs to replace just that one."""

    manifest: Manifest
    seq_no: int | None = None
    primary_term: int | None = None
    beyond: bytes | None = None
    """As it is stored, where that is more than `manifest`: a newer release wrote fields, which a replacement keeps."""


class ManifestCount(msgspec.Struct, frozen=True, kw_only=True):
    """Documents that are live, the chunks that their manifests name, and tombstones."""

    documents: int
    chunks: int
    deleted: int


class ManifestStore(Protocol):
    """OpenSearch: an index of manifests a tenant."""

    def read(self, keys: Iterable[Key]) -> dict[Key, Stored]:
        """Realtime multi-get over all tenants at once.
        A document without a manifest gets an empty one, with no `seq_no`.
        """

    def write(self, replacements: Mapping[Key, Stored]) -> set[Key]:
        """Replace each manifest if it is still the one with this `seq_no` and `primary_term` (or still absent).

        Returns the keys that somebody else wrote first: read those again. Everything else is confirmed.
        """

    def scan(self, tenant: str) -> Iterator[list[Manifest]]:
        """Every manifest, once and page by page, in the memory of one page. None is left out that was written before
        this call.
        """

    def count(self, tenant: str) -> ManifestCount:
        """Exact, after a refresh; meant for people and tests."""

    def tenants(self) -> list[str]: ...
