"""Kafka as a local process: one KRaft node, broker and controller in one."""

import base64
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path

from headrace.errors import Misconfigured
from headrace.localstack.java import Java
from headrace.localstack.settings import LocalStackSettings

HOST = "127.0.0.1"
FORMAT_TIMEOUT_S = 60
MESSAGE_MAX_BYTES = 11 * 1024 * 1024
"""Above the largest topic's own limit; every topic sets its own `max.message.bytes`."""

LOG4J2 = """\
status = error
appender.stdout.type = Console
appender.stdout.name = STDOUT
appender.stdout.layout.type = PatternLayout
appender.stdout.layout.pattern = %d{ISO8601} %-5p %c{1}: %m%n
rootLogger.level = info
rootLogger.appenderRef.stdout.ref = STDOUT
logger.config.name = org.apache.kafka.common.config.AbstractConfig
logger.config.level = warn
logger.loader.name = org.apache.kafka.metadata
logger.loader.level = warn
"""


def server_properties(settings: LocalStackSettings) -> dict[str, object]:
    controller_port = settings.kafka_port + 1
    return {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@{HOST}:{controller_port}",
        "listeners": f"PLAINTEXT://{HOST}:{settings.kafka_port},CONTROLLER://{HOST}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{settings.kafka_port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        # A misspelt topic must be an error, not a new topic.
        "auto.create.topics.enable": "false",
        "message.max.bytes": MESSAGE_MAX_BYTES,
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 2,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        "log.cleaner.enable": "true",
        # The default keeps 128 MB for the cleaner's map alone.
        "log.cleaner.dedupe.buffer.size": 33554432,
    }


def prepare(settings: LocalStackSettings, folder: Path, java: Java, jars: Path) -> list[str]:
    """Write the configuration, format the storage unless it is, and return the command that runs the server."""
    return prepare_node(server_properties(settings), folder, java, jars, heap=settings.kafka_heap)


def prepare_node(server: Mapping[str, object], folder: Path, java: Java, jars: Path, *, heap: str) -> list[str]:
    """As `prepare`, for a node with properties of its own; its storage lies in the folder, too."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "data"
    properties = folder / "server.properties"
    written = {**server, "log.dirs": data}
    properties.write_text("".join(f"{key}={value}\n" for key, value in written.items()))
    log4j2 = folder / "log4j2.properties"
    log4j2.write_text(LOG4J2)
    base = [str(java.executable), f"-Dlog4j2.configurationFile={log4j2}", "-cp", f"{jars}/*"]
    if not (data / "meta.properties").is_file():
        _format(base, properties)
    machine = [f"-Xmx{heap}", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError"]
    return [base[0], *machine, *base[1:], "kafka.Kafka", str(properties)]


def _format(base: list[str], properties: Path) -> None:
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    # In one word: an id may begin with a dash, and would be taken for an option.
    command = [*base, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}", "-c", str(properties)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=FORMAT_TIMEOUT_S, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise Misconfigured(f"Kafka could not format its storage in {properties.parent}: {said}")
