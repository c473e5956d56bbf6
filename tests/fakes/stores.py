"""The three stores in memory. `tests/connected/stores/test_store_contract.py` holds them to what the real ones do."""

import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError, Transient
from headrace.stores import Candidate, Filters, ManifestCount, StoreCount, Stored, StoredRow, TextRow, VectorRow
from headrace.stores.ports import LiveRead
from schemas import Key, Manifest


class _Faulty:
    """Set `failing` to an error, and every call raises it until it is None again: a server that is away."""

    failing: HeadraceError | None = None

    def check(self) -> None:
        if self.failing is not None:
            raise self.failing


class FakeVectorStore(_Faulty):
    """A VectorStore: exact cosine. Unless it is `searchable`, no search is to find what it stores."""

    searchable = True

    def __init__(self) -> None:
        self.collections: dict[str, dict[str, VectorRow]] = {}

    def upsert(self, tenant: str, rows: Sequence[VectorRow]) -> None:
        self.check()
        if rows:
            self.collections.setdefault(tenant, {}).update({row.id: row for row in rows})

    def delete(self, tenant: str, ids: Sequence[str]) -> None:
        self.check()
        for name in ids:
            self.collections.get(tenant, {}).pop(name, None)

    def search(self, tenant: str, vector: npt.NDArray[np.float32], *, limit: int, filters: Filters) -> list[Candidate]:
        self.check()
        rows = [row for row in self.collections.get(tenant, {}).values() if filters.matches(row.attributes, row.doc_id)]
        scored = [Candidate(id=row.id, doc_id=row.doc_id, score=_cosine(row.vector, vector)) for row in rows]
        return sorted(scored, key=lambda found: -found.score)[:limit]

    def vectors(self, tenant: str, ids: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        self.check()
        rows = self.collections.get(tenant, {})
        return {rows[name].content_hash: rows[name].vector for name in ids if name in rows}

    def count(self, tenant: str) -> StoreCount:
        self.check()
        rows = self.collections.get(tenant, {})
        return StoreCount(documents=len({row.doc_id for row in rows.values()}), chunks=len(rows))

    def rows(self, tenant: str, doc_ids: Collection[str] | None = None) -> Iterator[list[StoredRow]]:
        self.check()
        yield from _page(self.collections.get(tenant, {}).values(), doc_ids)

    def make_searchable(self, tenant: str, ids: Sequence[str]) -> None:
        self.check()
        if not self.searchable and (hidden := set(ids) & self.collections.get(tenant, {}).keys()):
            raise Transient("milvus", f"{len(hidden)} rows can't be found yet")

    def tenants(self) -> list[str]:
        self.check()
        return sorted(self.collections)


class FakeManifestStore(_Faulty):
    """A ManifestStore: compare-and-set under a lock, with one `seq_no` for all."""

    def __init__(self) -> None:
        self.stored: dict[Key, Stored] = {}
        self._next = 0
        self._lock = threading.Lock()

    def read(self, keys: Iterable[Key]) -> dict[Key, Stored]:
        self.check()
        return {key: self.stored.get(key) or Stored(manifest=Manifest(tenant=key[0], doc_id=key[1])) for key in keys}

    def write(self, replacements: Mapping[Key, Stored]) -> set[Key]:
        self.check()
        conflicts: set[Key] = set()
        with self._lock:
            for key, replacement in replacements.items():
                current = self.stored.get(key)
                if replacement.seq_no != (current.seq_no if current else None):
                    conflicts.add(key)
                    continue
                self.stored[key] = Stored(manifest=replacement.manifest, seq_no=self._next, primary_term=1)
                self._next += 1
        return conflicts

    def scan(self, tenant: str) -> Iterator[list[Manifest]]:
        self.check()
        if found := [stored.manifest for key, stored in self.stored.items() if key.tenant == tenant]:
            yield found

    def count(self, tenant: str) -> ManifestCount:
        self.check()
        lives = [stored.manifest.live for key, stored in self.stored.items() if key.tenant == tenant]
        live = [one for one in lives if one is not None and not one.deleted]
        deleted = sum(one is not None and one.deleted for one in lives)
        return ManifestCount(documents=len(live), chunks=sum(one.chunks for one in live), deleted=deleted)

    def tenants(self) -> list[str]:
        self.check()
        return sorted({key.tenant for key in self.stored})


class FakeTextStore(_Faulty):
    """A TextStore: scores are the number of words in common."""

    def __init__(self, manifests: FakeManifestStore | None = None) -> None:
        self.indexes: dict[str, dict[str, TextRow]] = {}
        self.manifests = manifests or FakeManifestStore()

    def upsert(self, tenant: str, rows: Sequence[TextRow]) -> None:
        self.check()
        if rows:
            self.indexes.setdefault(tenant, {}).update({row.id: row for row in rows})

    def delete(self, tenant: str, ids: Sequence[str]) -> None:
        self.check()
        for name in ids:
            self.indexes.get(tenant, {}).pop(name, None)

    def search(self, tenant: str, text: str, *, limit: int, filters: Filters) -> list[Candidate]:
        self.check()
        asked = _words(text)
        rows = [row for row in self.indexes.get(tenant, {}).values() if filters.matches(row.attributes, row.doc_id)]
        scored = [
            Candidate(id=row.id, doc_id=row.doc_id, score=float(shared))
            for row in rows
            if (shared := len(asked & _words(f"{row.attributes.title or ''} {row.text}")))
        ]
        return sorted(scored, key=lambda found: -found.score)[:limit]

    def read(
        self, tenant: str, chunk_ids: Sequence[str], doc_ids: Sequence[str]
    ) -> tuple[dict[str, TextRow], dict[str, Manifest]]:
        self.check()
        read = self.read_live(tenant, chunk_ids, doc_ids, ())
        return read.rows, read.manifests

    def read_live(
        self, tenant: str, chunk_ids: Sequence[str], doc_ids: Sequence[str], others: Sequence[str]
    ) -> LiveRead:
        self.check()
        rows = self.indexes.get(tenant, {})
        stored = {doc_id: self.manifests.stored.get(Key(tenant, doc_id)) for doc_id in (*doc_ids, *others)}
        manifests = {doc_id: one.manifest for doc_id, one in stored.items() if one is not None}
        return LiveRead(
            rows={chunk: rows[chunk] for chunk in chunk_ids if chunk in rows},
            manifests={doc_id: manifest for doc_id, manifest in manifests.items() if doc_id in doc_ids},
            revisions={name: one.live_revision for name, one in manifests.items() if one.live_revision is not None},
        )

    def highlight(self, tenant: str, text: str, chunk_ids: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
        self.check()
        asked, rows = _words(text), self.indexes.get(tenant, {})
        return {
            chunk: spans
            for chunk in chunk_ids
            if chunk in rows
            and (spans := [word.span() for word in re.finditer(r"\w+", rows[chunk].text) if word[0].lower() in asked])
        }

    def count(self, tenant: str) -> StoreCount:
        self.check()
        rows = self.indexes.get(tenant, {})
        return StoreCount(documents=len({row.doc_id for row in rows.values()}), chunks=len(rows))

    def rows(self, tenant: str, doc_ids: Collection[str] | None = None) -> Iterator[list[StoredRow]]:
        self.check()
        yield from _page(self.indexes.get(tenant, {}).values(), doc_ids)

    def make_searchable(self, tenant: str) -> None:
        self.check()

    def tenants(self) -> list[str]:
        self.check()
        return sorted(self.indexes)


def _page(rows: Iterable[VectorRow] | Iterable[TextRow], doc_ids: Collection[str] | None) -> Iterator[list[StoredRow]]:
    found = [
        StoredRow(id=row.id, doc_id=row.doc_id, version=row.version, ordinal=row.ordinal, content_hash=row.content_hash)
        for row in rows
        if doc_ids is None or row.doc_id in doc_ids
    ]
    if found:
        yield found


def _cosine(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
