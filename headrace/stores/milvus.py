"""The vector store: a tenant's chunks in one Milvus collection, searched by cosine. No text lies here.

A tenant is a collection of its own and no collection has a partition key: Milvus 2.3.5 loses rows that are upserted
into one with a partition key.
"""

import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
import msgspec
import numpy as np
import numpy.typing as npt
from pymilvus import DataType, MilvusClient, MilvusException  # type: ignore[import-untyped]  # pymilvus ships no types
from pymilvus.client.types import LoadState  # type: ignore[import-untyped]  # as above

from headrace.calls import asking
from headrace.errors import Misconfigured, Transient
from headrace.stores.filters import Filters, milvus_expression, milvus_literal
from headrace.stores.limits import SOURCE_MAX_BYTES, TAG_MAX_BYTES, TAGS_MAX, in_requests
from headrace.stores.ports import Candidate, StoreCount, StoredRow, TenantAway, VectorRow
from headrace.stores.settings import MilvusSettings, StoreSettings
from headrace.stores.terms import created_at_ms, metadata_values
from headrace.tls import TlsSettings, refusal, shake_hands
from schemas import Attributes, EncoderIdentity
from schemas.key import DOC_ID_MAX_BYTES, check_tenant
from schemas.wire import decode, encode

T = TypeVar("T")

SERVICE = "milvus"
TLS_SECTION = "stores.milvus.tls"

_SUFFIX = "_docs"
_DASH = "D"  # Milvus takes no dash in a name, and no tenant has an upper-case letter
_ID_MAX_BYTES = 128
_HASH_MAX_BYTES = 128
_HNSW = {"index_type": "HNSW", "metric_type": "COSINE", "params": {"M": 16, "efConstruction": 200}}
_FLAT = {"index_type": "FLAT", "metric_type": "COSINE", "params": {}}
_EF_LEAST = 64  # below this, recall suffers even for the best few
_LOAD_POLL_S = 0.1
_LOADED_WITHIN_S = 60.0
"""After a start Milvus brings back one collection after the other."""
_VISIBLE_POLL_S = 0.05
_GONE_AFTER_S = 5.0
"""When a row that was stored isn't found for so long, it is asked whether it is still there."""
_SCAN_PAGE = 10_000
_ANY_ROW = 'id != ""'
_ROW_FIELDS = ["id", "doc_id", "version", "ordinal", "content_hash"]
_ROW_BYTES = 256  # ids, hash and numbers of a row, roughly
# Without it gRPC waits up to two minutes before it tries a server again that was away.
_GRPC_OPTIONS = {"grpc.initial_reconnect_backoff_ms": 200, "grpc.max_reconnect_backoff_ms": 2000}
# Our stage retries, so that it can say so and stop; pymilvus would, unseen, until the time-out.
_NO_RETRY = {"retry_times": 0, "retry_on_rate_limit": False}

# An HTTP/2 client's preface and its empty settings (RFC 9113, section 3.4).
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])

_NO_COLLECTION = 100
_NOT_LOADED = frozenset({101, 103, 201, 202})
# Milvus' `merr` codes: not ready, unavailable, memory, too many requests, disk, rate, quota, tick delay; a collection
# that recovers; replicas, channels, segments and nodes that are not there now; I/O and message queue.
_TRANSIENT_CODES = frozenset(
    {2, 3, 4, 7, 8, 9, 11, 104, 106, 400, 401, 500, 501, 502, 503, 600, 601, 602, 603, 901, 902, 903, 904, 905, 1001}
    | set(range(1300, 1400))
)
_CREDENTIAL_CODES = frozenset({1400, 1401})
_MISFIT_CODES = frozenset({109})
# Many of its errors come as 65535 or 1, with a text alone.
_misfit_text = re.compile(
    r"dimension mismatch|should divide the dim|not equal to schema dim|metric type not match", re.IGNORECASE
)
_before_2_4 = re.compile(r"v?2\.[0-3]\.")
_not_loaded_text = re.compile(r"not (fully )?loaded|hasn't been loaded", re.IGNORECASE)
_transient_text = re.compile(
    r"not ready|not healthy|unavailable|on recovering|rate limit|quota|deadline exceeded|time ?out|context canceled|"
    r"connection (refused|reset)|no available|node (not found|offline)|channel not (found|available)|node not match|"
    r"not synced|can ?not find (valid )?shard leader|force den",
    re.IGNORECASE,
)
_TRANSIENT_STATUSES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
    }
)
_CREDENTIAL_STATUSES = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})


class MilvusStore:
    """A VectorStore whose collections all hold vectors of one encoder. Connects when it is first used."""

    def __init__(self, settings: StoreSettings, encoder: EncoderIdentity) -> None:
        """Raises Misconfigured where the files of TLS can't be used."""
        if settings.milvus.tls:
            settings.milvus.tls.context(TLS_SECTION)
        self._settings = settings.milvus
        self._prefix = settings.collection_prefix
        self._encoder = encoder
        self._client: Any = None
        self._opening = threading.Lock()
        self._open_failed = float("-inf")
        self._ready: set[str] = set()
        """Collections that were found fit, indexed and loaded once.
        Each is asked for again only when a call says that it is gone."""

    def check(self) -> None:
        for tenant in self.tenants():
            name = collection_name(self._prefix, tenant)
            found = self._describe(name)
            if found is not None:
                self._check_encoder(name, found)

    def upsert(self, tenant: str, rows: Sequence[VectorRow]) -> None:
        name = collection_name(self._prefix, tenant)
        encoded: dict[int, tuple[dict[str, Any], int]] = {}  # a document's rows share their attributes
        for row in rows:
            if id(row.attributes) not in encoded:
                encoded[id(row.attributes)] = _attributes(row.attributes)
        # Of two rows of one id in one request, Milvus would keep both.
        distinct = {row.id: row for row in rows}.values()
        for request in in_requests(
            distinct, lambda row: row.vector.nbytes + encoded[id(row.attributes)][1] + _ROW_BYTES
        ):
            entities = [_entity(row, encoded[id(row.attributes)][0]) for row in request]
            self._upsert(name, entities)

    def delete(self, tenant: str, ids: Sequence[str]) -> None:
        name = collection_name(self._prefix, tenant)
        for request in in_requests(ids, len):
            if not self._delete(name, request):
                return

    def search(self, tenant: str, vector: npt.NDArray[np.float32], *, limit: int, filters: Filters) -> list[Candidate]:
        name = collection_name(self._prefix, tenant)
        found = self._read(
            name,
            lambda client, **bounds: client.search(
                name,
                data=[vector],
                anns_field="vector",
                filter=milvus_expression(filters),
                limit=limit,
                output_fields=["doc_id"],
                search_params={"metric_type": "COSINE", "params": {"ef": max(_EF_LEAST, 2 * limit)}},
                consistency_level="Bounded",
                **bounds,
            ),
            timeout_s=self._settings.search_timeout_s,
        )
        if found is None:
            return []
        return [Candidate(id=hit["id"], doc_id=hit["entity"]["doc_id"], score=hit["distance"]) for hit in found[0]]

    def vectors(self, tenant: str, ids: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        name = collection_name(self._prefix, tenant)
        found: dict[str, npt.NDArray[np.float32]] = {}
        for request in in_requests(ids, lambda _: self._encoder.dimension * 4 + _ROW_BYTES):
            expression = f"id in [{', '.join(map(milvus_literal, request))}]"
            rows = self._read(
                name,
                lambda client, *, expression=expression, **bounds: client.query(
                    name,
                    filter=expression,
                    output_fields=["content_hash", "vector"],
                    consistency_level="Bounded",
                    **bounds,
                ),
                timeout_s=self._settings.search_timeout_s,
            )
            found |= {row["content_hash"]: np.array(row["vector"], dtype=np.float32) for row in rows or ()}
        return found

    def count(self, tenant: str) -> StoreCount:
        name = collection_name(self._prefix, tenant)
        counted = self._read_once_loaded(
            name,
            lambda client, **bounds: client.query(
                name, filter="", output_fields=["count(*)"], consistency_level="Strong", **bounds
            ),
        )
        if counted is None:
            return StoreCount(documents=0, chunks=0)
        doc_ids = {row["doc_id"] for page in self._scan(name, _ANY_ROW, ["id", "doc_id"]) for row in page}
        return StoreCount(documents=len(doc_ids), chunks=int(counted[0]["count(*)"]))

    def rows(self, tenant: str, doc_ids: Collection[str] | None = None) -> Iterator[list[StoredRow]]:
        condition = _ANY_ROW
        if doc_ids is not None:
            condition = f"doc_id in [{', '.join(map(milvus_literal, sorted(doc_ids)))}]"
        for page in self._scan(collection_name(self._prefix, tenant), condition, _ROW_FIELDS):
            yield [StoredRow(**{field: row[field] for field in _ROW_FIELDS}) for row in page]

    def make_searchable(self, tenant: str, ids: Sequence[str]) -> None:
        name = collection_name(self._prefix, tenant)
        missing = set(ids)
        started = time.monotonic()
        asked_for_gone = False
        while missing := missing - self._found(name, missing, consistency="Bounded"):
            waited = time.monotonic() - started
            if waited > self._settings.timeout_s:
                raise Transient(SERVICE, f"{len(missing)} stored rows of {name} can't be found by a search yet")
            if waited > _GONE_AFTER_S and not asked_for_gone:
                # Somebody deleted them, or dropped the collection. To wait for them would be to wait for ever.
                missing &= self._found(name, missing, consistency="Strong")
                asked_for_gone = True
            time.sleep(_VISIBLE_POLL_S)

    def tenants(self) -> list[str]:
        names = self._call(lambda client, **bounds: client.list_collections(**bounds))
        return sorted(tenant for name in names if (tenant := _tenant(self._prefix, name)) is not None)

    def drop(self, tenant: str) -> None:
        """Delete a tenant's collection; whoever writes into it makes it anew."""
        name = collection_name(self._prefix, tenant)
        self._call(lambda client, **bounds: client.drop_collection(name, **bounds))
        self._ready.discard(name)

    def close(self) -> None:
        """Close the connection; a later call opens it again."""
        with self._opening:
            client, self._client = self._client, None
            self._ready.clear()
        if client is not None:
            client.close()

    def _upsert(self, name: str, entities: list[dict[str, Any]]) -> None:
        if name not in self._ready:
            self._prepare(name)
        try:
            self._call(lambda client, **bounds: client.upsert(name, entities, **bounds))
        except MilvusException as exc:
            if not _is_missing(exc):
                raise
            # Somebody dropped it since. A second time is somebody's war, and an error.
            self._prepare(name)
            self._call(lambda client, **bounds: client.upsert(name, entities, **bounds))

    def _delete(self, name: str, ids: list[str]) -> bool:
        """False when there is no collection to delete from."""
        expression = f"id in [{', '.join(map(milvus_literal, ids))}]"
        try:
            self._call(lambda client, **bounds: client.delete(name, filter=expression, **bounds))
        except MilvusException as exc:
            if not _is_missing(exc):
                raise
            return False
        return True

    def _read(self, name: str, call: Callable[..., T], *, timeout_s: float | None = None) -> T | None:
        """What a search or a query answers; None without a collection.
        One that isn't loaded is loaded, but not waited for.
        """
        if name not in self._ready:
            found = self._describe(name, timeout_s=timeout_s)
            if found is None:
                return None
            self._check_encoder(name, found)
            self._ready.add(name)
        try:
            return self._call(call, timeout_s=timeout_s)
        except MilvusException as exc:
            if not _is_missing(exc):
                raise
            self._ready.discard(name)
            return None
        except NotLoaded:
            self._serve(name)
            raise

    def _read_once_loaded(self, name: str, call: Callable[..., T]) -> T | None:
        """What `_read` does, for one who reads all: a Milvus that has just started gets time to load it."""
        try:
            return self._read(name, call)
        except NotLoaded:
            self._wait_until_loaded(name, within_s=_LOADED_WITHIN_S)
            return self._read(name, call)

    def _found(self, name: str, ids: Collection[str], *, consistency: str) -> set[str]:
        found: set[str] = set()
        for request in in_requests(sorted(ids), len):
            expression = f"id in [{', '.join(map(milvus_literal, request))}]"
            page = self._read(
                name,
                lambda client, *, expression=expression, **bounds: client.query(
                    name, filter=expression, output_fields=["id"], consistency_level=consistency, **bounds
                ),
            )
            found.update(row["id"] for row in page or ())
        return found

    def _scan(self, name: str, condition: str, fields: list[str]) -> Iterator[list[dict[str, Any]]]:
        """All rows that fit, in the order of their ids, page after page from id to id.

        Not with pymilvus' iterator: what it asks of 2.3.5 does not see the newest rows and deletions, however strong a
        consistency it names, and it doesn't escape ids.
        """
        expression = condition
        while True:
            page = self._read_once_loaded(
                name,
                lambda client, *, expression=expression, **bounds: client.query(
                    name,
                    filter=expression,
                    output_fields=fields,
                    limit=_SCAN_PAGE,
                    consistency_level="Strong",
                    # Of several segments, each with its first rows: end the page where the first of them ends.
                    reduce_stop_for_best="True",
                    **bounds,
                ),
            )
            if not page:
                return
            yield page
            expression = f"({condition}) and id > {milvus_literal(page[-1]['id'])}"

    def _prepare(self, name: str) -> None:
        """Make sure that the collection is there, of our encoder, indexed, and loaded or on its way to be.

        Safe when several workers do it at once: each step does nothing where another has done it.
        """
        found = self._describe(name)
        if found is not None:
            self._check_encoder(name, found)
            self._serve(name)
        else:
            self._create(name)
            self._check_encoder(name, self._describe(name) or "")
            self._serve(name)
            # Its first rows are to be found when we say that they are stored. Milvus takes about 3 s to load an empty
            # collection.
            self._wait_until_loaded(name, within_s=self._settings.timeout_s)
        self._ready.add(name)

    def _describe(self, name: str, *, timeout_s: float | None = None) -> str | None:
        """The collection's description; None without such a collection."""
        try:
            found = self._call(lambda client, **bounds: client.describe_collection(name, **bounds), timeout_s=timeout_s)
        except MilvusException as exc:
            if not _is_missing(exc):
                raise
            return None
        return str(found.get("description", ""))

    def _check_encoder(self, name: str, description: str) -> None:
        try:
            theirs = decode(description.encode(), EncoderIdentity)
        except msgspec.DecodeError:
            raise Misconfigured(
                f"milvus: the collection {name} was not made by headrace (its description names no encoder); "
                "drop it or set stores.prefix"
            ) from None
        if theirs != self._encoder:
            raise Misconfigured(
                f"milvus: the collection {name} holds vectors of {_said(theirs)}, but the encoder here is "
                f"{_said(self._encoder)}; set the encoder back, or set another stores.prefix "
                "and send the documents again"
            )

    def _create(self, name: str) -> None:
        schema = _schema(self._encoder)
        try:
            self._call(
                lambda client, **bounds: client.create_collection(
                    name, schema=schema, consistency_level="Bounded", **bounds
                )
            )
        except MilvusException:
            # Another worker was first, maybe with another encoder: what is there now is looked at.
            if self._describe(name) is None:
                raise

    def _serve(self, name: str) -> None:
        """Index it if that isn't done, and start to load it if that isn't done; Milvus goes on by itself."""
        if not self._call(lambda client, **bounds: client.list_indexes(name, **bounds)):
            params = MilvusClient.prepare_index_params()
            params.add_index("vector", **self._index())
            self._call(lambda client, **bounds: client.create_index(name, params, **bounds))
        self._call(lambda client, **bounds: client.load_collection(name, _async=True, **bounds))

    def _index(self) -> dict[str, Any]:
        """Before 2.4 no graph: what one says after a crash isn't true, as if it were built over other rows.

        Measured on 2.3.5 with 6,000 rows of which most came before a SIGKILL: once their segment was sealed, searches
        by HNSW and by IVF_FLAT found none to half of a document's rows, for good, while queries found them all.
        """
        index_type = self._settings.index_type
        if index_type == "auto":
            version = self._call(lambda client, **_: client.get_server_version())
            index_type = "FLAT" if _before_2_4.match(version) else "HNSW"
        return {"FLAT": _FLAT, "HNSW": _HNSW}[index_type]

    def _wait_until_loaded(self, name: str, *, within_s: float) -> None:
        give_up = time.monotonic() + within_s
        while self._call(lambda client, **bounds: client.get_load_state(name, **bounds))["state"] != LoadState.Loaded:
            if time.monotonic() > give_up:
                raise NotLoaded(SERVICE, f"the collection {name} is still not loaded after {within_s:g} s")
            time.sleep(_LOAD_POLL_S)

    def _call(self, call: Callable[..., T], *, timeout_s: float | None = None) -> T:
        """Run one call of pymilvus with its bounds. Raises what `translate` makes of an error."""
        try:
            with asking(SERVICE):
                return call(self._connected(), timeout=timeout_s or self._settings.timeout_s, **_NO_RETRY)
        except (grpc.RpcError, grpc.FutureTimeoutError, MilvusException) as exc:
            meaning = translate(exc)
            if meaning is exc:
                raise
            raise meaning from exc

    def _connected(self) -> Any:
        if self._client is None:
            # pymilvus holds a lock of its process while it connects, until the time-out; ask first whether anybody
            # listens, so that ten threads don't wait for one another.
            _knock(self._settings)
            asked = time.monotonic()
            with self._opening:
                if self._client is None:
                    if self._open_failed > asked:
                        raise Transient(SERVICE, "somebody listens, and nobody answered another thread that waited")
                    try:
                        self._client = _open(self._settings)
                    except Exception:
                        self._open_failed = time.monotonic()
                        raise
        return self._client


class NotLoaded(TenantAway):
    """The collection is not served yet: it recovers, or somebody released it."""


def collection_name(prefix: str, tenant: str) -> str:
    return f"{prefix}{check_tenant(tenant).replace('-', _DASH)}{_SUFFIX}"


def translate(error: Exception) -> Exception:
    """What an error of pymilvus or gRPC means; itself where it is not one of those that are expected."""
    if isinstance(error, grpc.FutureTimeoutError):
        return Transient(SERVICE, "no answer in time")
    if isinstance(error, grpc.RpcError):
        return _translate_rpc(error)
    if isinstance(error, MilvusException):
        return _translate_answer(error)
    return error


def _translate_rpc(error: Any) -> Exception:
    text = f"{error.code().name}: {error.details()}"
    if error.code() in _CREDENTIAL_STATUSES:
        return Misconfigured(f"milvus refuses these credentials; set stores.milvus.token ({text})")
    if (told := refusal(str(error.details()), TLS_SECTION, "the server")) is not None:
        return Misconfigured(told)
    if error.code() in _TRANSIENT_STATUSES and "larger than max" not in text:
        return Transient(SERVICE, text)
    if error.code() in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN} and "RST_STREAM" in text:
        return Transient(SERVICE, text)  # a server that dies while it answers
    return error  # type: ignore[no-any-return]  # grpc has no types


def _translate_answer(error: Any) -> Exception:
    text = f"{error.message} (code {error.code})"
    if isinstance(error.__cause__, grpc.RpcError) and error.__cause__.code() in _CREDENTIAL_STATUSES:
        return _translate_rpc(error.__cause__)
    if error.message.startswith("Unexpected error, message="):
        return error  # type: ignore[no-any-return]  # pymilvus' own bug, or ours, in its wrapping
    if error.code in _CREDENTIAL_CODES:
        return Misconfigured(f"milvus refuses these credentials; set stores.milvus.token ({text})")
    if error.code in _MISFIT_CODES or _misfit_text.search(error.message):
        return Misconfigured(
            f"milvus: a collection does not fit the encoder; set the encoder back or set another stores.prefix ({text})"
        )
    if _is_missing(error):
        return error  # type: ignore[no-any-return]  # each caller knows what a missing collection means
    if error.code in _NOT_LOADED or _not_loaded_text.search(error.message):
        return NotLoaded(SERVICE, text)
    if error.code in _TRANSIENT_CODES or _transient_text.search(error.message):
        return Transient(SERVICE, text)
    return error  # type: ignore[no-any-return]  # pymilvus has no types


def _is_missing(error: Any) -> bool:
    return bool(error.code == _NO_COLLECTION)


def _knock(settings: MilvusSettings) -> None:
    address = urlsplit(settings.uri)
    port = address.port or (443 if address.scheme == "https" else 19530)
    host, timeout_s = address.hostname or "", settings.search_timeout_s
    try:
        if address.scheme == "https":
            # gRPC says only that nobody answered in time, whatever one side has against the other.
            shake_hands(host, port, settings.tls, TLS_SECTION, timeout_s=timeout_s, alpn=("h2",), hello=_HTTP2_HELLO)
        else:
            socket.create_connection((host, port), timeout=timeout_s).close()
    except OSError as exc:
        raise Transient(SERVICE, f"nobody listens at {address.hostname}:{port}: {exc}") from exc


def _open(settings: MilvusSettings) -> Any:
    # It logs every failed call with a traceback, and so every retry of a stage that waits; the stage says it once.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    client = MilvusClient(
        uri=settings.uri,
        token=settings.token.get_secret_value() if settings.token else "",
        timeout=settings.search_timeout_s,
        dedicated=True,
        grpc_options=_GRPC_OPTIONS,
        **_certificates(settings.tls),
    )
    # With a time-out, pymilvus retries a server that is away until the time-out, and reconnects under a lock of its
    # process. Its hook for errors is where that can be cut short: gRPC itself connects again.
    # (tests/connected/stores/test_away.py holds it.)
    client._handler._on_rpc_error = _give_up
    return client


def _certificates(tls: TlsSettings) -> dict[str, str]:
    """In pymilvus' words, which has one setting for the authority with a client certificate and another without."""
    if tls.ca is None:
        return {}
    if tls.certificate is None:
        return {"server_pem_path": str(tls.ca)}
    return {"ca_pem_path": str(tls.ca), "client_pem_path": str(tls.certificate), "client_key_path": str(tls.key)}


def _give_up(error: Exception) -> NoReturn:
    raise error


def _schema(encoder: EncoderIdentity) -> Any:
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False, description=encode(encoder).decode())
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=_ID_MAX_BYTES)
    schema.add_field("doc_id", DataType.VARCHAR, max_length=DOC_ID_MAX_BYTES)
    schema.add_field("version", DataType.INT64)
    schema.add_field("ordinal", DataType.INT64)
    schema.add_field("content_hash", DataType.VARCHAR, max_length=_HASH_MAX_BYTES)
    schema.add_field(
        "tags", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=TAGS_MAX, max_length=TAG_MAX_BYTES
    )
    schema.add_field("source", DataType.VARCHAR, max_length=SOURCE_MAX_BYTES)
    schema.add_field("created_at", DataType.INT64)
    schema.add_field("metadata", DataType.JSON)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=encoder.dimension)
    return schema


def _attributes(attributes: Attributes) -> tuple[dict[str, Any], int]:
    """The fields that all rows of a document share, and roughly how many bytes they take."""
    metadata = encode(metadata_values(attributes.metadata)).decode()
    # 2.3.5 has no null: no source is "", which no filter asks for.
    source = attributes.source or ""
    fields = {
        "tags": attributes.tags,
        "source": source,
        "created_at": created_at_ms(attributes.created_at),
        "metadata": metadata,
    }
    return fields, sum(len(tag.encode()) for tag in attributes.tags) + len(source.encode()) + len(metadata.encode())


def _entity(row: VectorRow, attributes: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row.id,
        "doc_id": row.doc_id,
        "version": row.version,
        "ordinal": row.ordinal,
        "content_hash": row.content_hash,
        **attributes,
        "vector": row.vector,
    }


def _tenant(prefix: str, name: str) -> str | None:
    if not (name.startswith(prefix) and name.endswith(_SUFFIX)):
        return None
    tenant = name.removeprefix(prefix).removesuffix(_SUFFIX).replace(_DASH, "-")
    with suppress(ValueError):
        return check_tenant(tenant)
    return None


def _said(encoder: EncoderIdentity) -> str:
    return f"{encoder.recipe} ({encoder.dimension} dimensions, {'' if encoder.normalised else 'not '}normalised)"
