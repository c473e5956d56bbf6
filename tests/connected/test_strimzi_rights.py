"""Everybody gets along with the rights that k8s/components/strimzi gives them, and gets no further.

A Kafka of the test's own asks for them: each stage, producer, application and operator is the user that it is there.
"""

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pytest
import yaml
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from bench.keda import Trigger
from bench.replicas import Broker
from headrace.config import Settings, load_settings
from headrace.localstack import kafka
from headrace.localstack.jars import jars
from headrace.localstack.java import find_java
from tests.conftest import Deployment, deploy, free_ports
from topics.settings import KafkaSettings
from topics.table import DOCUMENT_STAGES, LANES

USERS = Path(__file__).parents[2] / "k8s" / "components" / "strimzi" / "users.yaml"
UP_WITHIN_S, WITHIN_S = 60.0, 120.0
TYPES = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactionalId": ResourceType.TRANSACTIONAL_ID,
}
PATTERNS = {"literal": ResourcePatternType.LITERAL, "prefix": ResourcePatternType.PREFIXED}
OPERATIONS = {
    "Describe": AclOperation.DESCRIBE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "Create": AclOperation.CREATE,
    "Delete": AclOperation.DELETE,
}

T = TypeVar("T")
As = Callable[[str], dict[str, str]]


def acls() -> dict[str, list[AclBinding]]:
    """By user."""
    users = [*yaml.safe_load_all(USERS.read_text())]
    return {
        user["metadata"]["name"]: [
            AclBinding(
                TYPES[acl["resource"]["type"]],
                acl["resource"]["name"],
                PATTERNS[acl["resource"]["patternType"]],
                f"User:{user['metadata']['name']}",
                "*",
                OPERATIONS[operation],
                AclPermissionType.ALLOW,
            )
            for acl in user["spec"]["authorization"]["acls"]
            for operation in acl["operations"]
        ]
        for user in users
    }


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Of a Kafka, for whom everything is allowed, and for these users."""
    rights, folder, first = acls(), tmp_path_factory.mktemp("kafka"), free_ports(3)
    known = " ".join(f'user_{name}="{name}"' for name in rights)
    properties = kafka.server_properties(load_settings().local) | {
        "controller.quorum.voters": f"1@127.0.0.1:{first}",
        "listeners": f"PLAIN://127.0.0.1:{first + 1},USERS://127.0.0.1:{first + 2},CONTROLLER://127.0.0.1:{first}",
        "advertised.listeners": f"PLAIN://127.0.0.1:{first + 1},USERS://127.0.0.1:{first + 2}",
        "inter.broker.listener.name": "PLAIN",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAIN:PLAINTEXT,USERS:SASL_PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.users.plain.sasl.jaas.config": (
            f"org.apache.kafka.common.security.plain.PlainLoginModule required {known};"
        ),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    root = load_settings().local.root / "jars"
    java = find_java(17, needed_by="Kafka")
    command = kafka.prepare_node(properties, folder / "node", java, jars("kafka", root, lambda _: None), heap="256m")
    log = folder / "kafka.log"
    with log.open("wb") as said:
        broker = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        give_up = time.monotonic() + UP_WITHIN_S
        while True:
            assert broker.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < give_up, log.read_text()[-3000:]
            with suppress(OSError), socket.create_connection(("127.0.0.1", first + 1), timeout=1):
                break
            time.sleep(0.1)
        admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{first + 1}"})
        for future in admin.create_acls([binding for its in rights.values() for binding in its]).values():
            future.result(30)
        yield first + 1, first + 2
    finally:
        broker.kill()
        broker.wait()


@pytest.fixture(scope="module")
def user(ports: tuple[int, int]) -> As:
    """The settings by which somebody is this user."""
    return lambda name: {
        "HEADRACE_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{ports[1]}",
        "HEADRACE_KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "HEADRACE_KAFKA__SASL_MECHANISM": "PLAIN",
        "HEADRACE_KAFKA__SASL_USERNAME": name,
        "HEADRACE_KAFKA__SASL_PASSWORD": name,
    }


@pytest.fixture(scope="module")
def pipeline(
    servers: Settings, ports: tuple[int, int], user: As, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    made = deploy(
        servers,
        tmp_path_factory.mktemp("pipeline"),
        HEADRACE_KAFKA__BOOTSTRAP_SERVERS=f"127.0.0.1:{ports[0]}",
        HEADRACE_KAFKA__TOPIC_PREFIX="",
        HEADRACE_KAFKA__GROUP_PREFIX="headrace-",
        HEADRACE_ENCODER__BACKEND="static",
        OMP_NUM_THREADS="1",
    )
    try:
        for stage in (*DOCUMENT_STAGES, "query"):
            made.wait_ready(stage, made.start(stage, environment=user(f"headrace-{stage}")))
        yield made
    finally:
        made.drop()


def ran(pipeline: Deployment, who: dict[str, str], *arguments: str, stdin: bytes = b"") -> str:
    done = subprocess.run(
        pipeline.command(*arguments),
        env=pipeline.environment | who,
        input=stdin,
        capture_output=True,
        timeout=WITHIN_S,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said.decode()
    return said.decode()


def test_a_producer_publishes_and_an_application_asks(pipeline: Deployment, user: As) -> None:
    published = ("publish", "-", "--doc-id", "mill", "--wait")
    ran(pipeline, user("headrace-producer"), *published, stdin=b"Water turns the wheel.")
    assert "Water" in ran(pipeline, user("headrace-app"), "ask", "What turns the wheel?", "--search")


def test_an_operator_looks_repairs_and_replays(pipeline: Deployment, user: As) -> None:
    operator = user("headrace-operator")
    ran(pipeline, operator, "publish", "-", "--doc-id", "race", "--wait", stdin=b"The race leads water to the wheel.")
    refused = Producer({"bootstrap.servers": pipeline.settings.kafka.bootstrap_servers})
    refused.produce("documents.raw", b"no JSON", b"default/broken")
    assert refused.flush(30) == 0
    letters = until(lambda: json.loads(ran(pipeline, operator, "dead", "list", "--json")))
    assert letters
    ran(pipeline, operator, "dead", "replay", "--all", "--yes")
    until(lambda: json.loads(ran(pipeline, operator, "dead", "list", "--json")))
    ran(pipeline, operator, "dead", "drop", "--all", "--yes")
    ran(pipeline, operator, "topics", "create")
    for command in (["status"], ["top", "--once"], ["verify"], ["ask", "water", "--search"]):
        ran(pipeline, operator, *command)


def test_an_operator_makes_another_generation_beside_the_first_and_takes_it_away(
    pipeline: Deployment, user: As, tmp_path: Path
) -> None:
    operator = user("headrace-operator")
    ran(pipeline, operator, "publish", "-", "--doc-id", "sluice", "--wait", stdin=b"The sluice holds the water back.")
    encoder = tmp_path / "new.toml"
    encoder.write_text('[encoder]\nbackend = "static"\ncontext = "title_headings"\n')
    making = ("reindex", "--encoder-settings", str(encoder), "--no-workers", "--no-flip", "--yes")
    with (tmp_path / "reindex.log").open("wb") as log:
        running = subprocess.Popen(
            pipeline.command(*making), env=pipeline.environment | operator, stdout=log, stderr=log
        )
    second = {"HEADRACE_GENERATION__NAME": "2", "HEADRACE_ENCODER__CONTEXT": "title_headings"}
    port = str(free_ports(6))
    until(lambda: "documents.stored.g2" in AdminClient(pipeline.settings.kafka.confluent()).list_topics().topics)
    workers = [
        pipeline.start(
            stage,
            name=f"{stage}-g2",
            environment=user(f"headrace-{stage}") | second | {"HEADRACE_WORKER__PORT": port},
        )
        for stage in DOCUMENT_STAGES
    ]
    try:
        assert running.wait(WITHIN_S) == 0, (tmp_path / "reindex.log").read_text()
        keda = settings_of(user("headrace-keda"))
        for names in (keda.names, keda.of_generation("2").names):
            for stage in DOCUMENT_STAGES:
                for topic in (topic for lane in LANES for topic in names.read_by(stage, lane)):
                    assert Broker(keda).offsets(Trigger(topic=topic, group=names.group(stage)))
    finally:
        for process in (running, *workers):
            process.send_signal(signal.SIGTERM)
        codes = [worker.wait(60) for worker in workers]
    assert set(codes) == {0}
    ran(pipeline, operator, "reindex", "--status")
    ran(pipeline, operator, "reindex", "--drop", "2", "--yes")


@pytest.mark.parametrize(
    ("who", "topic"),
    [
        ("headrace-chunk", "documents.stored"),
        ("headrace-embed", "documents.dead.settled"),
        ("headrace-producer", "documents.events"),
        ("headrace-app", "documents.raw"),
        ("headrace-keda", "documents.raw"),
    ],
)
def test_nobody_writes_what_is_not_theirs(pipeline: Deployment, user: As, who: str, topic: str) -> None:
    config = settings_of(user(who)).confluent()
    told: list[object] = []
    producer = Producer({**config, "log_level": 0})
    with suppress(KafkaException):
        producer.produce(topic, b"x", on_delivery=lambda error, _: told.append(error and error.name()))
    producer.flush(30)
    assert told == ["TOPIC_AUTHORIZATION_FAILED"]


def settings_of(variables: dict[str, str]) -> KafkaSettings:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        return load_settings().kafka


def until(ask: Callable[[], T]) -> T:
    """What it says as soon as it says something."""
    give_up = time.monotonic() + WITHIN_S
    while not (said := ask()):
        assert time.monotonic() < give_up
        time.sleep(0.3)
    return said
