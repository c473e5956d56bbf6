"""Manifests: one OpenSearch index a tenant, the document's id as the id, replaced only by compare-and-set."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from headrace.stores.newer_fields import beyond, rewritten
from headrace.stores.opensearch_connection import OpenSearchConnection
from headrace.stores.opensearch_indexes import Action, TenantIndexes, Wanted, get_many
from headrace.stores.ports import ManifestCount, Stored
from headrace.stores.settings import StoreSettings
from schemas import Key, Manifest
from schemas.wire import decode, encode

_KEYS_PER_READ = 1000
_SCAN_PAGE = 2_000


class _Sum(msgspec.Struct, frozen=True):
    value: float = 0.0


class _Aggregations(msgspec.Struct, frozen=True):
    chunks: _Sum = _Sum()


class _Aggregated(msgspec.Struct, frozen=True):
    aggregations: _Aggregations = _Aggregations()


class OpenSearchManifestStore:
    """A ManifestStore."""

    def __init__(self, settings: StoreSettings) -> None:
        self._connection = OpenSearchConnection(settings.opensearch)
        self._indexes = manifest_indexes(self._connection, settings)

    def read(self, keys: Iterable[Key]) -> dict[Key, Stored]:
        wanted = list(dict.fromkeys(keys))
        stored: dict[Key, Stored] = {}
        for first in range(0, len(wanted), _KEYS_PER_READ):
            page = wanted[first : first + _KEYS_PER_READ]
            got = get_many(self._connection, [Wanted(self._indexes.name(key.tenant), key.doc_id) for key in page])
            for key, one in zip(page, got, strict=True):
                if one.found:
                    source = bytes(one.source)
                    manifest = decode(source, Manifest)
                    stored[key] = Stored(
                        manifest=manifest,
                        seq_no=one.seq_no,
                        primary_term=one.primary_term,
                        beyond=beyond(source, manifest),
                    )
                else:
                    stored[key] = Stored(manifest=Manifest(tenant=key.tenant, doc_id=key.doc_id))
        return stored

    def write(self, replacements: Mapping[Key, Stored]) -> set[Key]:
        conflicts = self._indexes.write(_replacement(key, stored) for key, stored in replacements.items())
        return {Key(action.tenant, action.id) for action in conflicts}

    def scan(self, tenant: str) -> Iterator[list[Manifest]]:
        for page in self._indexes.scan(tenant, {"query": {"match_all": {}}}, page=_SCAN_PAGE):
            yield [decode(bytes(hit.source), Manifest) for hit in page]

    def count(self, tenant: str) -> ManifestCount:
        self._indexes.refresh(tenant)
        live = {"term": {"live.deleted": False}}
        body = {"size": 0, "query": live, "aggs": {"chunks": {"sum": {"field": "live.chunks"}}}}
        named = self._indexes.search(tenant, body, _Aggregated)
        return ManifestCount(
            documents=self._indexes.count(tenant, live),
            chunks=round(named.aggregations.chunks.value),
            deleted=self._indexes.count(tenant, {"term": {"live.deleted": True}}),
        )

    def tenants(self) -> list[str]:
        return self._indexes.tenants()

    def drop(self, tenant: str) -> None:
        """Delete all manifests of a tenant."""
        self._indexes.drop(tenant)

    def close(self) -> None:
        """Close the connections; a later call opens them again."""
        self._connection.close()


def manifest_indexes(connection: OpenSearchConnection, settings: StoreSettings) -> TenantIndexes:
    """Where manifests are. The whole Manifest is the source; what `count` asks for is all that is indexed."""
    definition: dict[str, Any] = {
        "settings": {
            "number_of_shards": 1,
            "number_of_replicas": settings.opensearch.replicas,
            "refresh_interval": settings.opensearch.refresh_interval,
        },
        "mappings": {
            "dynamic": False,
            "properties": {"live": {"properties": {"chunks": {"type": "long"}, "deleted": {"type": "boolean"}}}},
        },
    }
    return TenantIndexes(connection, settings.index_prefix, "manifest", lambda _: definition)


def _replacement(key: Key, stored: Stored) -> Action:
    return Action(
        operation="create" if stored.seq_no is None else "index",
        tenant=key.tenant,
        id=key.doc_id,
        source=encode(stored.manifest) if stored.beyond is None else rewritten(stored.beyond, stored.manifest),
        seq_no=stored.seq_no,
        primary_term=stored.primary_term,
    )
