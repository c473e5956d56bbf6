"""A Kafka that is secured: every way in, for both clients, from one setting; and what each refusal says."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiokafka
import pytest
from confluent_kafka import Consumer, Producer
from cryptography.hazmat.primitives.asymmetric import rsa
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth
from headrace_client import Client, Document, KafkaRefused

from agents.worker import build_app, wait_for_topics
from headrace.cli.exits import Exit
from headrace.config import WorkerSettings, load_settings
from headrace.errors import Misconfigured, Transient
from tests.conftest import free_ports
from tests.connected.tls.secured_kafka import LISTENERS, PASSWORD, REAUTHENTICATE_MS, USER, SecuredKafka, secured_kafka
from tests.fakes.certificates import Authority
from tests.fakes.issuer import Issuer
from tests.fakes.token_endpoint import CLIENT_ID, CLIENT_SECRET, TokenEndpoint, token_endpoint
from topics.provisioning import create_topics, existing_topics
from topics.settings import KafkaSettings

ROOT = Path(__file__).parents[3]
WITHIN_S = 60.0
SOURCE, COPIES = "documents.stored", "documents.events"


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    keys = {kid: ("RS256", rsa.generate_private_key(65537, 2048)) for kid in ("rsa", "unknown")}
    issuer = Issuer(keys)
    del issuer.published["unknown"]
    first = free_ports(len(LISTENERS) + 1)
    with secured_kafka(
        tmp_path_factory.mktemp("kafka"), [*range(first, first + len(LISTENERS) + 1)], issuer
    ) as running:
        open_to_all = KafkaSettings(bootstrap_servers=running.address("PLAIN"))
        create_topics(open_to_all.confluent(), open_to_all.names, partitions=1, replication=1)
        yield running


@pytest.fixture(scope="module")
def endpoint(kafka: SecuredKafka) -> Iterator[TokenEndpoint]:
    with token_endpoint(kafka.issuer) as serving:
        yield serving


@pytest.fixture
def ways_in(kafka: SecuredKafka, endpoint: TokenEndpoint) -> Mapping[str, dict[str, str]]:
    """Variables of the environment for each way to be let in."""
    user = {"SASL_USERNAME": USER, "SASL_PASSWORD": PASSWORD}
    client = {"TLS__CERTIFICATE": str(kafka.client.certificate), "TLS__KEY": str(kafka.client.key)}
    hidden = kafka.authority.sign("client-with-a-password", key_password="open sesame")
    by_password = {
        "TLS__CERTIFICATE": str(hidden.certificate),
        "TLS__KEY": str(hidden.key),
        "TLS__KEY_PASSWORD": "open sesame",
    }
    oauth = {
        "OAUTH__TOKEN_URL": endpoint.url,
        "OAUTH__CLIENT_ID": CLIENT_ID,
        "OAUTH__CLIENT_SECRET": CLIENT_SECRET,
        "OAUTH__SCOPE": "kafka",
    }
    ways = {
        "mTLS": ("MTLS", client),
        "mTLS, the key with a password": ("MTLS", by_password),
        "TLS": ("AGEING", {}),
        "PLAIN": ("SASL", user),
        "SCRAM-SHA-256": ("SASL", user),
        "SCRAM-SHA-512": ("SASL", user),
        "OAUTHBEARER": ("SASL", oauth),
    }
    return {
        way: {
            "BOOTSTRAP_SERVERS": kafka.address(listener),
            "SECURITY_PROTOCOL": "SASL_SSL" if listener == "SASL" else "SSL",
            "TLS__CA": str(kafka.authority.ca),
            **({"SASL_MECHANISM": way} if listener == "SASL" else {}),
            **more,
        }
        for way, (listener, more) in ways.items()
    }


@pytest.fixture
def environment(tmp_path: Path) -> Callable[[Mapping[str, str]], dict[str, str]]:
    """A process's whole environment from what is set of Kafka."""

    def build(kafka: Mapping[str, str]) -> dict[str, str]:
        others = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_KAFKA__")}
        own = {
            "HEADRACE_WORKER__PORT": "0",
            "HEADRACE_WORKER__SESSION_TIMEOUT_S": "6",
            "HEADRACE_WORKER__DATA_DIR": str(tmp_path / "data"),
        }
        return others | own | {f"HEADRACE_KAFKA__{name}": value for name, value in kafka.items()}

    return build


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, str]], KafkaSettings]:
    def load(kafka: Mapping[str, str]) -> KafkaSettings:
        for name in [name for name in os.environ if name.startswith("HEADRACE_KAFKA__")]:
            monkeypatch.delenv(name)
        for name, value in kafka.items():
            monkeypatch.setenv(f"HEADRACE_KAFKA__{name}", value)
        return load_settings().kafka

    return load


WAYS = [
    "mTLS",
    "mTLS, the key with a password",
    "TLS",
    "PLAIN",
    "SCRAM-SHA-256",
    "SCRAM-SHA-512",
    "OAUTHBEARER",
]


def copies(kafka: SecuredKafka, wanted: set[bytes], worker: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until a copy worker has copied all of these."""
    reader = Consumer(
        {"bootstrap.servers": kafka.address("PLAIN"), "group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest"}
    )
    reader.subscribe([COPIES])
    give_up, seen = time.monotonic() + WITHIN_S, set[bytes]()
    while not wanted <= seen:
        assert worker.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < give_up, f"{len(wanted & seen)} of {len(wanted)}: {log.read_text()[-3000:]}"
        seen |= {message.value() or b"" for message in reader.consume(500, timeout=0.2) if message.error() is None}
    reader.close()


def send(config: dict[str, Any], values: set[bytes]) -> None:
    producer = Producer(config)
    for value in values:
        producer.produce(SOURCE, value, key=b"default/1")
    assert producer.flush(30) == 0


@pytest.mark.parametrize("way", WAYS)
def test_confluent_kafka_is_let_in(
    way: str, ways_in: Mapping[str, dict[str, str]], settings_of: Callable[[Mapping[str, str]], KafkaSettings]
) -> None:
    config = settings_of(ways_in[way]).confluent()
    assert SOURCE in existing_topics(config)
    value = uuid.uuid4().bytes
    send(config, {value})
    reader = Consumer(config | {"group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest"})
    reader.subscribe([SOURCE])
    give_up, seen = time.monotonic() + WITHIN_S, set[bytes | None]()
    while value not in seen:
        assert time.monotonic() < give_up
        seen |= {message.value() for message in reader.consume(100, timeout=0.2)}
    reader.close()


@pytest.mark.parametrize("way", WAYS)
async def test_faust_is_let_in_by_the_same_settings(
    way: str,
    ways_in: Mapping[str, dict[str, str]],
    settings_of: Callable[[Mapping[str, str]], KafkaSettings],
    tmp_path: Path,
) -> None:
    kafka = settings_of(ways_in[way])
    app = build_app("commit", kafka, WorkerSettings(data_dir=tmp_path))
    auth = credentials_to_aiokafka_auth(app.conf.broker_credentials, app.conf.ssl_context)
    assert auth["security_protocol"] == kafka.security_protocol
    async with aiokafka.AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, **auth) as producer:
        stored = await producer.send_and_wait(SOURCE, b"by aiokafka")
    reader = aiokafka.AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers, **auth)
    async with reader:
        place = aiokafka.TopicPartition(SOURCE, stored.partition)
        reader.assign([place])
        reader.seek(place, stored.offset)
        assert (await reader.getone()).value == b"by aiokafka"


def test_a_worker_goes_on_when_the_broker_ends_connections_with_their_tokens(
    kafka: SecuredKafka,
    endpoint: TokenEndpoint,
    ways_in: Mapping[str, dict[str, str]],
    environment: Callable[[Mapping[str, str]], dict[str, str]],
    settings_of: Callable[[Mapping[str, str]], KafkaSettings],
    tmp_path: Path,
) -> None:
    endpoint.life_s, asked = 2, len(endpoint.asked)
    log = tmp_path / "worker.log"
    config = settings_of({"BOOTSTRAP_SERVERS": kafka.address("PLAIN")}).confluent()
    group = {"GROUP_PREFIX": f"{uuid.uuid4().hex}-"}
    worker = start_copying(environment(ways_in["OAUTHBEARER"] | group), log)
    try:
        for _ in range(3):
            values = {uuid.uuid4().bytes for _ in range(100)}
            send(config, values)
            copies(kafka, values, worker, log)
            time.sleep(REAUTHENTICATE_MS / 2000)
        assert len(endpoint.asked) > asked + 1
    finally:
        endpoint.life_s = 300
        worker.terminate()
        assert worker.wait(30) == 0


def test_a_worker_waits_for_a_broker_whose_certificate_has_expired_and_loses_nothing(
    kafka: SecuredKafka,
    ways_in: Mapping[str, dict[str, str]],
    environment: Callable[[Mapping[str, str]], dict[str, str]],
    settings_of: Callable[[Mapping[str, str]], KafkaSettings],
    tmp_path: Path,
) -> None:
    log = tmp_path / "worker.log"
    config = settings_of({"BOOTSTRAP_SERVERS": kafka.address("PLAIN")}).confluent()
    group = {"GROUP_PREFIX": f"{uuid.uuid4().hex}-"}
    often = {"SLOW_S": "0.1", "HEADRACE_WORKER__STUCK_AFTER_S": "12"}  # It asks the brokers four times in that.
    worker = start_copying(environment(ways_in["TLS"] | group) | often, log)
    try:
        values = {uuid.uuid4().bytes for _ in range(1000)}
        send(config, values)
        copies(kafka, set(sorted(values)[:1]), worker, log)
        kafka.replace_certificate(expired=True)
        more = {uuid.uuid4().bytes for _ in range(100)}
        send(config, more)
        give_up = time.monotonic() + WITHIN_S
        while not any("waiting_for_service" in line and "has expired" in line for line in log.open()):
            assert worker.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < give_up, log.read_text()[-3000:]
            time.sleep(0.1)
        kafka.replace_certificate(expired=False)
        copies(kafka, values | more, worker, log)
    finally:
        kafka.replace_certificate(expired=False)
        worker.terminate()
        assert worker.wait(30) == 0


def test_the_client_says_why_it_is_refused(
    kafka: SecuredKafka,
    ways_in: Mapping[str, dict[str, str]],
    settings_of: Callable[[Mapping[str, str]], KafkaSettings],
) -> None:
    config = settings_of(ways_in["SCRAM-SHA-512"]).confluent()
    del config["log_level"]
    with Client(kafka.address("SASL"), kafka=config) as client:
        assert client.publish(Document(doc_id="a", version=1, text="Of headraces.")).result(30).offset >= 0
    with (
        Client(kafka.address("SASL"), kafka=config | {"sasl.password": "wrong"}) as client,
        pytest.raises(KafkaRefused, match="SASL authentication error"),
    ):
        client.ask("What is a headrace?", timeout_s=30).result()


def start_copying(environment: dict[str, str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.stages.copy_worker"], cwd=ROOT, env=environment, stdout=out, stderr=out
        )


REFUSALS: dict[str, tuple[str, str, dict[str, str]]] = {
    "another authority": ("TLS", "signed by nobody trusted; set kafka.tls.ca", {"TLS__CA": "other"}),
    "the machine's authorities alone": ("TLS", "signed by nobody trusted; set kafka.tls.ca", {"TLS__CA": ""}),
    "an expired certificate": ("TLS", "has expired", {"BOOTSTRAP_SERVERS": "EXPIRED"}),
    "another host's certificate": ("TLS", "is for another host name", {"BOOTSTRAP_SERVERS": "ELSEWHERE"}),
    "no client certificate": (
        "TLS",
        "does not accept this client; set kafka.tls.certificate and kafka.tls.key",
        {"BOOTSTRAP_SERVERS": "MTLS"},
    ),
    "no TLS": (
        "TLS",
        "speaks TLS; set kafka.security_protocol to SSL",
        {"SECURITY_PROTOCOL": "PLAINTEXT", "TLS__CA": ""},
    ),
    "another password": (
        "SCRAM-SHA-512",
        "refuses these credentials; set kafka.sasl_username and kafka.sasl_password",
        {"SASL_PASSWORD": "wrong"},
    ),
    "another password, PLAIN": ("PLAIN", "refuses these credentials", {"SASL_PASSWORD": "wrong"}),
    "another client secret": (
        "OAUTHBEARER",
        "gives no token; set kafka.oauth.client_id, client_secret and scope (status 401, invalid_client",
        {"OAUTH__CLIENT_SECRET": "wrong"},
    ),
}


@pytest.fixture
def refused(kafka: SecuredKafka, ways_in: Mapping[str, dict[str, str]], tmp_path: Path) -> Callable[[str], Any]:
    def build(name: str) -> dict[str, str]:
        way, _, changed = REFUSALS[name]
        known = {listener: kafka.address(listener) for listener in LISTENERS}
        if changed.get("TLS__CA") == "other":
            known["other"] = str(Authority(tmp_path, "other").ca)
        wanted = ways_in[way] | {setting: known.get(value, value) for setting, value in changed.items()}
        return {setting: value for setting, value in wanted.items() if value}

    return build


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_says_what_to_set(
    name: str, refused: Callable[[str], dict[str, str]], settings_of: Callable[[Mapping[str, str]], KafkaSettings]
) -> None:
    with pytest.raises(Misconfigured) as raised:
        wait_for_topics(settings_of(refused(name)), "commit")
    assert REFUSALS[name][1] in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_token_that_the_broker_does_not_take(
    endpoint: TokenEndpoint,
    ways_in: Mapping[str, dict[str, str]],
    settings_of: Callable[[Mapping[str, str]], KafkaSettings],
) -> None:
    endpoint.key = "unknown"
    try:
        with pytest.raises(Misconfigured, match=r"refuses these credentials; set kafka\.oauth"):
            existing_topics(settings_of(ways_in["OAUTHBEARER"] | {"OAUTH__SCOPE": "another"}).confluent())
    finally:
        endpoint.key = "rsa"


def test_an_issuer_that_is_away_is_waited_for(
    endpoint: TokenEndpoint,
    ways_in: Mapping[str, dict[str, str]],
    settings_of: Callable[[Mapping[str, str]], KafkaSettings],
) -> None:
    endpoint.status = 503
    try:
        with pytest.raises(Transient, match=r"no token from .*: status 503"):
            existing_topics(settings_of(ways_in["OAUTHBEARER"] | {"OAUTH__SCOPE": "a third"}).confluent())
    finally:
        endpoint.status = 200


def test_a_broker_that_is_away_is_not_a_refusal(
    kafka: SecuredKafka,
    ways_in: Mapping[str, dict[str, str]],
    settings_of: Callable[[Mapping[str, str]], KafkaSettings],
) -> None:
    nowhere = {"BOOTSTRAP_SERVERS": f"127.0.0.1:{free_ports(1)}"}
    for way in ("mTLS", "SCRAM-SHA-512"):
        with pytest.raises(Transient, match="Connection refused"):
            existing_topics(settings_of(ways_in[way] | nowhere).confluent(), timeout=2)


def test_commands_and_workers_end_with_one_line_and_their_exit_code(
    refused: Callable[[str], dict[str, str]], environment: Callable[[Mapping[str, str]], dict[str, str]], tmp_path: Path
) -> None:
    document = tmp_path / "document.txt"
    document.write_text("Of headraces.")
    commands = {
        ("topics", "show"): Exit.MISCONFIGURED,
        ("publish", str(document)): Exit.MISCONFIGURED,
        ("ask", "What is a headrace?"): Exit.MISCONFIGURED,
        ("worker", "commit"): Exit.MISCONFIGURED,
        ("status",): Exit.FAILED,  # It shows what else there is.
    }
    own = environment(refused("another password"))
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "headrace.cli", *command],
            cwd=ROOT,
            env=own,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    for (command, code), process in zip(commands.items(), started, strict=True):
        _, said = process.communicate(timeout=WITHIN_S)
        assert process.returncode == code, f"{command}: {said}"
        assert said.count("refuses these credentials") == 1, f"{command}: {said}"
        assert "Traceback" not in said
