"""Indexes of which every tenant has one, made when its first row comes, and the bulk writes into them.

Rows are written through an alias, `<index>.write`, which is made with the index and which a bulk request insists on
(`require_alias`). So OpenSearch, which makes an index of its own guess for whatever is written, never makes one of
ours: not when two workers are first at once, and not when somebody dropped the index under us.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, TypeVar

import msgspec
import opensearchpy

from headrace.errors import Misconfigured, Transient
from headrace.stores.limits import in_requests
from headrace.stores.opensearch_connection import ErrorCause, OpenSearchConnection, refused
from schemas.key import check_tenant
from schemas.wire import encode

T = TypeVar("T")

CONFLICT = 409
_NO_INDEX = "index_not_found_exception"
_NDJSON = "application/x-ndjson"
_PIT_KEPT = "5m"
"""How long a scan may take between two pages."""


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """One item of a bulk request. `index` overwrites, `create` wants that nothing is there;
    `source` is a JSON object.
    """

    operation: Literal["index", "create", "delete"]
    tenant: str
    id: str
    source: bytes | None = None
    seq_no: int | None = None
    primary_term: int | None = None


class Got(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One item of a multi-get request."""

    id: str = msgspec.field(name="_id")
    found: bool = False
    seq_no: int | None = msgspec.field(name="_seq_no", default=None)
    primary_term: int | None = msgspec.field(name="_primary_term", default=None)
    source: msgspec.Raw = msgspec.field(name="_source", default=msgspec.Raw())
    error: ErrorCause | None = None

    @property
    def state(self) -> tuple[int | None, int | None]:
        """What every write changes."""
        return self.seq_no, self.primary_term


class Wanted(msgspec.Struct, frozen=True, gc=False):
    """One item to get; without its `source`, only whether it is there and in which state."""

    index: str
    id: str
    source: bool = True


class _GotMany(msgspec.Struct, frozen=True):
    docs: list[Got]


class _Outcome(msgspec.Struct, frozen=True):
    status: int
    error: ErrorCause | None = None


class _BulkReply(msgspec.Struct, frozen=True):
    errors: bool
    items: list[dict[str, _Outcome]]


class _IndexRow(msgspec.Struct, frozen=True):
    index: str


class _Counted(msgspec.Struct, frozen=True):
    count: int


class _Properties(msgspec.Struct, frozen=True):
    properties: dict[str, dict[str, Any]]


class _Mapped(msgspec.Struct, frozen=True):
    mappings: _Properties


class _PointInTime(msgspec.Struct, frozen=True):
    pit_id: str


class Scanned(msgspec.Struct, frozen=True, kw_only=True):
    """One hit of a scan. `fields` are the values that were asked for, each a list."""

    id: str = msgspec.field(name="_id")
    source: msgspec.Raw = msgspec.field(name="_source", default=msgspec.Raw())
    fields: dict[str, list[Any]] = {}
    sort: list[Any] = []


class _ScannedHits(msgspec.Struct, frozen=True):
    hits: list[Scanned]


class _Page(msgspec.Struct, frozen=True):
    hits: _ScannedHits


def get_many(
    connection: OpenSearchConnection, wanted: Sequence[Wanted], *, timeout_s: float | None = None
) -> list[Got]:
    """One realtime multi-get, answered in its order. Of an index that does not exist, nothing is found."""
    if not wanted:
        return []
    # Whole or not at all: to leave a part of a source out, OpenSearch parses it.
    body = encode({"docs": [{"_index": one.index, "_id": one.id, "_source": one.source} for one in wanted]})
    docs = connection.request("POST", "/_mget", _GotMany, body=body, timeout_s=timeout_s).docs
    for got, one in zip(docs, wanted, strict=True):
        if got.error is not None and got.error.type != _NO_INDEX:
            raise refused(500, got.error, f"{one.index}/{one.id}")
    return docs


class TenantIndexes:
    """`{prefix}{tenant}_{kind}` for every tenant. The kinds are few and end a name, so no two tenants share one."""

    def __init__(
        self,
        connection: OpenSearchConnection,
        prefix: str,
        kind: Literal["docs", "manifest"],
        definition: Callable[[str], dict[str, Any]],
    ) -> None:
        """`definition` gives the settings and mappings of a tenant's index when it is made."""
        self._connection = connection
        self._prefix = prefix
        self._suffix = f"_{kind}"
        self._definition = definition

    def name(self, tenant: str) -> str:
        return f"{self._prefix}{tenant}{self._suffix}"

    def write(self, actions: Iterable[Action]) -> list[Action]:
        """Write in bulk, return when everything is confirmed. Returns those that lost a compare-and-set; raises for
        what was refused.

        An index that is missing is made; a deletion in one has nothing to do.
        """
        conflicts: list[Action] = []
        for request in in_requests(((action, self._line(action)) for action in actions), lambda pair: len(pair[1])):
            conflicts += self._write(request)
        return conflicts

    def search(self, tenant: str, body: Any, reply: type[T], *, timeout_s: float | None = None) -> T:
        """Search one tenant's index; without one, the reply has no hits."""
        # A shard that fails must fail the search: half of the hits would look like all of them.
        params = {"ignore_unavailable": "true", "allow_partial_search_results": "false"}
        return self._connection.request(
            "POST", f"/{self.name(tenant)}/_search", reply, body=encode(body), params=params, timeout_s=timeout_s
        )

    def scan(self, tenant: str, body: Mapping[str, Any], *, page: int) -> Iterator[list[Scanned]]:
        """All hits of a search, in pages of so many, as they are when this begins; nothing without an index."""
        self.refresh(tenant)
        try:
            opened = self._connection.request(
                "POST",
                f"/{self.name(tenant)}/_search/point_in_time",
                _PointInTime,
                params={"keep_alive": _PIT_KEPT, "allow_partial_pit_creation": "false"},
            )
        except opensearchpy.NotFoundError:
            return
        try:
            yield from self._pages(opened.pit_id, body, page)
        finally:
            with suppress(Transient):
                self._connection.request(
                    "DELETE", "/_search/point_in_time", msgspec.Raw, body=encode({"pit_id": [opened.pit_id]})
                )

    def _pages(self, pit: str, body: Mapping[str, Any], page: int) -> Iterator[list[Scanned]]:
        # An index has one shard, so a place in it orders all hits, and costs nothing to sort by.
        asked = {
            **body,
            "size": page,
            "sort": ["_doc"],
            "track_total_hits": False,
            "pit": {"id": pit, "keep_alive": _PIT_KEPT},
        }
        while True:
            hits = self._connection.request("POST", "/_search", _Page, body=encode(asked)).hits.hits
            if not hits:
                return
            yield hits
            asked["search_after"] = hits[-1].sort

    def refresh(self, tenant: str) -> None:
        self._connection.request(
            "POST", f"/{self.name(tenant)}/_refresh", msgspec.Raw, params={"ignore_unavailable": "true"}
        )

    def count(self, tenant: str, query: Any) -> int:
        params = {"ignore_unavailable": "true"}
        path = f"/{self.name(tenant)}/_count"
        return self._connection.request("POST", path, _Counted, body=encode({"query": query}), params=params).count

    def mappings(self, field: str) -> dict[str, dict[str, Any]]:
        """How a field is mapped in each tenant's index; nothing for an index without it."""
        # Not `_mapping/field`, which is "not found" while there is no index.
        params = {"filter_path": f"*.mappings.properties.{field}"}
        path = f"/{self._prefix}*{self._suffix}/_mapping"
        found = self._connection.request("GET", path, dict[str, _Mapped], params=params)
        mapped = {name: one.mappings.properties[field] for name, one in found.items()}
        tenants = {name: name.removeprefix(self._prefix).removesuffix(self._suffix) for name in mapped}
        return {tenant: mapped[name] for name, tenant in sorted(tenants.items()) if _is_tenant(tenant)}

    def tenants(self) -> list[str]:
        """Tenants that have an index, sorted."""
        params = {"format": "json", "h": "index", "expand_wildcards": "open"}
        pattern = f"{self._prefix}*{self._suffix}"
        rows = self._connection.request("GET", f"/_cat/indices/{pattern}", list[_IndexRow], params=params)
        names = (row.index.removeprefix(self._prefix).removesuffix(self._suffix) for row in rows)
        return sorted(filter(_is_tenant, names))

    def drop(self, tenant: str) -> None:
        """Delete a tenant's index; whoever writes into it makes it anew."""
        path = f"/{self.name(tenant)}"
        self._connection.request("DELETE", path, msgspec.Raw, params={"ignore_unavailable": "true"})

    def _write(self, request: Sequence[tuple[Action, bytes]]) -> list[Action]:
        outcomes = self._bulk(request)
        homeless = [place for place, outcome in enumerate(outcomes) if _lacks_index(request[place][0], outcome)]
        if homeless:
            for tenant in sorted({request[place][0].tenant for place in homeless}):
                self._make(tenant)
            again = self._bulk([request[place] for place in homeless])
            for place, outcome in zip(homeless, again, strict=True):
                outcomes[place] = outcome
        conflicts: list[Action] = []
        for (action, _), outcome in zip(request, outcomes, strict=True):
            if _lacks_index(action, outcome):
                raise Misconfigured(
                    f"opensearch: the index {self.name(action.tenant)} was not made by headrace (it lacks its alias "
                    f"{self._alias(action.tenant)}); delete it or set stores.prefix"
                )
            if outcome.error is None or outcome.error.type == _NO_INDEX:
                continue
            if outcome.status == CONFLICT:
                conflicts.append(action)
            else:
                raise refused(outcome.status, outcome.error, f"{self.name(action.tenant)}/{action.id}")
        return conflicts

    def _bulk(self, request: Sequence[tuple[Action, bytes]]) -> list[_Outcome]:
        reply = self._connection.request(
            "POST",
            "/_bulk",
            _BulkReply,
            body=b"".join(line for _, line in request),
            content_type=_NDJSON,
            params={"require_alias": "true"},
        )
        return [outcome for item in reply.items for outcome in item.values()]

    def _make(self, tenant: str) -> None:
        body = encode({**self._definition(tenant), "aliases": {self._alias(tenant): {}}})
        try:
            self._connection.request("PUT", f"/{self.name(tenant)}", msgspec.Raw, body=body)
        except opensearchpy.RequestError as exc:
            if exc.error != "resource_already_exists_exception":  # another worker was first
                raise

    def _alias(self, tenant: str) -> str:
        return f"{self.name(tenant)}.write"  # no tenant has a dot

    def _line(self, action: Action) -> bytes:
        target: dict[str, Any] = {"_index": self._alias(action.tenant), "_id": action.id}
        if action.seq_no is not None:
            target |= {"if_seq_no": action.seq_no, "if_primary_term": action.primary_term}
        line = encode({action.operation: target}) + b"\n"
        return line if action.source is None else line + action.source + b"\n"


def _lacks_index(action: Action, outcome: _Outcome) -> bool:
    return action.operation != "delete" and outcome.error is not None and outcome.error.type == _NO_INDEX


def _is_tenant(name: str) -> bool:
    try:
        check_tenant(name)
    except ValueError:
        return False
    return True
