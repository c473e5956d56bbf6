"""A broker that says no, told apart from one that is away.

librdkafka tries again after either, reports both as "no broker answers", and calls an expired certificate, one of
another host and one of an unknown authority by one name. So when nobody answers, a connection of our own asks why.
"""

import contextlib
import re
import socket
import ssl
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ClusterMetadata  # type: ignore[attr-defined]
from pydantic import SecretStr

from headrace.errors import HeadraceError, Misconfigured, Transient
from headrace.tls import TlsSettings, shake_hands
from topics.settings import TLS_SECTION

SERVICE = "kafka"
FIRST_TRY_S = 1.0
"""A broker that hasn't answered after so long is asked why."""
LOOK_S = 2.0
TICK_S = 0.4
DEFAULT_PORT = 9092
_CREDENTIALS = {KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED}


def check_token(kafka: dict[str, Any]) -> None:
    """Raises Misconfigured where the issuer of tokens refuses, and Transient where it is away: a client that is made
    then waits for ten seconds and doesn't say why.
    """
    if "oauth_cb" in kafka:
        kafka["oauth_cb"]("")


def metadata(
    client: AdminClient | Consumer, kafka: dict[str, Any], topic: str | None = None, *, timeout_s: float
) -> ClusterMetadata:
    """Raises Misconfigured when a broker refuses, and Transient when none answers."""
    first = min(FIRST_TRY_S, timeout_s / 2)
    try:
        return _list(client, topic, first)
    except KafkaException as exc:
        why = no_answer(kafka, exc.args[0])
        if isinstance(why, Misconfigured):
            raise why from exc
    try:
        return _list(client, topic, timeout_s - first)
    except KafkaException:
        raise why from None


def no_answer(kafka: dict[str, Any], error: KafkaError) -> HeadraceError:
    """What it means that no broker answered: Misconfigured, naming what to set, where one refuses; else Transient."""
    reason = error.str()
    try:
        check_token(kafka)
        for server in kafka["bootstrap.servers"].split(","):
            reason = _look_at(server.strip(), kafka)
        if kafka["security.protocol"].startswith("SASL"):
            _authenticate(kafka)
    except HeadraceError as exc:
        return exc
    return Transient(SERVICE, f"no broker answers at {kafka['bootstrap.servers']}: {reason}")


def until_let_in_again(why: HeadraceError) -> Transient:
    """For a process that was let in before: it waits, and loses nothing."""
    return why if isinstance(why, Transient) else Transient(SERVICE, str(why).removeprefix(f"{SERVICE}: "))


def _list(client: Any, topic: str | None, timeout_s: float) -> ClusterMetadata:
    found: ClusterMetadata = (
        client.list_topics(topic, timeout=timeout_s) if topic else client.list_topics(timeout=timeout_s)
    )
    return found


def _look_at(server: str, kafka: dict[str, Any]) -> str:
    """Why this server gives no answer, as far as that can be seen. Raises Misconfigured where one refuses the other."""
    address, protocol = urlsplit(f"//{server}"), kafka["security.protocol"]
    host, port = address.hostname or "", address.port or DEFAULT_PORT
    try:
        if protocol.endswith("SSL"):
            shake_hands(host, port, _tls(kafka), TLS_SECTION, timeout_s=LOOK_S)
        elif _speaks_tls(host, port):
            raise Misconfigured(
                f"kafka: {server} speaks TLS; set kafka.security_protocol to {protocol.replace('PLAINTEXT', 'SSL')}"
            )
    except ssl.SSLError as exc:
        return f"{server} ends the TLS handshake; is it a listener without TLS? ({exc.reason or exc})"
    except OSError as exc:
        return f"{server}: {exc.strerror or exc}"
    return f"{server} is there; does kafka.security_protocol {protocol} fit its listener?"


def _speaks_tls(host: str, port: int) -> bool:
    """Whether it greets as a server with TLS does. Nothing is said to it, so nothing needs to be verified."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection((host, port), timeout=LOOK_S) as plain:
        try:
            context.wrap_socket(plain, server_hostname=host).close()
        except (ssl.SSLError, OSError):
            return False
    return True


def _authenticate(kafka: dict[str, Any]) -> None:
    """Raises Misconfigured where the brokers don't take the credentials."""
    said: list[KafkaError] = []
    asking: dict[str, Any] = {**kafka, "log_level": 0, "error_cb": said.append}
    admin = AdminClient(asking)
    give_up = time.monotonic() + LOOK_S
    while not said and time.monotonic() < give_up:
        with contextlib.suppress(KafkaException):
            admin.list_topics(timeout=TICK_S)
        admin.poll(0)
    for error in said:
        if error.code() in _CREDENTIALS:
            mechanism = kafka["sasl.mechanism"]
            wanted = "kafka.oauth" if mechanism == "OAUTHBEARER" else "kafka.sasl_username and kafka.sasl_password"
            raise Misconfigured(
                f"kafka: {kafka['bootstrap.servers']} refuses these credentials; set {wanted}, or another"
                f" kafka.sasl_mechanism than {mechanism} ({_said(error)})"
            )


def _said(error: KafkaError) -> str:
    """Without which connection it was, and when."""
    return re.sub(r"^\w+://\S+: | \(after [^)]*\)$", "", error.str())


def _tls(kafka: dict[str, Any]) -> TlsSettings:
    named = {name: kafka.get(f"ssl.{name}.location") for name in ("ca", "certificate", "key")}
    password = kafka.get("ssl.key.password")
    return TlsSettings(
        **{name: Path(path) for name, path in named.items() if path is not None},
        key_password=SecretStr(password) if password else None,
    )
