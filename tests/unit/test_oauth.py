"""Tokens for Kafka: fetched once, renewed before they expire, and kept while the issuer is away."""

import json
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from pydantic import SecretStr

from headrace.errors import Misconfigured, Transient
from headrace.oauth import OAuthSettings, Tokens
from tests.fakes.issuer import Issuer
from tests.fakes.token_endpoint import CLIENT_ID, CLIENT_SECRET, TokenEndpoint, token_endpoint


@pytest.fixture
def endpoint() -> Iterator[TokenEndpoint]:
    issuer = Issuer({"rsa": ("RS256", rsa.generate_private_key(65537, 2048))})
    with token_endpoint(issuer) as serving:
        yield serving


def tokens(endpoint: TokenEndpoint, *, secret: str = CLIENT_SECRET, scope: str | None = None) -> Tokens:
    settings = OAuthSettings(token_url=endpoint.url, client_id=CLIENT_ID, client_secret=SecretStr(secret), scope=scope)
    return Tokens(settings, "kafka.oauth")


def test_one_token_serves_until_it_grows_old(endpoint: TokenEndpoint) -> None:
    its = tokens(endpoint, scope="kafka")
    assert its.token() == its.token()
    assert endpoint.asked == [{"grant_type": ["client_credentials"], "scope": ["kafka"]}]


def test_an_old_token_is_renewed(endpoint: TokenEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000.0
    monkeypatch.setattr("headrace.oauth.time.time", lambda: now)
    its = tokens(endpoint)
    first = its.token()
    now += 0.9 * endpoint.life_s
    assert its.token().expires_at > first.expires_at


def test_a_good_token_is_used_while_the_issuer_is_away(
    endpoint: TokenEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000_000.0
    monkeypatch.setattr("headrace.oauth.time.time", lambda: now)
    its = tokens(endpoint)
    first = its.token()
    endpoint.status = 503
    now += 0.9 * endpoint.life_s
    assert its.token() == first
    now += endpoint.life_s
    with pytest.raises(Transient, match=r"oauth: no token from .*: status 503"):
        its.token()


def test_a_refusal_says_what_to_set(endpoint: TokenEndpoint) -> None:
    with pytest.raises(Misconfigured, match=r"set kafka\.oauth\.client_id, client_secret.*invalid_client") as raised:
        tokens(endpoint, secret="wrong").token()
    assert "wrong" not in str(raised.value)


def test_what_is_no_token_is_refused(endpoint: TokenEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "answer", lambda *_: (200, ["nothing"]))
    with pytest.raises(Misconfigured, match=r"no access token; is kafka\.oauth\.token_url right\?"):
        tokens(endpoint).token()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"token_url": "https://issuer.example/token"}, "need one another"),
        ({"token_url": "http://issuer.example/token"}, "must be an https:// address"),
        ({"token_url": "http://localhost/token", "tls": {"ca": "ca.pem"}}, "needs a token_url with https://"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, object], says: str) -> None:
    complete = {"client_id": "a", "client_secret": "b"} if "need one" not in says else {}
    with pytest.raises(ValueError, match=says):
        OAuthSettings.model_validate(complete | wrong)


def test_secrets_are_hidden() -> None:
    settings = OAuthSettings(
        token_url="https://issuer.example/token", client_id="a", client_secret=SecretStr("do not show")
    )
    assert "do not show" not in f"{settings!r} {json.dumps(settings.model_dump(mode='json'))}"
