"""`python -m headrace.localstack.milvus_server --port 19530 --data DIR` becomes the Milvus server of PyPI's `milvus`.

It writes Milvus' settings and then replaces itself by Milvus' own binary. So the process that is supervised, signalled
and killed is Milvus, and there is no parent whose death could leave it behind.

**Trap**: Milvus 2.3.5 has no setting for the address that its ports bind to: they are open on every interface. Only
etcd's are bound to 127.0.0.1, and the components talk to each other there.
"""

import argparse
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from milvus import MilvusServerConfig, _initialize_data_files  # type: ignore[import-untyped]

HOST = "127.0.0.1"
SESSION_TTL_S = 15
PORT_ITEMS = (
    "root_coord_port",
    "proxy_internal_port",
    "query_coord_port",
    "query_node_port",
    "index_coord_port",
    "index_node_port",
    "data_coord_port",
    "data_node_port",
)
"""The ports in the `milvus` package's template of a configuration, but for the one that clients use."""
COMPONENTS = ("rootCoord", "proxy", "queryCoord", "queryNode", "indexNode", "dataCoord", "dataNode")
ETCD_CONFIG = """\
name: default
data-dir: {data}
listen-client-urls: http://{host}:{client}
advertise-client-urls: http://{host}:{client}
listen-peer-urls: http://{host}:{peer}
initial-advertise-peer-urls: http://{host}:{peer}
initial-cluster: default=http://{host}:{peer}
auto-compaction-mode: revision
auto-compaction-retention: "1000"
log-level: warn
"""


def free_ports(above: int) -> Iterator[int]:
    """Ports above `above` that nothing listens on, in order, so that a restart takes the same ones again.

    A port in TIME_WAIT counts as free: Milvus sets SO_REUSEADDR as well.
    """
    for port in range(above + 1, 65536):
        with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
        yield port


def write_config(port: int, data: Path) -> dict[str, str]:
    """Write Milvus' configuration into `data`, and return the environment that Milvus needs to find it."""
    ports = free_ports(port)
    etcd_client, etcd_peer, metrics = next(ports), next(ports), next(ports)
    config = MilvusServerConfig(data_dir=str(data))
    config.resolve_storage()
    config.set("proxy_port", port)
    config.set("etcd_port", etcd_client)
    for item in PORT_ITEMS:
        config.set(item, next(ports))
    for component in COMPONENTS:
        config.set(f"{component}.ip", HOST)
    # After a kill its collections are served again when the dead process' sessions have run out; the default is 30.
    config.set("common.session.ttl", SESSION_TTL_S)
    # Everything goes to stdout, whose file the supervisor rotates.
    config.set("system_log_path", "")
    config.set("etcd_log_path", "stdout")
    config.set("etcd_log_level", "warn")
    config.set("log.level", "warn")
    config.write_config()
    etcd = data / "configs" / "etcd.yaml"
    etcd.write_text(ETCD_CONFIG.format(data=data / "data" / "etcd.data", host=HOST, client=etcd_client, peer=etcd_peer))
    return {
        "DEPLOY_MODE": "STANDALONE",
        "ETCD_CONFIG_PATH": str(etcd),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, (str(data / "bin"), os.environ.get("LD_LIBRARY_PATH")))),
        "METRICS_PORT": str(metrics),
        "MILVUS_RUN_DIR": str(data / "run"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    data: Path = arguments.data.resolve()
    environment = write_config(arguments.port, data)
    _initialize_data_files(str(data))
    binary = data / "bin" / "milvus"
    # The alias names a lock file that every Milvus of the machine would share.
    os.chdir(data)
    os.execve(binary, [str(binary), "run", "standalone", f"-alias={arguments.port}"], os.environ | environment)


if __name__ == "__main__":
    main()
