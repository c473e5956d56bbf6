"""Files of TLS and their settings: what can't work is refused with one line that names what to set."""

import ssl
from pathlib import Path

import pytest
from pydantic import SecretStr

from headrace.errors import Misconfigured
from headrace.tls import TlsSettings, refusal
from tests.fakes.certificates import Authority, Pair


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "authority")


@pytest.fixture(scope="module")
def client(authority: Authority) -> Pair:
    return authority.sign("client")


@pytest.fixture(scope="module")
def hidden(authority: Authority) -> Pair:
    return authority.sign("hidden", key_password="open sesame")


def test_host_names_and_certificates_are_always_verified(authority: Authority, client: Pair) -> None:
    for tls in (TlsSettings(), TlsSettings(ca=authority.ca, certificate=client.certificate, key=client.key)):
        context = tls.context("kafka.tls")
        assert context.check_hostname
        assert context.verify_mode is ssl.CERT_REQUIRED


def test_a_key_may_have_a_password(hidden: Pair) -> None:
    TlsSettings(certificate=hidden.certificate, key=hidden.key, key_password=SecretStr("open sesame")).context("tls")


def test_a_file_that_cannot_be_used_is_named_with_its_setting(
    authority: Authority, client: Pair, hidden: Pair, tmp_path: Path
) -> None:
    nowhere, broken = tmp_path / "nowhere.pem", tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n")
    cases = [
        (TlsSettings(ca=nowhere), f"kafka.tls.ca: {nowhere} can't be read: No such file"),
        (TlsSettings(ca=tmp_path), f"kafka.tls.ca: {tmp_path} can't be read: Is a directory"),
        (TlsSettings(ca=client.key), f"kafka.tls.ca: {client.key} has no certificate in PEM form"),
        (TlsSettings(ca=broken), f"kafka.tls.ca: {broken} can't be used"),
        (TlsSettings(certificate=nowhere, key=client.key), "kafka.tls.certificate: "),
        (TlsSettings(certificate=broken, key=client.key), "kafka.tls.certificate and kafka.tls.key: "),
        (TlsSettings(certificate=client.certificate, key=authority.ca), "has no private key in PEM form"),
        (TlsSettings(certificate=client.certificate, key=hidden.key), "is encrypted; set kafka.tls.key_password"),
        (
            TlsSettings(certificate=hidden.certificate, key=hidden.key, key_password=SecretStr("close")),
            "is kafka.tls.key_password right?",
        ),
        (TlsSettings(certificate=hidden.certificate, key=client.key), "is not the key of"),
    ]
    for tls, says in cases:
        with pytest.raises(Misconfigured) as raised:
            tls.context("kafka.tls")
        assert says in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("half", [{"certificate": Path("a")}, {"key": Path("a")}, {"key_password": SecretStr("a")}])
def test_half_a_pair_is_refused(half: dict[str, Path | SecretStr]) -> None:
    with pytest.raises(ValueError, match="need"):
        TlsSettings(**half)  # type: ignore[arg-type]  # what a user sets is checked when it is set


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("certificate verify failed: Hostname mismatch, certificate is not valid for 'a'. (_ssl.c:1)", "host name"),
        ("certificate verify failed: IP address mismatch", "host name"),
        ("Hostname Verification Check failed.", "host name"),
        ("CERTIFICATE_VERIFY_FAILED: certificate has expired", "has expired"),
        ("certificate verify failed: certificate is not yet valid", "not valid yet"),
        ("CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate", "set kafka.tls.ca"),
        ("[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required", "set kafka.tls.certificate"),
        ("TLSV1_ALERT_UNKNOWN_CA", "set kafka.tls.certificate"),
        ("ssl/tls alert bad certificate", "set kafka.tls.certificate"),
    ],
)
def test_a_refusal_is_told_by_its_reason(reason: str, says: str) -> None:
    assert says in (refusal(reason, "kafka.tls", "broker:9093") or "")


@pytest.mark.parametrize("reason", ["Connection reset by peer", "EOF occurred in violation of protocol", "timed out"])
def test_a_connection_that_breaks_is_no_refusal(reason: str) -> None:
    assert refusal(reason, "kafka.tls", "broker:9093") is None
