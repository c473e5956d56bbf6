"""Workers with topics, groups and stores of their own, on the servers of the settings; all of it goes at the end."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from confluent_kafka.admin import AdminClient
from opensearchpy import OpenSearch
from prometheus_client.parser import text_string_to_metric_families
from pymilvus import MilvusClient

from headrace.cli.console import complain
from headrace.cli.local import worker_url
from headrace.cli.publishing import Tally
from headrace.cli.readiness import readiness, scrape
from headrace.cli.worker import command
from headrace.config import Settings, load_settings
from topics import GROUPS
from topics.provisioning import create_topics

READY_WITHIN_S = 300.0
STOPS_WITHIN_S = 60.0
PORTS = iter(range(23_000 + os.getpid() % 500 * 10, 32_000, len(GROUPS)))
STATIC = {"HEADRACE_ENCODER__BACKEND": "static"}

Samples = list[tuple[str, dict[str, str], float]]


class Silent:
    """A publication's Watch that tells of problems alone."""

    def changed(self, tally: Tally) -> None: ...

    def problem(self, where: str, why: str) -> None:
        complain(f"{where}: {why}")


@dataclass
class Deployment:
    settings: Settings
    environment: Mapping[str, str]
    """What another process must have to load these settings."""
    folder: Path
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, stages: Sequence[str] = GROUPS) -> None:
        """Start one process a stage."""
        for stage in stages:
            with self.log(stage).open("ab") as log:
                self.workers[stage] = subprocess.Popen(command(stage), stdout=log, stderr=log, env=self.environment)

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
        return samples(scrape(worker_url(self.settings, stage, "/metrics")) or "")

    def memory(self, stage: str) -> tuple[int, int]:
        """Resident bytes of the process, now and at their peak."""
        status = Path(f"/proc/{self.workers[stage].pid}/status").read_text()
        kib = dict(line.split(":", 1) for line in status.splitlines())
        now, peak = (int(kib[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return now, peak

    def cpu_seconds(self, stages: Sequence[str] | None = None) -> float:
        """What these workers (None: all) have used so far, servers not counted."""
        workers = [self.workers[stage] for stage in (self.workers if stages is None else stages)]
        stats = (Path(f"/proc/{worker.pid}/stat").read_text() for worker in workers)
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
def deployment(environment: Mapping[str, str] | None = None) -> Iterator[Deployment]:
    """`environment` has settings of this deployment beside those of the process, as HEADRACE_* variables."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # Else nothing would be cleaned up.
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        name = f"b{uuid4().hex[:8]}"
        own = {
            **(environment or {}),
            "HEADRACE_KAFKA__TOPIC_PREFIX": f"{name}.",
            "HEADRACE_KAFKA__GROUP_PREFIX": f"{name}-",
            "HEADRACE_STORES__PREFIX": f"{name}_",
            "HEADRACE_WORKER__PORT": str(_free_ports(len(GROUPS))),
            "HEADRACE_WORKER__DATA_DIR": f"{folder}/data",
        }
        settings = _settings(own)
        kafka = settings.kafka
        create_topics(kafka.confluent(), kafka.names, partitions=kafka.partitions, replication=1)
        deployed = Deployment(settings, {**os.environ, **own}, Path(folder))
        try:
            yield deployed
        finally:
            deployed.stop()
            _delete(settings)


def machine_cpu_seconds() -> float:
    """What all processes of this machine have used since it started."""
    name, user, nice, system, _idle, _iowait, irq, softirq, *_ = Path("/proc/stat").read_text().split(maxsplit=8)
    assert name == "cpu"
    return sum(map(int, (user, nice, system, irq, softirq))) / os.sysconf("SC_CLK_TCK")


def samples(page: str) -> Samples:
    """Of a worker's /metrics."""
    families = text_string_to_metric_families(page)
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def value(samples: Samples, name: str, **labels: str) -> float:
    """The sum of what has this name and these labels."""
    return sum(number for found, has, number in samples if found == name and labels.items() <= has.items())


def _settings(own: Mapping[str, str]) -> Settings:
    outer = dict(os.environ)
    os.environ |= own
    try:
        return load_settings()
    finally:
        os.environ.clear()
        os.environ |= outer


def _delete(settings: Settings) -> None:
    """All that has this deployment's prefixes, whoever made it."""
    kafka, prefix = settings.kafka, settings.stores.prefix
    admin = AdminClient(kafka.confluent())
    topics = [topic for topic in admin.list_topics().topics if topic.startswith(kafka.topic_prefix)]
    groups = [group.group_id for group in admin.list_consumer_groups().result().valid]
    groups = [group for group in groups if group.startswith(kafka.group_prefix)]
    futures = [*admin.delete_topics(topics).values()]
    futures += admin.delete_consumer_groups(groups).values() if groups else []
    for future in futures:
        with suppress(Exception):  # A group whose last member is about to leave isn't empty yet.
            future.result()
    opensearch = OpenSearch(settings.stores.opensearch.url, timeout=60)
    for index in opensearch.indices.get_alias(index=f"{prefix}*"):
        opensearch.indices.delete(index=index)
    milvus = MilvusClient(settings.stores.milvus.uri)
    for collection in milvus.list_collections():
        if collection.startswith(prefix):
            milvus.drop_collection(collection)


def _free_ports(count: int) -> int:
    """The first of so many consecutive ports that nobody listens at, and that were not given out before."""
    for first in PORTS:
        with suppress(OSError):
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
    sys.exit("no free ports")
