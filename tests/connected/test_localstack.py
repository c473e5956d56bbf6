"""A whole second stack beside whatever runs: up, up again, kills, down. It takes about a minute and 1.2 GB."""

import json
import os
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import pytest

from headrace.localstack import probes
from headrace.localstack.settings import LocalStackSettings
from headrace.localstack.stack import LocalStack

JARS = Path(__file__).parents[2] / ".headrace" / "jars"


def free_port(start: int, stop: int) -> int:
    """The first of a run of 12 free ports."""
    for port in range(start, stop, 12):
        if not any(probes.port_open(port + offset) for offset in range(12)):
            return port
    raise RuntimeError(f"no free ports from {start} to {stop}")


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.25)
    return True


def processes_of(root: Path) -> list[str]:
    """The command lines of every process on this machine that names the folder."""
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = cmdline.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(root) in command:
            found.append(command)
    return found


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[LocalStack]:
    if JARS.is_dir():
        (tmp_path / "jars").symlink_to(JARS)
    settings = LocalStackSettings(
        root=tmp_path,
        kafka_port=free_port(19092, 19992),
        opensearch_port=free_port(9212, 9288),
        milvus_port=free_port(18530, 18992),
    )
    stack = LocalStack(settings)
    yield stack
    stack.down()


def test_a_stack_comes_up_survives_kills_and_leaves_nothing_behind(stack: LocalStack, tmp_path: Path) -> None:
    from pymilvus import MilvusClient  # type: ignore[import-untyped]

    stack.up()
    first = {process.name: process for process in stack.status()}
    assert {process.state for process in first.values()} == {"running"}

    stack.up()
    assert {p.name: p.pid for p in stack.status()} == {name: p.pid for name, p in first.items()}

    opensearch = f"http://{first['opensearch'].address}"
    put = urllib.request.Request(
        f"{opensearch}/kept/_doc/1", json.dumps({"a": 1}).encode(), {"Content-Type": "application/json"}, method="PUT"
    )
    with urllib.request.urlopen(put) as answer:
        assert answer.status == 201
    milvus = f"http://{first['milvus'].address}"
    client = MilvusClient(milvus)
    client.create_collection("kept", dimension=4)
    client.insert("kept", [{"id": n, "vector": [float(n), 0.0, 0.0, 1.0]} for n in range(100)])
    client.close()

    for name in ("opensearch", "milvus"):
        pid = first[name].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: {p.state for p in stack.status()} == {"running"})
    stack.up()
    second = {process.name: process for process in stack.status()}
    assert second["kafka"].pid == first["kafka"].pid
    assert second["opensearch"].pid != first["opensearch"].pid
    assert second["milvus"].pid != first["milvus"].pid
    assert probes.http_ok(f"{opensearch}/kept/_doc/1")
    assert eventually(lambda: rows(milvus) == 100), "Milvus lost rows"

    stack.down()
    assert processes_of(tmp_path) == []
    assert {process.state for process in stack.status()} == {"absent"}
    for process in first.values():
        host, port = process.address.split(":")
        with socket.socket() as probe:
            assert probe.connect_ex((host, int(port))) != 0


def rows(uri: str) -> int:
    from pymilvus import MilvusClient, MilvusException

    client = MilvusClient(uri, timeout=3)
    try:
        counted = client.query("kept", filter="", output_fields=["count(*)"], consistency_level="Strong", timeout=3)
        return int(counted[0]["count(*)"])
    except (MilvusException, grpc.RpcError):
        # Its collections are loaded again some seconds after it answers.
        return -1
    finally:
        client.close()
