"""Kafka, OpenSearch and Milvus of a run's own, to be killed, stopped and frozen: nobody else uses them."""

import os
import signal
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from headrace.config import Settings, load_settings
from headrace.localstack import probes
from headrace.localstack.settings import LocalStackSettings
from headrace.localstack.stack import LocalStack
from headrace.localstack.supervision import Supervisor
from tests.conftest import free_ports

ServerName = Literal["kafka", "opensearch", "milvus"]
JARS = Path(LocalStackSettings().root).resolve() / "jars"
MILVUS_PORTS = 20
HANGS_AFTER_S, ENDS_AFTER_S = 4.0, 15.0


@dataclass
class OwnServers:
    """A local stack under a root and at ports of its own. Whatever is done to a server, `back` brings it back."""

    root: Path
    settings: Settings = field(init=False)
    _stack: LocalStack = field(init=False)

    def __post_init__(self) -> None:
        kafka = free_ports(2 + MILVUS_PORTS)
        milvus = kafka + 2
        opensearch = next(port for port in range(9210, 9299) if _free(port))
        environment = {
            "HEADRACE_LOCAL__ROOT": str(self.root),
            "HEADRACE_LOCAL__KAFKA_PORT": str(kafka),
            "HEADRACE_LOCAL__OPENSEARCH_PORT": str(opensearch),
            "HEADRACE_LOCAL__MILVUS_PORT": str(milvus),
            "HEADRACE_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{kafka}",
            "HEADRACE_STORES__OPENSEARCH__URL": f"http://127.0.0.1:{opensearch}",
            "HEADRACE_STORES__MILVUS__URI": f"http://127.0.0.1:{milvus}",
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            self.settings = load_settings()
        # Fetched once for every stack of this checkout.
        JARS.mkdir(parents=True, exist_ok=True)
        (self.root / "jars").symlink_to(JARS)
        self._stack = LocalStack(self.settings.local)

    def up(self) -> None:
        """Start what doesn't run, and return when all three answer."""
        self._stack.up()

    def down(self) -> None:
        self._thaw(("kafka", "opensearch", "milvus"))
        self._stack.down()

    def kill(self, name: ServerName) -> None:
        """SIGKILL; its supervisor starts it again at once."""
        os.kill(self._pid(name), signal.SIGKILL)

    def stop(self, name: ServerName) -> None:
        """Its clean end; it stays away until `back`."""
        Supervisor(self.root).stop([name])

    def freeze(self, name: ServerName) -> None:
        """Its connections stay open, and nothing answers, until `back`."""
        os.kill(self._pid(name), signal.SIGSTOP)

    def back(self, name: ServerName) -> None:
        """After any of these: return when all servers answer again."""
        self._thaw([name])
        if name == "milvus":
            self._end_if_it_hangs()
        self.up()

    @contextmanager
    def away(self, name: ServerName, *, frozen: bool = False) -> Iterator[None]:
        """The server is stopped (or frozen) within the block, and answers again after it."""
        (self.freeze if frozen else self.stop)(name)
        try:
            yield
        finally:
            self.back(name)

    def _end_if_it_hangs(self) -> None:
        """Milvus 2.3.5 that was frozen for 10 s and more tells moments later that it is not ready, for ever: what watches
        over it in a deployment ends it then.
        """
        time.sleep(HANGS_AFTER_S)
        deadline = time.monotonic() + ENDS_AFTER_S
        while not probes.milvus_ready(self.settings.local.milvus_port):
            running = [process for process in self._stack.status() if process.name == "milvus" and process.pid]
            if not running:
                return
            if time.monotonic() > deadline:
                self.kill("milvus")
                return
            time.sleep(0.5)

    def _thaw(self, names: Iterable[str]) -> None:
        for process in self._stack.status():
            if process.name in names and process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGCONT)

    def _pid(self, name: ServerName) -> int:
        [pid] = [process.pid for process in self._stack.status() if process.name == name]
        assert pid is not None, f"{name} doesn't run"
        return pid


def _free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False
