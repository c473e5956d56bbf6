"""Which tokens are good, and for what."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from headrace.auth import PUBLISH, QUERY, Authenticator, Denied, Keys, authorization_of
from headrace.auth.settings import AuthSettings
from tests.fakes.issuer import AUDIENCE, ISSUER, Issuer, public
from tests.unit.auth.conftest import Clock


def refusal(authenticator: Authenticator, authorization: bytes | None, tenant: str = "acme", **at: Any) -> str | None:
    """The code, or None where the token is good."""
    try:
        authenticator.check(authorization, tenant=tenant, scope=PUBLISH, **at)
    except Denied as denied:
        return denied.code
    return None


def encoded(part: bytes | dict[str, Any]) -> bytes:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


@pytest.mark.parametrize(("kid", "algorithm"), [("rsa", "RS256"), ("rsa", "PS256"), ("ec", "ES256"), ("ed", "EdDSA")])
def test_a_token_of_each_kind_of_key_is_good(
    authenticator: Authenticator, issuer: Issuer, kid: str, algorithm: str
) -> None:
    assert refusal(authenticator, issuer.token(kid, algorithm=algorithm)) is None


@pytest.mark.parametrize("scheme", [b"bearer ", b"BEARER ", b"Bearer  "])
def test_the_scheme_is_read_as_http_reads_it(authenticator: Authenticator, issuer: Issuer, scheme: bytes) -> None:
    assert refusal(authenticator, issuer.token().replace(b"Bearer ", scheme)) is None


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer   ",
        b"Basic dXNlcjpwYXNz",
        b"Bearer x",
        b"Bearer a.b.c",
        b"Bearer ..",
        b"Bearer \xff\xfe.\xff.\xff",
        b"Bearer " + b"." * 1000,
        b"Bearer " + b"a" * 1_000_000,
        b"Bearer " + encoded(b"[" * 5000) + b".e30.AA",
        b"Bearer " + encoded({"alg": "RS256", "kid": ["rsa"]}) + b".e30.AA",
        b"Bearer " + encoded({"alg": ["RS256"], "kid": "rsa"}) + b".e30.AA",
        b"Bearer " + encoded({"kid": "rsa"}) + b".e30.AA",
        b"Bearer " + encoded({"alg": "RS256", "kid": "rsa", "b64": False, "crit": ["b64"]}) + b"..AA",
        b"Bearer " + encoded({"alg": "RS256", "kid": "rsa", "crit": ["new"], "new": 1}) + b".e30.AA",
    ],
)
def test_what_is_no_token_is_unauthorized(authenticator: Authenticator, authorization: bytes | None) -> None:
    assert refusal(authenticator, authorization) == "unauthorized"


def test_a_good_token_with_much_beside_it_is_too_large(authenticator: Authenticator, issuer: Issuer) -> None:
    assert refusal(authenticator, issuer.token(groups=["g" * 100] * 100)) is None
    assert refusal(authenticator, issuer.token(groups=["g" * 100] * 200)) == "unauthorized"


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "something-else"},
        {"aud": ["a", "b"]},
        {"leave_out": "aud"},
        {"iss": "https://elsewhere.example"},
        {"leave_out": "iss"},
        {"exp": int(time.time()) - 60},
        {"exp": "9999999999"},
        {"exp": True},
        {"exp": float("nan")},
        {"exp": float("inf")},
        {"leave_out": "exp"},
        {"nbf": int(time.time()) + 86_400},
        {"nbf": "soon"},
    ],
)
def test_a_token_with_a_wrong_claim_is_unauthorized(
    authenticator: Authenticator, issuer: Issuer, claims: dict[str, Any]
) -> None:
    assert refusal(authenticator, issuer.token(**claims)) == "unauthorized"


@pytest.mark.parametrize(("past_end_s", "code"), [(-1, None), (4, None), (6, "unauthorized")])
def test_clocks_may_differ_by_the_leeway(
    authenticator: Authenticator, issuer: Issuer, clock: Clock, past_end_s: int, code: str | None
) -> None:
    assert refusal(authenticator, issuer.token(exp=int(clock.now) - past_end_s)) == code
    assert refusal(authenticator, issuer.token(nbf=int(clock.now) + past_end_s)) == code


@pytest.mark.parametrize(
    ("claims", "tenant", "code"),
    [
        ({}, "acme", None),
        ({}, "other", "forbidden"),
        ({"tenant": ["acme", "other"]}, "other", None),
        ({"tenant": ["acme"]}, "other", "forbidden"),
        ({"tenant": "*"}, "other", None),
        ({"tenant": ["*"]}, "other", None),
        ({"tenant": "acme other"}, "other", "forbidden"),
        ({"tenant": []}, "acme", "forbidden"),
        ({"tenant": {"acme": True}}, "acme", "forbidden"),
        ({"tenant": 7}, "acme", "forbidden"),
        ({"leave_out": "tenant"}, "acme", "forbidden"),
        ({"scope": "headrace.query"}, "acme", "forbidden"),
        ({"scope": "headrace.publish.not"}, "acme", "forbidden"),
        ({"leave_out": "scope"}, "acme", "forbidden"),
        ({"leave_out": "scope", "scp": ["headrace.publish", "openid"]}, "acme", None),
        ({"leave_out": "scope", "scp": "openid headrace.publish"}, "acme", None),
        ({"scope": ["headrace.publish"]}, "acme", None),
        ({"scope": None, "scp": None}, "acme", "forbidden"),
    ],
)
def test_a_token_is_good_for_its_tenants_and_scopes(
    authenticator: Authenticator, issuer: Issuer, claims: dict[str, Any], tenant: str, code: str | None
) -> None:
    assert refusal(authenticator, issuer.token(**claims), tenant) == code


def test_each_scope_is_for_itself(authenticator: Authenticator, issuer: Issuer) -> None:
    authenticator.check(issuer.token(scope=QUERY), tenant="acme", scope=QUERY)
    with pytest.raises(Denied, match=r"headrace\.query"):
        authenticator.check(issuer.token(scope=PUBLISH), tenant="acme", scope=QUERY)


def test_the_tenant_may_be_in_another_claim(auth: AuthSettings, issuer: Issuer, clock: Clock) -> None:
    named = auth.model_copy(update={"tenant_claim": "https://acme.example/tenants"})
    authenticator = Authenticator(named, Keys([issuer.fetch], named, clock), clock)
    assert refusal(authenticator, issuer.token()) == "forbidden"
    assert refusal(authenticator, issuer.token(**{"https://acme.example/tenants": ["acme"]})) is None


def test_an_issuer_that_is_not_set_is_not_checked(auth: AuthSettings, issuer: Issuer, clock: Clock) -> None:
    anybody = auth.model_copy(update={"issuer": None})
    authenticator = Authenticator(anybody, Keys([issuer.fetch], anybody, clock), clock)
    assert refusal(authenticator, issuer.token(leave_out="iss")) is None


class TestForgeries:
    def test_no_signature_at_all(self, authenticator: Authenticator, issuer: Issuer) -> None:
        payload = issuer.token().split(b".")[1]
        for algorithm in ("none", "None", "NONE", ""):
            forged = encoded({"alg": algorithm, "kid": "rsa"}) + b"." + payload + b"."
            assert refusal(authenticator, b"Bearer " + forged) == "unauthorized"

    def test_the_public_key_as_a_shared_secret(
        self, authenticator: Authenticator, issuer: Issuer, rsa_key: rsa.RSAPrivateKey
    ) -> None:
        payload = issuer.token().split(b".")[1]
        open_to_all = rsa_key.public_key()
        for secret in (
            open_to_all.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            open_to_all.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        ):
            signed = encoded({"alg": "HS256", "kid": "rsa", "typ": "JWT"}) + b"." + payload
            forged = signed + b"." + encoded(hmac.new(secret, signed, hashlib.sha256).digest())
            assert refusal(authenticator, b"Bearer " + forged) == "unauthorized"

    def test_a_shared_secret_that_the_key_server_publishes(self, authenticator: Authenticator, issuer: Issuer) -> None:
        secret = b"s" * 32
        issuer.published["oct"] = {"kty": "oct", "kid": "oct", "alg": "HS256", "k": encoded(secret).decode()}
        payload = json.loads(base64.urlsafe_b64decode(issuer.token().split(b".")[1] + b"=="))
        forged = jwt.encode(payload, secret, algorithm="HS256", headers={"kid": "oct"}).encode()
        assert refusal(authenticator, b"Bearer " + forged) == "unauthorized"

    def test_another_key_under_the_same_name(self, authenticator: Authenticator, issuer: Issuer) -> None:
        stranger = Issuer({"rsa": ("RS256", rsa.generate_private_key(65537, 2048))})
        assert refusal(authenticator, stranger.token()) == "unauthorized"

    def test_other_claims_under_a_good_signature(self, authenticator: Authenticator, issuer: Issuer) -> None:
        header, _, signature = issuer.token().split(b".")
        other = issuer.token(tenant="*").split(b".")[1]
        assert refusal(authenticator, b".".join((header, other, signature))) == "unauthorized"

    def test_a_key_that_the_token_itself_brings(self, authenticator: Authenticator, issuer: Issuer) -> None:
        own = rsa.generate_private_key(65537, 2048)
        claims = {"aud": AUDIENCE, "iss": ISSUER, "exp": int(time.time()) + 60, "tenant": "acme", "scope": PUBLISH}
        header = {"kid": "rsa", "jwk": public(own, "rsa"), "jku": "https://elsewhere.example/keys"}
        forged = jwt.encode(claims, own, algorithm="RS256", headers=header).encode()
        assert refusal(authenticator, b"Bearer " + forged) == "unauthorized"

    def test_a_key_that_is_too_short_to_be_safe(self, auth: AuthSettings, clock: Clock) -> None:
        weak = Issuer({"rsa": ("RS256", rsa.generate_private_key(65537, 1024))})
        authenticator = Authenticator(auth, Keys([weak.fetch], auth, clock), clock)
        with pytest.warns(jwt.warnings.InsecureKeyLengthWarning):
            token = weak.token()
        assert refusal(authenticator, token) == "unauthorized"

    def test_a_key_for_encryption(self, authenticator: Authenticator, issuer: Issuer) -> None:
        issuer.published["rsa"]["use"] = "enc"
        assert refusal(authenticator, issuer.token()) == "unauthorized"

    def test_a_way_to_sign_that_is_not_set_or_not_the_keys(
        self, auth: AuthSettings, authenticator: Authenticator, issuer: Issuer, clock: Clock
    ) -> None:
        assert refusal(authenticator, issuer.token(algorithm="RS512")) == "unauthorized"
        issuer.published["rsa"]["alg"] = "PS256"
        strict = Authenticator(auth, Keys([issuer.fetch], auth, clock), clock)
        assert refusal(strict, issuer.token(algorithm="RS256")) == "unauthorized"
        assert refusal(strict, issuer.token(algorithm="PS256")) is None


class TestWhenItWasSent:
    """A document may wait in Kafka for longer than its token lasts."""

    def test_the_token_must_have_been_good_then(
        self, authenticator: Authenticator, issuer: Issuer, clock: Clock
    ) -> None:
        token = issuer.token(nbf=int(clock.now), exp=int(clock.now) + 60)
        sent_ms = int(clock.now * 1000) + 30_000
        clock.now += 86_400
        assert refusal(authenticator, token) == "unauthorized"
        assert refusal(authenticator, token, at_ms=sent_ms) is None
        assert refusal(authenticator, token, at_ms=sent_ms + 60_000) == "unauthorized"
        assert refusal(authenticator, token, at_ms=sent_ms - 60_000) == "unauthorized"

    def test_a_time_to_come_is_none_that_a_token_was_good_at(
        self, authenticator: Authenticator, issuer: Issuer, clock: Clock
    ) -> None:
        token = issuer.token(nbf=int(clock.now) + 600, exp=int(clock.now) + 900)
        assert refusal(authenticator, token, at_ms=int(clock.now * 1000) + 700_000) == "unauthorized"


def test_no_text_of_a_refusal_has_the_token_or_its_claims(authenticator: Authenticator, issuer: Issuer) -> None:
    secret = "do-not-show-me"
    for claims in ({"aud": secret}, {"iss": secret}, {"tenant": secret}, {"scope": secret}, {"exp": secret}):
        token = issuer.token(**claims)
        with pytest.raises(Denied) as refused:
            authenticator.check(token, tenant="acme", scope=PUBLISH)
        assert secret not in str(refused.value)
        assert not any(part in str(refused.value) for part in token.decode().split("."))


def test_many_tokens_are_remembered_and_not_all(authenticator: Authenticator, issuer: Issuer) -> None:
    for number in range(1100):
        assert refusal(authenticator, issuer.token("ec", jti=str(number))) is None
    assert len(authenticator._verified) == 1024


def test_what_is_remembered_still_expires(authenticator: Authenticator, issuer: Issuer, clock: Clock) -> None:
    token = issuer.token(exp=int(clock.now) + 60)
    assert refusal(authenticator, token) is None
    clock.now += 120
    assert refusal(authenticator, token) == "unauthorized"


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([], None),
        ([("authorization", b"a")], b"a"),
        ([("x", b"y"), ("authorization", b"a"), ("authorization", b"a")], b"a"),
        ([("authorization", b"a"), ("authorization", b"b")], None),
        ([("authorization", None)], None),
        ([("Authorization", b"a")], None),
    ],
)
def test_one_header_counts(headers: list[tuple[str, bytes | None]], found: bytes | None) -> None:
    assert authorization_of(headers) == found
