"""One connection pool to OpenSearch. What comes back is decoded to types;
what goes wrong becomes one of our errors here.
"""

import logging
import ssl
import threading
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
import opensearchpy
from opensearchpy.serializer import Serializer

from headrace.calls import asking
from headrace.errors import Misconfigured, Transient
from headrace.stores.settings import OpenSearchSettings
from headrace.tls import refusal
from schemas.wire import decode

T = TypeVar("T")

SERVICE = "opensearch"
TLS_SECTION = "stores.opensearch.tls"
POOL_SIZE = 16  # a stage's worker threads are fewer; one more than this only costs a new connection

_TRANSIENT_STATUSES = frozenset({408, 429, 502, 503, 504})
_TRANSIENT_TYPES = frozenset(
    {
        "circuit_breaking_exception",
        "cluster_block_exception",  # a full disk, or a cluster that is starting: both pass, and both may come as 403
        "cluster_manager_not_discovered_exception",
        "es_rejected_execution_exception",
        "master_not_discovered_exception",
        "no_shard_available_action_exception",
        "node_closed_exception",
        "node_disconnected_exception",
        "node_not_connected_exception",
        "open_search_rejected_execution_exception",
        "process_cluster_event_timeout_exception",
        "receive_timeout_transport_exception",
        "rejected_execution_exception",
        "shard_not_in_primary_mode_exception",
        "timeout_exception",
        "unavailable_shards_exception",
    }
)
_OWN_FAULT_TYPES = frozenset(
    {
        "array_index_out_of_bounds_exception",
        "class_cast_exception",
        "illegal_argument_exception",
        "index_out_of_bounds_exception",
        "null_pointer_exception",
        "number_format_exception",
        "parsing_exception",
        "query_shard_exception",
        "string_index_out_of_bounds_exception",
        "too_complex_to_determinize_exception",
        "too_many_clauses",
        "unsupported_operation_exception",
    }
)
"""Of a 500 that the same request would get for ever. Any other one is of the server's state: a disk, a shard that
closes, a proxy."""
_MAPPING_TYPES = frozenset({"mapper_parsing_exception", "mapper_exception", "strict_dynamic_mapping_exception"})


class ErrorCause(msgspec.Struct, frozen=True):
    """An error of one item of a bulk or multi-get request."""

    type: str = ""
    reason: str | None = None


class OpenSearchConnection:
    """Connects when it is first used, from any thread. Retries nothing: the stage does."""

    def __init__(self, settings: OpenSearchSettings) -> None:
        """Raises Misconfigured where the files of TLS can't be used."""
        self._settings = settings
        self._context = settings.tls.context(TLS_SECTION) if settings.url.startswith("https://") else None
        self._client: opensearchpy.OpenSearch | None = None
        self._opening = threading.Lock()

    def request(
        self,
        method: str,
        path: str,
        reply: type[T],
        *,
        body: bytes | None = None,
        content_type: str = "application/json",
        params: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> T:
        """Send one request and read the reply as `reply`. Raises what `translate` makes of an error."""
        try:
            with asking(SERVICE):
                answered: str = self._connected().transport.perform_request(
                    method,
                    path,
                    params=dict(params or {}),
                    body=body,
                    headers={"content-type": content_type},
                    timeout=timeout_s or self._settings.timeout_s,
                )
        except opensearchpy.OpenSearchException as exc:
            raise translate(exc) from exc
        return decode(answered.encode(), reply)

    def close(self) -> None:
        """Close the pool; a later request opens it again."""
        with self._opening:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connected(self) -> opensearchpy.OpenSearch:
        with self._opening:
            if self._client is None:
                self._client = _open(self._settings, self._context)
            return self._client


def translate(error: Exception) -> Exception:
    """What an error of opensearch-py means; itself where it is not one of those that are expected."""
    if isinstance(error, opensearchpy.ConnectionError):
        if (told := refusal(str(error.error), TLS_SECTION, "the server")) is not None:
            return Misconfigured(told)
        return Transient(SERVICE, f"no answer ({error.error})")
    if isinstance(error, opensearchpy.TransportError):
        types = {str(error.error), *_cause_types(error.info)}
        meaning = classify(error.status_code, types, str(error))
        return meaning or error
    return error


def classify(status: int | str, types: set[str], text: str) -> Transient | Misconfigured | None:
    """What a status and the types of an error mean, for a whole request and for one item of it alike."""
    if status in _TRANSIENT_STATUSES or types & _TRANSIENT_TYPES:
        return Transient(SERVICE, text)
    if status in {401, 403}:
        return Misconfigured(
            f"opensearch refuses these credentials; set stores.opensearch.username and password ({text})"
        )
    if types & _MAPPING_TYPES:
        return Misconfigured(
            f"opensearch: an index has a mapping that is not headrace's; delete it or set stores.prefix ({text})"
        )
    if status == 500 and not types & _OWN_FAULT_TYPES:
        return Transient(SERVICE, text)
    return None


def refused(status: int, cause: ErrorCause, what: str) -> Exception:
    """The error of one item of a request, which is named by `what`."""
    text = f"{what}: {cause.type}: {cause.reason}"
    return classify(status, {cause.type}, text) or opensearchpy.TransportError(status, cause.type, {"error": text})


def _cause_types(info: Any) -> set[str]:
    """All `type`s in an error's body, wherever it names a cause."""
    if isinstance(info, Mapping):
        own = {info["type"]} if isinstance(info.get("type"), str) else set()
        return own.union(*map(_cause_types, info.values()))
    if isinstance(info, list):
        return set().union(*map(_cause_types, info))
    return set()


def _open(settings: OpenSearchSettings, context: ssl.SSLContext | None) -> opensearchpy.OpenSearch:
    # It logs every failed request with a traceback, and so every retry of a stage that waits; the stage says it once.
    logging.getLogger("opensearch").setLevel(logging.CRITICAL)
    password = settings.password.get_secret_value() if settings.password else ""
    verbatim = _Verbatim()
    return opensearchpy.OpenSearch(
        hosts=[settings.url],
        http_auth=(settings.username, password) if settings.username else None,
        timeout=settings.timeout_s,
        max_retries=0,
        retry_on_status=(),
        pool_maxsize=POOL_SIZE,
        serializer=verbatim,
        serializers={"application/json": verbatim, "text/plain": verbatim},
        ssl_context=context,
    )


class _Verbatim(Serializer):
    """Leaves bodies as they are: msgspec keeps integers of any length, and decodes straight to types."""

    mimetype = "application/json"

    def loads(self, s: str) -> str:
        return s

    def dumps(self, data: bytes) -> bytes:
        return data
