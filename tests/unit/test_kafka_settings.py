"""How Kafka's settings fit together, and what becomes of them for confluent-kafka and for Faust."""

from pathlib import Path

import faust
import pytest

from agents.credentials import credentials
from tests.fakes.certificates import Authority
from topics.settings import KafkaSettings

USER = {"sasl_username": "headrace", "sasl_password": "a secret"}
OAUTH = {"token_url": "https://issuer.example/token", "client_id": "headrace", "client_secret": "a secret"}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"tls": {"ca": "ca.pem"}}, "kafka.tls needs security_protocol SSL or SASL_SSL, not PLAINTEXT"),
        ({"tls": {"ca": "ca.pem"}, "security_protocol": "SASL_PLAINTEXT", **USER}, "needs security_protocol SSL"),
        ({"security_protocol": "SSL", **USER}, "need security_protocol SASL_SSL"),
        ({"security_protocol": "SSL", "oauth": OAUTH}, "need security_protocol SASL_SSL"),
        ({"security_protocol": "SASL_SSL"}, "PLAIN needs sasl_username and sasl_password"),
        (
            {"security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-512", "sasl_username": "headrace"},
            "SCRAM-SHA-512 needs sasl_username and sasl_password",
        ),
        ({"security_protocol": "SASL_SSL", **USER, "oauth": OAUTH}, "takes no kafka.oauth"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER"}, "OAUTHBEARER needs kafka.oauth"),
        (
            {"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER", "oauth": OAUTH, **USER},
            "takes no sasl_username or sasl_password",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        KafkaSettings.model_validate(wrong)


@pytest.mark.parametrize("servers", ["", "broker:port", "broker:70000", "PLAINTEXT://broker:9092", "a:1,,b:2"])
def test_servers_are_hosts_and_ports(servers: str) -> None:
    with pytest.raises(ValueError, match=r"host:port|[Pp]ort"):
        KafkaSettings(bootstrap_servers=servers)


@pytest.mark.parametrize("servers", ["broker", "broker:9092", "a:1, b:2", "[::1]:9092", "10.0.0.1:9092"])
def test_one_server_is_enough_and_several_have_commas_between(servers: str) -> None:
    assert KafkaSettings(bootstrap_servers=servers).confluent()["bootstrap.servers"] == servers


def test_nothing_is_shown_to_an_open_broker() -> None:
    kafka = KafkaSettings()
    assert credentials(kafka) is None
    assert not [name for name in kafka.confluent() if name.startswith(("ssl.", "sasl."))]


def test_host_names_are_verified_without_any_setting(tmp_path: Path) -> None:
    kafka = KafkaSettings.model_validate(
        {"security_protocol": "SSL", "tls": {"ca": Authority(tmp_path, "authority").ca}}
    )
    assert kafka.confluent()["ssl.endpoint.identification.algorithm"] == "https"
    its = credentials(kafka)
    assert isinstance(its, faust.SSLCredentials)
    assert its.context.check_hostname


def test_both_clients_of_a_process_share_one_token() -> None:
    kafka = KafkaSettings.model_validate(
        {"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER", "oauth": OAUTH}
    )
    its = credentials(kafka)
    assert isinstance(its, faust.OAuthCredentials)
    assert its.oauth_cb._tokens is kafka.tokens()
    assert "sasl.username" not in kafka.confluent()


def test_secrets_are_hidden() -> None:
    kafka = KafkaSettings.model_validate({"security_protocol": "SASL_SSL", **USER})
    assert "a secret" not in repr(kafka)
