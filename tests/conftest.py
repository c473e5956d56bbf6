"""The real servers, and a pipeline of real worker processes with topics, groups and stores of its own."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from uuid import uuid4

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from opensearchpy import OpenSearch
from pymilvus import MilvusClient

from headrace.config import Settings, load_settings
from headrace.localstack.stack import LocalStack
from topics import GROUPS
from topics.provisioning import create_topics

# The settings refuse variables of headrace that they don't know, so this must be gone before anybody reads them.
_SEED = os.environ.pop("HEADRACE_CHAOS_SEED", None)

PARTITIONS = 4
READY_WITHIN_S = 180.0


@pytest.fixture
def seed() -> int:
    """HEADRACE_CHAOS_SEED, or a random one: what is drawn from it comes again."""
    seed = int(_SEED) if _SEED else random.SystemRandom().randrange(10**6)
    print(f"HEADRACE_CHAOS_SEED={seed} draws the same again")
    return seed


@pytest.fixture(scope="session")
def servers() -> Iterator[Settings]:
    """Kafka, OpenSearch and Milvus: those that run already are used and left alone, missing ones are started for these tests."""
    settings = load_settings()
    if os.environ.get("HEADRACE_KAFKA__BOOTSTRAP_SERVERS"):
        yield settings  # The servers of whoever set this.
        return
    stack = LocalStack(settings.local)
    ran_before = any(process.state == "running" for process in stack.status())
    stack.up()
    yield settings
    if not ran_before:
        stack.down()


@dataclass
class Deployment:
    """Settings of its own on the shared servers, and the worker processes that run with them."""

    environment: dict[str, str]
    logs: Path
    settings: Settings
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "headrace.cli", *arguments]

    def run(self, *arguments: str, stdin: bytes = b"", timeout: float = 180) -> subprocess.CompletedProcess[bytes]:
        """The `headrace` command, as a user of this deployment would run it."""
        return subprocess.run(
            self.command(*arguments),
            env=self.environment,
            input=stdin,
            capture_output=True,
            timeout=timeout,
            check=False,
        )

    def start(
        self, stage: str, *, name: str | None = None, environment: Mapping[str, str] = {}
    ) -> subprocess.Popen[bytes]:
        """One worker. It listens at `port_of(stage)` unless the environment says otherwise."""
        with (self.logs / f"{name or stage}.log").open("ab") as log:
            worker = subprocess.Popen(
                self.command("worker", stage), env=self.environment | environment, stdout=log, stderr=log
            )
        self.workers.append(worker)
        return worker

    def start_all(self, stages: Sequence[str] = GROUPS) -> dict[str, subprocess.Popen[bytes]]:
        started = {stage: self.start(stage) for stage in stages}
        for stage, worker in started.items():
            self.wait_ready(stage, worker)
        return started

    def url(self, stage: str, path: str) -> str:
        return f"http://127.0.0.1:{self.settings.worker.port + GROUPS.index(stage)}{path}"

    def wait_ready(self, stage: str, worker: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline:
            assert worker.poll() is None, (self.logs / f"{stage}.log").read_text()[-3000:]
            with suppress(URLError, OSError), urllib.request.urlopen(self.url(stage, "/readyz"), timeout=2):
                return
            time.sleep(0.2)
        raise AssertionError(f"{stage} is not ready: {(self.logs / f'{stage}.log').read_text()[-3000:]}")

    def metrics(self, stage: str) -> str:
        with urllib.request.urlopen(self.url(stage, "/metrics"), timeout=5) as answer:
            text: bytes = answer.read()
        return text.decode()

    def topic(self, name: str) -> str:
        return self.settings.kafka.names.topic(name)

    def stop(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
        for worker in self.workers:
            try:
                worker.wait(timeout=30)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()

    def drop(self) -> None:
        """Stop the workers and take away what they left on the servers."""
        self.drop_topics()
        stores = self.settings.stores
        opensearch = OpenSearch(stores.opensearch.url)
        if indexes := list(opensearch.indices.get(index=f"{stores.prefix}*")):
            opensearch.indices.delete(index=",".join(indexes))
        opensearch.close()
        milvus = MilvusClient(stores.milvus.uri)
        for name in milvus.list_collections():
            if name.startswith(stores.prefix):
                milvus.drop_collection(name)
        milvus.close()

    def drop_topics(self) -> None:
        """Stop the workers, and take away their topics alone: what they have in the stores is somebody else's, too."""
        self.stop()
        kafka = self.settings.kafka
        admin = AdminClient(kafka.confluent())
        ours = [name for name in admin.list_topics(timeout=10).topics if name.startswith(kafka.topic_prefix)]
        for future in admin.delete_topics(ours).values() if ours else ():
            with suppress(KafkaException):
                future.result(30)


def deploy(servers: Settings, folder: Path, **extra: str) -> Deployment:
    """Topics, groups and stores under names that nobody else has."""
    unique = f"t{uuid4().hex[:8]}"
    own = {
        "HEADRACE_KAFKA__BOOTSTRAP_SERVERS": servers.kafka.bootstrap_servers,
        "HEADRACE_KAFKA__TOPIC_PREFIX": f"{unique}.",
        "HEADRACE_KAFKA__GROUP_PREFIX": f"{unique}-",
        "HEADRACE_KAFKA__PARTITIONS": str(PARTITIONS),
        "HEADRACE_STORES__PREFIX": f"{unique}_",
        "HEADRACE_STORES__OPENSEARCH__URL": servers.stores.opensearch.url,
        "HEADRACE_STORES__MILVUS__URI": servers.stores.milvus.uri,
        "HEADRACE_WORKER__PORT": str(free_ports(len(GROUPS))),
        "HEADRACE_WORKER__DATA_DIR": str(folder / "data"),
        "HEADRACE_LOG__FORMAT": "json",
    } | extra
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setenv(name, value)
        settings = load_settings()
    kafka = settings.kafka
    create_topics(kafka.confluent(), kafka.names, partitions=PARTITIONS, replication=1)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    return Deployment(environment=dict(os.environ) | own, logs=folder / "logs", settings=settings)


def free_ports(count: int) -> int:
    """The first of so many consecutive ports that nobody listens at."""
    for first in range(21_000 + os.getpid() % 500 * 10, 32_000, count):
        with suppress(OSError):
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
    raise AssertionError("no free ports")


@pytest.fixture(scope="session")
def pipeline(servers: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """All six workers, ready. Tests share it and keep apart by tenants and doc_ids."""
    # Vectors are reused where a GPU embeds, too: the same tests for every machine.
    deployment = deploy(servers, tmp_path_factory.mktemp("pipeline"), HEADRACE_ENCODER__REUSE="always")
    try:
        deployment.start_all()
        yield deployment
    finally:
        deployment.drop()


@pytest.fixture
def deployment(servers: Settings, tmp_path: Path) -> Iterator[Deployment]:
    """Topics and stores of one test alone, without workers."""
    made = deploy(servers, tmp_path)
    try:
        yield made
    finally:
        made.drop()
