"""The servers and the workers on this machine: up, down, and how they are."""

import fcntl
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from headrace.errors import Misconfigured
from headrace.localstack import kafka, opensearch, probes
from headrace.localstack.jars import jars
from headrace.localstack.java import find_java
from headrace.localstack.settings import LocalStackSettings
from headrace.localstack.supervision import ProcessInfo, Program, Supervisor

PACKAGES = ("supervisor", "milvus")
ENV_PREFIX = "HEADRACE_"
MILVUS_SERVER = Path(__file__).with_name("milvus_server.py")
"""Run as a file: headrace need not be on the path of the folder that supervisord works in."""
KAFKA_JAVA, OPENSEARCH_JAVA = 17, 21
ANSWER_GRACE_S = 10.0
"""What listens at a port but does not yet answer may be starting: so long until it counts as something else."""
TRIES = 3
"""A program that has ended so often before it was ready will not come up."""
POLL_S = 0.25

State = Literal["running", "starting", "stopping", "stopped", "failed", "external", "absent"]
STATES: Mapping[str, State] = {
    "RUNNING": "running",
    "STARTING": "starting",
    "BACKOFF": "starting",
    "STOPPING": "stopping",
    "FATAL": "failed",
}


@dataclass(frozen=True, kw_only=True)
class WorkerProgram:
    """A worker's process. `health_url` answers 200 when it is ready for work."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    health_url: str


@dataclass(frozen=True, kw_only=True)
class Process:
    """One line of `status`. `external`: it answers, but this stack did not start it and will not stop it."""

    name: str
    state: State
    pid: int | None = None
    uptime_s: float = 0.0
    address: str


@dataclass(frozen=True, kw_only=True)
class Server:
    """One of the three servers: where it is, how to know it, and how to run it."""

    name: str
    title: str
    port: int
    setting: str
    answers: Callable[[int], bool]
    ready: Callable[[int], bool]
    command: Callable[[], list[str]]
    inner_ports: tuple[int, ...] = ()
    stop_wait_s: int = 30

    @property
    def address(self) -> str:
        return f"{probes.HOST}:{self.port}"


class LocalStack:
    """The stack of one root folder.

    `up` and `start_workers` start nothing twice: they may be called again, with other settings too. `down` stops
    exactly what they started.
    """

    def __init__(self, settings: LocalStackSettings, on_progress: Callable[[str], None] = lambda _: None) -> None:
        """Starts nothing yet. Raises Misconfigured where the packages of `headrace[local]` are not installed."""
        _require_packages()
        self._settings = settings
        self._root = settings.root.resolve()
        self._say = on_progress
        self._supervisor = Supervisor(settings.root)
        self._servers = self._server_table()

    def up(self, *, workers: Sequence[WorkerProgram] | None = None) -> None:
        """Start the servers that are missing, wait until all three answer, then start the workers, if any are given.

        Workers that run already stay as they are when `workers` is None. Raises Misconfigured, in one line, when a port
        is taken, something to install is missing, the disk is nearly full, or a server does not come up.
        """
        with self._alone():
            self._require_disk()
            ours = [server for server in self._servers if not self._external(server)]
            programs = [self._program(server) for server in ours]
            if not self._supervisor.running():
                self._supervisor.start()
            for name in self._supervisor.apply("servers", programs):
                self._say(f"starting {name}")
            deadline = time.monotonic() + self._settings.start_timeout_s
            for server in ours:
                self._wait(server.name, partial(server.ready, server.port), deadline)
                self._say(f"{server.title} is ready at {server.address}")
            if workers is not None:
                self._apply_workers(workers)

    def start_workers(self, workers: Sequence[WorkerProgram]) -> None:
        """Make these the workers that run. It does not wait for them: `wait_ready` does."""
        with self._alone():
            if not self._supervisor.running():
                self._supervisor.start()
            self._apply_workers(workers)

    def wait_ready(self, workers: Sequence[WorkerProgram], timeout_s: float = 120.0) -> None:
        """Return when every worker's health URL answers. Raises Misconfigured, with its last words, if one does not."""
        deadline = time.monotonic() + timeout_s
        for worker in workers:
            self._wait(worker.name, partial(probes.http_ok, worker.health_url), deadline)
            self._say(f"{worker.name} is ready")

    def down(self) -> None:
        """Stop the workers, then the servers that `up` started, then their supervisor: no process of them is left."""
        with self._alone():
            if not self._supervisor.running():
                self._say("nothing is running")
                return
            running = {process.name for process in self._supervisor.processes() if process.alive}
            servers = running & {server.name for server in self._servers}
            for names in (running - servers, servers):
                if names:
                    self._say(f"stopping {', '.join(sorted(names))}")
                    self._supervisor.stop(names)
            self._supervisor.shutdown()

    def status(self) -> list[Process]:
        """The servers, then the workers."""
        known: dict[str, ProcessInfo] = {}
        addresses: dict[str, str] = {}
        if self._supervisor.running():
            known = {process.name: process for process in self._supervisor.processes()}
            addresses = self._supervisor.addresses()
        return [
            *(self._server_status(server, known.pop(server.name, None)) for server in self._servers),
            *(_process(known[name], addresses.get(name, "")) for name in sorted(known)),
        ]

    def _server_status(self, server: Server, process: ProcessInfo | None) -> Process:
        if process is not None:
            return _process(process, server.address)
        answers = probes.port_open(server.port) and server.answers(server.port)
        return Process(name=server.name, state="external" if answers else "absent", address=server.address)

    def _external(self, server: Server) -> bool:
        """Whether a server that this stack did not start is to be used. Raises Misconfigured if a port is taken."""
        if self._supervisor.running():
            ours = next((p for p in self._supervisor.processes() if p.name == server.name and p.alive), None)
            if ours is not None and self._supervisor.addresses().get(server.name) == server.address:
                return False
            self._supervisor.stop([server.name])
        if not probes.port_open(server.port):
            for port in server.inner_ports:
                if probes.port_open(port):
                    raise Misconfigured(port_taken(server, port))
            return False
        deadline = time.monotonic() + ANSWER_GRACE_S
        while not server.answers(server.port):
            if time.monotonic() > deadline:
                raise Misconfigured(port_taken(server, server.port))
            time.sleep(POLL_S)
        self._say(
            f"{server.title} already answers at {server.address}: it is used as it is, and never stopped from here"
        )
        return True

    def _program(self, server: Server) -> Program:
        return Program(
            name=server.name, address=server.address, command=server.command(), stop_wait_s=server.stop_wait_s
        )

    def _apply_workers(self, workers: Sequence[WorkerProgram]) -> None:
        programs = [
            Program(
                name=worker.name,
                address=urlsplit(worker.health_url).netloc,
                command=worker.command,
                environment=worker.environment,
            )
            for worker in workers
        ]
        for name in self._supervisor.apply("workers", programs):
            self._say(f"starting {name}")

    def _wait(self, name: str, ready: Callable[[], bool], deadline: float) -> None:
        pids: set[int] = set()
        while not ready():
            process = next((process for process in self._supervisor.processes() if process.name == name), None)
            if process is not None and process.pid is not None:
                pids.add(process.pid)
            if process is None or process.state == "FATAL" or len(pids) > TRIES:
                raise Misconfigured(f"{name} does not stay up: {self._supervisor.last_words(name)}")
            if time.monotonic() > deadline:
                raise Misconfigured(f"{name} runs but is not ready in time: {self._supervisor.last_words(name)}")
            time.sleep(POLL_S)

    def _require_disk(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        free_gb = shutil.disk_usage(self._root).free / 1e9
        if free_gb < self._settings.min_free_gb:
            raise Misconfigured(
                f"only {free_gb:.1f} GB of disk are free at {self._root}, and {self._settings.min_free_gb:g} GB are "
                "needed: OpenSearch makes its indices read-only on a full disk (free some space, or move local.root)"
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two of `up` and `down` at once would each start what the other has not yet started."""
        self._root.mkdir(parents=True, exist_ok=True)
        with (self._root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _server_table(self) -> tuple[Server, ...]:
        settings = self._settings
        return (
            Server(
                name="opensearch",
                title="OpenSearch",
                port=settings.opensearch_port,
                setting="local.opensearch_port",
                answers=probes.opensearch_answers,
                ready=probes.opensearch_ready,
                command=lambda: opensearch.prepare(
                    settings,
                    self._root / "opensearch",
                    find_java(OPENSEARCH_JAVA, needed_by="OpenSearch"),
                    self._jars("opensearch"),
                ),
            ),
            Server(
                name="milvus",
                title="Milvus",
                port=settings.milvus_port,
                setting="local.milvus_port",
                answers=probes.milvus_answers,
                ready=probes.milvus_ready,
                # Asked to stop with a collection loaded it takes over 30 s and then aborts; a kill loses nothing.
                stop_wait_s=5,
                command=lambda: [
                    *(sys.executable, "-P", str(MILVUS_SERVER)),
                    *("--port", str(settings.milvus_port), "--data", str(self._root / "milvus")),
                ],
            ),
            Server(
                name="kafka",
                title="Kafka",
                port=settings.kafka_port,
                setting="local.kafka_port",
                answers=probes.kafka_answers,
                ready=probes.kafka_answers,
                inner_ports=(settings.kafka_port + 1,),
                command=lambda: kafka.prepare(
                    settings, self._root / "kafka", find_java(KAFKA_JAVA, needed_by="Kafka"), self._jars("kafka")
                ),
            ),
        )

    def _jars(self, name: str) -> Path:
        return jars(name, self._root / "jars", self._say)


def port_taken(server: Server, port: int) -> str:
    """One line: who wants which port, and what to change."""
    return (
        f"port {port}, which {server.title} needs, is taken by another program: end that, or set {server.setting} "
        f"({ENV_PREFIX}{server.setting.upper().replace('.', '__')}) to another port"
    )


def _process(process: ProcessInfo, address: str) -> Process:
    return Process(
        name=process.name,
        state=STATES.get(process.state, "stopped"),
        pid=process.pid,
        uptime_s=process.uptime_s,
        address=address,
    )


def _require_packages() -> None:
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise Misconfigured(
            f"the local stack needs the Python packages {', '.join(missing)}: pip install 'headrace[local]'"
        )
