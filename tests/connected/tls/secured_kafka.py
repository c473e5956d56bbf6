"""A Kafka of the tests' own, with a listener for each way to be let in and for each way to be refused."""

import json
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from headrace.config import load_settings
from headrace.localstack import kafka
from headrace.localstack.jars import jars
from headrace.localstack.java import find_java
from tests.connected.stores.proxy import Proxy
from tests.fakes.certificates import Authority, Pair
from tests.fakes.issuer import AUDIENCE, ISSUER, Issuer

USER, PASSWORD = "headrace", "its password, with 'quotes'"
LISTENERS = ("PLAIN", "MTLS", "SASL", "EXPIRED", "ELSEWHERE", "AGEING")
"""`MTLS` wants a client certificate, `SASL` a user; the certificates of `EXPIRED` and `ELSEWHERE` are no good.
`AGEING` is reached through a proxy, and its certificate can be changed.
"""
UP_WITHIN_S = 60.0
REAUTHENTICATE_MS = 3000


@dataclass(frozen=True)
class SecuredKafka:
    ports: Mapping[str, int]
    ageing: Proxy
    authority: Authority
    client: Pair
    issuer: Issuer

    def address(self, listener: str, host: str = "127.0.0.1") -> str:
        return f"{host}:{self.ageing.port if listener == 'AGEING' else self.ports[listener]}"

    def replace_certificate(self, *, expired: bool) -> None:
        """Of `AGEING`, whose connections are cut; those that follow are shown the new one."""
        chain, key = self.authority.sign("broker-ageing", expired=expired).pem
        config = {"certificate.chain": chain, "key": key}
        entries = [
            ConfigEntry(
                f"listener.name.ageing.ssl.keystore.{name}",
                value.replace("\\n", "\n"),
                incremental_operation=AlterConfigOpType.SET,
            )
            for name, value in config.items()
        ]
        admin = AdminClient({"bootstrap.servers": self.address("PLAIN")})
        broker = ConfigResource(ConfigResource.Type.BROKER, "1", incremental_configs=entries)
        for future in admin.incremental_alter_configs([broker]).values():
            future.result(10)
        self.ageing.cut()
        self.ageing.up()


@contextmanager
def secured_kafka(folder: Path, ports: list[int], issuer: Issuer) -> Iterator[SecuredKafka]:
    authority = Authority(folder, "authority")
    listening = dict(zip(LISTENERS, ports[1:], strict=True))
    ageing = Proxy(f"ssl://127.0.0.1:{listening['AGEING']}")
    made = SecuredKafka(listening, ageing, authority, authority.sign("client"), issuer)
    key_set = folder / "jwks.json"
    key_set.write_text(json.dumps({"keys": [*issuer.published.values()]}))
    settings = load_settings().local
    root = settings.root / "jars"
    command = kafka.prepare_node(
        _properties(made, ports[0], key_set),
        folder / "kafka",
        find_java(17, needed_by="Kafka"),
        jars("kafka", root, lambda _: None),
        heap="256m",
    )
    command.insert(1, f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={key_set.as_uri()}")
    with (folder / "kafka.log").open("wb") as log:
        broker = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait(broker, folder / "kafka.log", made)
        yield made
    finally:
        broker.kill()
        broker.wait()
        ageing.cut()


def _properties(made: SecuredKafka, controller: int, key_set: Path) -> dict[str, Any]:
    listeners = {name: f"{name}://127.0.0.1:{port}" for name, port in made.ports.items()}
    certificates = {
        "mtls": made.authority.sign("broker"),
        "sasl": made.authority.sign("broker-sasl"),
        "expired": made.authority.sign("broker-expired", expired=True),
        "elsewhere": made.authority.sign("broker-elsewhere", hosts=("kafka.example",)),
        "ageing": made.authority.sign("broker-ageing"),
    }
    properties: dict[str, Any] = kafka.server_properties(load_settings().local) | {
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listeners": ",".join([*listeners.values(), f"CONTROLLER://127.0.0.1:{controller}"]),
        "advertised.listeners": ",".join(f"{name}://{made.address(name)}" for name in listeners),
        "inter.broker.listener.name": "PLAIN",
        "listener.security.protocol.map": (
            "CONTROLLER:PLAINTEXT,PLAIN:PLAINTEXT,MTLS:SSL,SASL:SASL_SSL,EXPIRED:SSL,ELSEWHERE:SSL,AGEING:SSL"
        ),
        "listener.name.mtls.ssl.client.auth": "required",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
        "listener.name.sasl.plain.sasl.jaas.config": (
            f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
        ),
        "listener.name.sasl.oauthbearer.sasl.jaas.config": (
            "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;"
        ),
        # Connections end with their tokens, or after so long: a client that doesn't come back with another is out.
        "listener.name.sasl.oauthbearer.connections.max.reauth.ms": REAUTHENTICATE_MS,
        "listener.name.sasl.oauthbearer.sasl.server.callback.handler.class": (
            "org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallbackHandler"
        ),
        # Without it Kafka 4.1.1 checks neither a token's signature nor who it is for.
        "sasl.oauthbearer.jwt.validator.class": "org.apache.kafka.common.security.oauthbearer.BrokerJwtValidator",
        "sasl.oauthbearer.jwks.endpoint.url": key_set.as_uri(),
        "sasl.oauthbearer.expected.audience": AUDIENCE,
        "sasl.oauthbearer.expected.issuer": ISSUER,
    }
    for digest in (256, 512):
        properties[f"listener.name.sasl.scram-sha-{digest}.sasl.jaas.config"] = (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        )
    trusted = made.authority.ca.read_text().replace("\n", "\\n")
    for name, pair in certificates.items():
        chain, key = pair.pem
        properties |= {
            f"listener.name.{name}.ssl.keystore.type": "PEM",
            f"listener.name.{name}.ssl.keystore.certificate.chain": chain,
            f"listener.name.{name}.ssl.keystore.key": key,
            f"listener.name.{name}.ssl.truststore.type": "PEM",
            f"listener.name.{name}.ssl.truststore.certificates": trusted,
        }
    return properties


def _wait(broker: "subprocess.Popen[bytes]", log: Path, made: SecuredKafka) -> None:
    """Until it answers and knows its user."""
    give_up = time.monotonic() + UP_WITHIN_S
    while time.monotonic() < give_up:
        assert broker.poll() is None, log.read_text()[-3000:]
        with suppress(OSError), socket.create_connection(("127.0.0.1", made.ports["PLAIN"]), timeout=1):
            break
        time.sleep(0.1)
    admin = AdminClient({"bootstrap.servers": made.address("PLAIN"), "log_level": 0})
    for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
        known = UserScramCredentialUpsertion(USER, ScramCredentialInfo(mechanism, 4096), PASSWORD.encode())
        while True:
            try:
                for future in admin.alter_user_scram_credentials([known]).values():
                    future.result(10)
                break
            except KafkaException:
                assert time.monotonic() < give_up, log.read_text()[-3000:]
