"""Workers with topics, groups and stores of their own, on the servers of the settings; all of it goes at the end."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from confluent_kafka.admin import AdminClient
from opensearchpy import OpenSearch
from prometheus_client.parser import text_string_to_metric_families
from pymilvus import MilvusClient

from headrace.cli.local import worker_url
from headrace.cli.readiness import readiness, scrape
from headrace.cli.worker import command
from headrace.config import Settings, load_settings
from topics import BY_NAME, GROUPS
from topics.provisioning import create_topics

READY_WITHIN_S = 300.0
STOPS_WITHIN_S = 60.0

Samples = list[tuple[str, dict[str, str], float]]


@dataclass
class Deployment:
    settings: Settings
    folder: Path
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, stages: Sequence[str] = GROUPS) -> None:
        """Start one process a stage."""
        for stage in stages:
            with self.log(stage).open("ab") as log:
                self.workers[stage] = subprocess.Popen(command(stage), stdout=log, stderr=log)

    def log(self, stage: str) -> Path:
        return self.folder / f"{stage}.log"

    def wait(self, stages: Sequence[str] = GROUPS, path: str = "/readyz") -> None:
        """Return when each answers that it is well."""
        give_up = time.monotonic() + READY_WITHIN_S
        for stage in stages:
            while not readiness(worker_url(self.settings, stage, path))[0]:
                if self.workers[stage].poll() is not None or time.monotonic() > give_up:
                    sys.exit(f"{stage} does not come up:\n{self.log(stage).read_text()[-3000:]}")
                time.sleep(0.1)

    def metrics(self, stage: str) -> Samples:
        page = scrape(worker_url(self.settings, stage, "/metrics")) or ""
        families = text_string_to_metric_families(page)
        return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]

    def memory(self, stage: str) -> tuple[int, int]:
        """Resident bytes of the process, now and at their peak."""
        status = Path(f"/proc/{self.workers[stage].pid}/status").read_text()
        kib = dict(line.split(":", 1) for line in status.splitlines())
        now, peak = (int(kib[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return now, peak

    def cpu_seconds(self) -> float:
        """What all workers together have used so far, servers not counted."""
        stats = (Path(f"/proc/{worker.pid}/stat").read_text() for worker in self.workers.values())
        # The name in brackets may hold spaces; user and system time are the 12th and 13th field behind it.
        ticks = (sum(map(int, stat.rpartition(")")[2].split()[11:13])) for stat in stats)
        return sum(ticks) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        for worker in self.workers.values():
            worker.send_signal(signal.SIGTERM)
        for worker in self.workers.values():
            try:
                worker.wait(STOPS_WITHIN_S)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        self.workers.clear()


@contextmanager
def deployment() -> Iterator[Deployment]:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # Else nothing would be cleaned up.
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        name = f"b{uuid4().hex[:8]}"
        os.environ |= {
            "HEADRACE_KAFKA__TOPIC_PREFIX": f"{name}.",
            "HEADRACE_KAFKA__GROUP_PREFIX": f"{name}-",
            "HEADRACE_STORES__PREFIX": f"{name}_",
            "HEADRACE_WORKER__PORT": str(_free_ports(len(GROUPS))),
            "HEADRACE_WORKER__DATA_DIR": f"{folder}/data",
        }
        settings = load_settings()
        kafka = settings.kafka
        create_topics(kafka.confluent(), kafka.names, partitions=kafka.partitions, replication=1)
        deployed = Deployment(settings, Path(folder))
        try:
            yield deployed
        finally:
            deployed.stop()
            _delete(settings)


def value(samples: Samples, name: str, **labels: str) -> float:
    """The sum of what has this name and these labels."""
    return sum(number for found, has, number in samples if found == name and labels.items() <= has.items())


def _delete(settings: Settings) -> None:
    kafka, prefix = settings.kafka, settings.stores.prefix
    admin = AdminClient(kafka.confluent())
    futures = [*admin.delete_topics([kafka.names.topic(name) for name in BY_NAME]).values()]
    futures += admin.delete_consumer_groups([kafka.names.group(stage) for stage in GROUPS]).values()
    for future in futures:
        with suppress(Exception):  # A stage that never ran has no group.
            future.result()
    opensearch = OpenSearch(settings.stores.opensearch.url, timeout=60)
    for index in opensearch.indices.get_alias(index=f"{prefix}*"):
        opensearch.indices.delete(index=index)
    milvus = MilvusClient(settings.stores.milvus.uri)
    for collection in milvus.list_collections():
        if collection.startswith(prefix):
            milvus.drop_collection(collection)


def _free_ports(count: int) -> int:
    """The first of so many consecutive ports that nobody listens at."""
    for first in range(23_000 + os.getpid() % 500 * 10, 32_000, count):
        with suppress(OSError):
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
    sys.exit("no free ports")
