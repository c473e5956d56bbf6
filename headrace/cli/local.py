"""The local stack as the settings describe it: its servers, and its six workers."""

import os
from collections.abc import Callable
from urllib.parse import urlsplit

from headrace.cli.generation_settings import not_live
from headrace.cli.generation_workers import GenerationWorkers
from headrace.cli.worker import command
from headrace.config import ENV_PREFIX, Settings
from headrace.errors import Misconfigured
from headrace.localstack.stack import LocalStack, WorkerProgram
from topics import GROUPS
from topics.generations import read_generations
from topics.provisioning import create_topics

READY_WITHIN_S = 300.0
"""Six workers load their libraries, and two of them the model, on perhaps two cores."""
LOOPBACK = {"127.0.0.1", "localhost"}
ANYWHERE = {"0.0.0.0", "::", ""}  # noqa: S104


def worker_url(settings: Settings, stage: str, path: str) -> str:
    """Where a stage's worker answers on this machine."""
    host = "127.0.0.1" if settings.worker.host in ANYWHERE else settings.worker.host
    return f"http://{host}:{settings.worker.port + GROUPS.index(stage)}{path}"


def worker_programs(settings: Settings) -> list[WorkerProgram]:
    """One process a stage, under a name that keeps its partitions over a restart."""
    # supervisord keeps the environment that it was started in: what is set now must be said.
    environment = {name: value for name, value in os.environ.items() if name.upper().startswith(ENV_PREFIX)}
    return [
        WorkerProgram(
            name=stage,
            command=command(stage),
            environment={**environment, f"{ENV_PREFIX}WORKER__INSTANCE_ID": f"{stage}-1"},
            health_url=worker_url(settings, stage, "/readyz"),
        )
        for stage in GROUPS
    ]


def bring_up(settings: Settings, *, servers_only: bool, say: Callable[[str], None]) -> None:
    """Start what doesn't run of the servers, the topics and the workers, and return when all are ready.

    Raises Misconfigured, in one line, for whatever keeps one of them from that.
    """
    require_local(settings)
    if not servers_only and settings.worker.port == 0:
        raise Misconfigured("worker.port is 0, but the local stack must know where its workers answer: set a port")
    stack = LocalStack(settings.local, say)
    stack.up()
    kafka = settings.kafka
    created = create_topics(kafka.confluent(), kafka.names, partitions=kafka.partitions, replication=kafka.replication)
    if created:
        say(f"created {len(created)} topics")
    if not servers_only:
        refuse_other_generation(settings)
        programs = worker_programs(settings)
        stack.start_workers(programs)
        stack.wait_ready(programs, READY_WITHIN_S)
        begun = GenerationWorkers(settings.worker.data_dir, settings.generation.name)
        if begun.running():
            begun.stop()
            say("stopped the workers that `headrace reindex` had started: these take over")


def refuse_other_generation(settings: Settings) -> None:
    """Its workers would leave the live generation without any, unless `headrace reindex` keeps those running here; one
    that was taken away they would make again. Raises Misconfigured, as `read_generations` does.
    """
    record = read_generations(settings.kafka)
    other = not_live(settings, record)
    is_kept = settings.generation.name in record.known
    if other is not None and not (is_kept and GenerationWorkers(settings.worker.data_dir, record.live).running()):
        raise Misconfigured(other)


def require_local(settings: Settings) -> None:
    """The workers must use the servers that are started here. Raises Misconfigured, naming the setting to change."""
    local = settings.local
    for setting, value, port, of in (
        ("kafka.bootstrap_servers", f"//{settings.kafka.bootstrap_servers}", local.kafka_port, "local.kafka_port"),
        ("stores.opensearch.url", settings.stores.opensearch.url, local.opensearch_port, "local.opensearch_port"),
        ("stores.milvus.uri", settings.stores.milvus.uri, local.milvus_port, "local.milvus_port"),
    ):
        if not is_at(value, port):
            raise Misconfigured(
                f"{setting} is {value.removeprefix('//')}, but the local stack's is at "
                f"127.0.0.1:{port} ({of}): make them agree"
            )


def is_local(settings: Settings) -> bool:
    """Whether the settings name the servers of the local stack."""
    try:
        require_local(settings)
    except Misconfigured:
        return False
    return True


def is_at(url: str, port: int) -> bool:
    """Whether a URL names this machine and this port."""
    try:
        parts = urlsplit(url)
        return parts.hostname in LOOPBACK and parts.port == port
    except ValueError:
        return False
