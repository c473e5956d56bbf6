"""What the errors of pymilvus, gRPC and opensearch-py mean to us."""

from typing import Any

import grpc
import opensearchpy
import pytest
from pymilvus import MilvusException
from pymilvus.exceptions import DataNotMatchException, DescribeCollectionException

from headrace.errors import Misconfigured, Transient
from headrace.stores import milvus, opensearch_connection
from headrace.stores.opensearch_connection import ErrorCause


class RpcError(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str = "") -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


ITSELF = None

MILVUS = [
    (RpcError(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses"), Transient),
    (RpcError(grpc.StatusCode.DEADLINE_EXCEEDED), Transient),
    (RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "rate limited"), Transient),
    (RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "received message larger than max (1 vs. 2)"), ITSELF),
    (RpcError(grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"), Transient),
    (RpcError(grpc.StatusCode.UNAUTHENTICATED, "auth check failure"), Misconfigured),
    (RpcError(grpc.StatusCode.PERMISSION_DENIED), Misconfigured),
    (RpcError(grpc.StatusCode.UNIMPLEMENTED), ITSELF),
    (grpc.FutureTimeoutError(), Transient),
    (
        MilvusException(2, "Fail connecting to server on x:1, illegal connection params or server unavailable"),
        Transient,
    ),
    (caused(MilvusException(2, "Fail connecting to server"), RpcError(grpc.StatusCode.UNAUTHENTICATED)), Misconfigured),
    (MilvusException(101, "failed to search: collection not loaded[collection=4706]"), Transient),
    (MilvusException(103, "collection not fully loaded"), Transient),
    (MilvusException(106, "collection on recovering"), Transient),
    (MilvusException(65535, "fail to search on all shard leaders, err=collection 1 not loaded"), Transient),
    (MilvusException(65535, "context deadline exceeded"), Transient),
    (MilvusException(1, "service not ready[proxy=1]: Initializing"), Transient),
    (MilvusException(3, "memory limit exceeded"), Transient),
    (MilvusException(8, "request is rejected by grpc RateLimiter middleware, please retry later"), Transient),
    (MilvusException(9, "quota exceeded[reason=disk quota exceeded]"), Transient),
    (MilvusException(503, "channel not available"), Transient),
    (MilvusException(901, "node not found"), Transient),
    (MilvusException(1400, "user hasn't authenticated"), Misconfigured),
    (MilvusException(65535, "the length(2) of float data should divide the dim(4)"), Misconfigured),
    (
        MilvusException(65535, "fail to Search, QueryNode ID=1 => vector dimension mismatch: service internal error"),
        Misconfigured,
    ),
    (MilvusException(109, "schema mismatch"), Misconfigured),
    (MilvusException(100, "collection not found[database=default][collection=x]"), ITSELF),
    (DescribeCollectionException(100, "can't find collection collection not found"), ITSELF),
    (MilvusException(65535, "failed to create query plan: cannot parse expression: foo ==== 3"), ITSELF),
    (MilvusException(1100, "the length (9000) of 0th string exceeds max length (8192): invalid parameter"), ITSELF),
    (MilvusException(1, "Unexpected error, message=<'NoneType' has no attribute 'timeout'>"), ITSELF),
    (DataNotMatchException(1, "The Input data type is inconsistent with defined schema"), ITSELF),
    (ValueError("ours"), ITSELF),
]


def body(kind: str, *causes: str) -> dict[str, Any]:
    return {"error": {"type": kind, "reason": "r", "root_cause": [{"type": cause, "reason": "r"} for cause in causes]}}


OPENSEARCH = [
    (opensearchpy.ConnectionError("N/A", "refused", OSError("refused")), Transient),
    (opensearchpy.ConnectionTimeout("TIMEOUT", "read timed out", OSError("timed out")), Transient),
    (opensearchpy.SSLError("N/A", "CERTIFICATE_VERIFY_FAILED", OSError("CERTIFICATE_VERIFY_FAILED")), Misconfigured),
    (opensearchpy.SSLError("N/A", "EOF occurred", OSError("EOF occurred")), Transient),
    *((opensearchpy.TransportError(status, "any", {}), Transient) for status in (408, 429, 502, 503, 504)),
    (
        opensearchpy.TransportError(503, "search_phase_execution_exception", body("search_phase_execution_exception")),
        Transient,
    ),
    (
        opensearchpy.TransportError(500, "search_phase_execution_exception", body("x", "circuit_breaking_exception")),
        Transient,
    ),
    (opensearchpy.TransportError(500, "i_o_exception", body("i_o_exception")), Transient),
    (opensearchpy.TransportError(500, "already_closed_exception", body("already_closed_exception")), Transient),
    (opensearchpy.TransportError(500, "Internal Server Error", "<html>a proxy's</html>"), Transient),
    (opensearchpy.TransportError(500, "search_phase_execution_exception", body("x", "null_pointer_exception")), ITSELF),
    (opensearchpy.AuthorizationException(403, "cluster_block_exception", body("cluster_block_exception")), Transient),
    (opensearchpy.AuthorizationException(403, "security_exception", body("security_exception")), Misconfigured),
    (opensearchpy.AuthenticationException(401, "Unauthorized", "Unauthorized"), Misconfigured),
    (opensearchpy.RequestError(400, "mapper_parsing_exception", body("mapper_parsing_exception")), Misconfigured),
    (opensearchpy.RequestError(400, "parsing_exception", body("parsing_exception")), ITSELF),
    (opensearchpy.NotFoundError(404, "index_not_found_exception", body("index_not_found_exception")), ITSELF),
    (opensearchpy.TransportError(413, "Request Entity Too Large", ""), ITSELF),
    (ValueError("ours"), ITSELF),
]

ITEMS = [
    (429, "rejected_execution_exception", Transient),
    (429, "cluster_block_exception", Transient),
    (403, "cluster_block_exception", Transient),
    (503, "unavailable_shards_exception", Transient),
    (500, "no_shard_available_action_exception", Transient),
    (500, "i_o_exception", Transient),
    (500, "illegal_argument_exception", opensearchpy.TransportError),
    (400, "mapper_parsing_exception", Misconfigured),
    (400, "illegal_argument_exception", opensearchpy.TransportError),
]


@pytest.mark.parametrize(("error", "meaning"), MILVUS, ids=lambda value: str(value)[:60])
def test_milvus(error: Exception, meaning: type[Exception] | None) -> None:
    check(error, milvus.translate(error), meaning, "milvus")


@pytest.mark.parametrize(("error", "meaning"), OPENSEARCH, ids=lambda value: str(value)[:60])
def test_opensearch(error: Exception, meaning: type[Exception] | None) -> None:
    check(error, opensearch_connection.translate(error), meaning, "opensearch")


@pytest.mark.parametrize(("status", "kind", "meaning"), ITEMS)
def test_an_item_of_a_request(status: int, kind: str, meaning: type[Exception]) -> None:
    error = opensearch_connection.refused(status, ErrorCause(kind, "why"), "index/id")
    assert type(error) is meaning
    assert "index/id" in str(error)


def test_what_waits_for_a_collection_to_be_loaded_is_told_apart() -> None:
    assert isinstance(milvus.translate(MilvusException(101, "collection not loaded")), milvus.NotLoaded)
    assert not isinstance(milvus.translate(MilvusException(106, "collection on recovering")), milvus.NotLoaded)


def check(error: Exception, translated: Exception, meaning: type[Exception] | None, service: str) -> None:
    if meaning is None:
        assert translated is error
        return
    assert isinstance(translated, meaning)
    assert "\n" not in str(translated)
    assert str(translated).startswith(service)
