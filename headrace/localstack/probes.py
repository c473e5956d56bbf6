"""Who answers at a port, and whether it is ready for work."""

import http.client
import json
import logging
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HOST = "127.0.0.1"
CONNECT_TIMEOUT_S = 0.5
ANSWER_TIMEOUT_S = 3.0


def port_open(port: int) -> bool:
    """Whether anything listens there."""
    try:
        with socket.create_connection((HOST, port), timeout=CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False


def http_ok(url: str) -> bool:
    return _get(url) is not None


def kafka_answers(port: int) -> bool:
    """A broker tells its metadata."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    silent = logging.getLogger("headrace.localstack.kafka")
    silent.disabled = True
    client = AdminClient({"bootstrap.servers": f"{HOST}:{port}", "socket.timeout.ms": 3000}, logger=silent)
    try:
        return bool(client.list_topics(timeout=ANSWER_TIMEOUT_S).brokers)
    except KafkaException:
        return False


def opensearch_answers(port: int) -> bool:
    """An OpenSearch (not an Elasticsearch) tells its version."""
    found = _get(f"http://{HOST}:{port}/")
    try:
        return found is not None and bool(json.loads(found)["version"]["distribution"] == "opensearch")
    except (ValueError, KeyError, TypeError):
        return False


def opensearch_ready(port: int) -> bool:
    return opensearch_answers(port) and http_ok(
        f"http://{HOST}:{port}/_cluster/health?wait_for_status=yellow&timeout=1s"
    )


def milvus_answers(port: int) -> bool:
    with _milvus(port) as client:
        return client is not None


def milvus_ready(port: int) -> bool:
    """Its coordinators answer too, not its proxy alone."""
    import grpc  # type: ignore[import-untyped]
    from pymilvus import MilvusException  # type: ignore[import-untyped]

    with _milvus(port) as client:
        if client is None:
            return False
        try:
            client.list_collections(timeout=ANSWER_TIMEOUT_S)
        except (MilvusException, grpc.RpcError):
            return False
        return True


@contextmanager
def _milvus(port: int) -> Iterator[Any]:
    """A client, or None if what is there is no Milvus or does not answer."""
    import grpc
    from pymilvus import MilvusClient, MilvusException

    # Its every attempt would be an error with a stack trace on the terminal.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    try:
        client = MilvusClient(f"http://{HOST}:{port}", timeout=ANSWER_TIMEOUT_S, dedicated=True)
        client.get_server_version(timeout=ANSWER_TIMEOUT_S)
    except (MilvusException, grpc.RpcError, ValueError):
        # Past its deadline pymilvus lets gRPC's own error through.
        yield None
        return
    try:
        yield client
    finally:
        client.close()


def _get(url: str) -> bytes | None:
    """None unless the answer is 200. Never through a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=ANSWER_TIMEOUT_S) as answer:
            return bytes(answer.read()) if answer.status == http.client.OK else None
    except (OSError, http.client.HTTPException, urllib.error.URLError):
        return None
