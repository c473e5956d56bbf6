"""Keys come and go, and the server that has them does too."""

import json
from pathlib import Path
from threading import Barrier, Thread

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from headrace.auth import PUBLISH, Authenticator, Denied, Keys, keys_in_file, keys_of_server
from headrace.auth.settings import AuthSettings
from headrace.config import Settings
from headrace.errors import Misconfigured, Transient
from headrace.wiring import build_authenticator
from tests.fakes.issuer import Issuer, KeyServer, public
from tests.unit.auth.conftest import Clock
from tests.unit.auth.test_authenticator import refusal


@pytest.fixture
def stranger() -> Issuer:
    """Its keys are none that are published, at first."""
    return Issuer({f"k{number}": ("ES256", ec.generate_private_key(ec.SECP256R1())) for number in range(50)})


def test_keys_are_fetched_when_the_first_token_comes_and_kept(authenticator: Authenticator, issuer: Issuer) -> None:
    assert issuer.fetches == 0
    for kid in ("rsa", "ec", "ed", "ec"):
        assert refusal(authenticator, issuer.token(kid)) is None
    assert issuer.fetches == 1


def test_a_new_key_is_fetched_when_a_token_names_it(
    authenticator: Authenticator, issuer: Issuer, stranger: Issuer, clock: Clock
) -> None:
    assert refusal(authenticator, issuer.token()) is None
    clock.now += 5
    issuer.published["k0"] = stranger.published["k0"]
    assert refusal(authenticator, stranger.token("k0")) is None
    assert issuer.fetches == 2


def test_tokens_that_name_any_key_cost_one_fetch_in_a_while(
    authenticator: Authenticator, issuer: Issuer, stranger: Issuer, clock: Clock
) -> None:
    for _ in range(3):
        clock.now += 5
        assert [refusal(authenticator, stranger.token(kid)) for kid in stranger.keys] == ["unauthorized"] * 50
    assert issuer.fetches == 3


def test_a_key_that_is_taken_back_takes_its_tokens_along(
    authenticator: Authenticator, issuer: Issuer, clock: Clock
) -> None:
    token = issuer.token("ec", exp=int(clock.now) + 3600)
    assert refusal(authenticator, token) is None
    del issuer.published["ec"]
    assert refusal(authenticator, token) is None
    clock.now += 300
    assert refusal(authenticator, token) == "unauthorized"


def test_known_keys_go_on_while_the_server_is_away(authenticator: Authenticator, issuer: Issuer, clock: Clock) -> None:
    assert refusal(authenticator, issuer.token()) is None
    issuer.away = True
    for _ in range(10):
        clock.now += 301
        assert refusal(authenticator, issuer.token(exp=int(clock.now) + 60)) is None
        assert refusal(authenticator, issuer.token("ec", exp=int(clock.now) + 60)) is None
    assert issuer.fetches == 11


def test_without_keys_the_server_is_waited_for_and_asked_once_in_a_while(
    authenticator: Authenticator, issuer: Issuer, clock: Clock
) -> None:
    issuer.away = True
    for _ in range(3):
        with pytest.raises(Transient, match=r"jwks: ConnectionRefusedError: away") as waiting:
            refusal(authenticator, issuer.token())
        assert waiting.value.service == "jwks"
    assert issuer.fetches == 1
    issuer.away = False
    clock.now += 5
    assert refusal(authenticator, issuer.token()) is None


def test_a_key_that_might_be_new_is_no_reason_to_refuse_while_nobody_can_be_asked(
    authenticator: Authenticator, issuer: Issuer, stranger: Issuer, clock: Clock
) -> None:
    assert refusal(authenticator, issuer.token()) is None
    issuer.away = True
    clock.now += 5
    with pytest.raises(Transient):
        refusal(authenticator, stranger.token("k0"))
    issuer.away = False
    issuer.published["k0"] = stranger.published["k0"]
    clock.now += 5
    assert refusal(authenticator, stranger.token("k0")) is None


def test_what_is_no_token_asks_for_no_unknown_key(authenticator: Authenticator, issuer: Issuer, clock: Clock) -> None:
    assert refusal(authenticator, issuer.token()) is None
    clock.now += 5
    assert refusal(authenticator, b"Bearer a.b.c") == "unauthorized"
    assert issuer.fetches == 1


@pytest.mark.parametrize(
    "raw",
    [[], {}, {"keys": {}}, {"keys": []}, {"keys": [7]}, {"keys": [{"kty": "RSA", "kid": "x", "n": "!", "e": "AQAB"}]}],
)
def test_an_answer_without_a_usable_key_is_none(auth: AuthSettings, clock: Clock, raw: object) -> None:
    with pytest.raises(Transient):
        Keys([lambda: raw], auth, clock).current()


def test_one_broken_key_does_not_spoil_the_set(authenticator: Authenticator, issuer: Issuer) -> None:
    issuer.published["broken"] = {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"}
    issuer.published["new"] = {"kty": "AKP", "kid": "new", "alg": "ML-DSA-44", "pub": "AA"}
    assert refusal(authenticator, issuer.token()) is None


def test_a_token_that_names_no_key_fits_a_set_with_one(auth: AuthSettings, clock: Clock) -> None:
    import jwt

    alone = Issuer({"ec": ("ES256", ec.generate_private_key(ec.SECP256R1()))})
    claims = jwt.decode(alone.token("ec").split()[1], options={"verify_signature": False})
    nameless = b"Bearer " + jwt.encode(claims, alone.keys["ec"][1], algorithm="ES256").encode()
    assert refusal(Authenticator(auth, Keys([alone.fetch], auth, clock), clock), nameless) is None
    alone.published["other"] = public(ec.generate_private_key(ec.SECP256R1()), "other")
    assert refusal(Authenticator(auth, Keys([alone.fetch], auth, clock), clock), nameless) == "unauthorized"


def test_many_threads_at_once_fetch_once(auth: AuthSettings, issuer: Issuer, clock: Clock) -> None:
    keys = Keys([issuer.fetch], auth, clock)
    together, found = Barrier(8), []

    def look() -> None:
        together.wait()
        found.append(keys.find("ec", "ES256"))

    threads = [Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    assert found[0] is not None
    assert issuer.fetches == 1


def test_who_waited_for_a_fetch_that_took_long_does_not_begin_another(
    auth: AuthSettings, issuer: Issuer, clock: Clock
) -> None:
    def slow() -> object:
        clock.now += 30
        return issuer.fetch()

    keys = Keys([slow], auth, clock)
    assert [keys.find("unknown", "ES256") for _ in range(5)] == [None] * 5
    assert issuer.fetches == 1


class TestSources:
    def test_a_server_is_asked_over_http(self, auth: AuthSettings, issuer: Issuer, key_server: KeyServer) -> None:
        key_server.body = json.dumps(issuer.fetch()).encode()
        keys = Keys([keys_of_server(auth, key_server.url)], auth)
        assert keys.find("rsa", "RS256") is not None
        assert key_server.asked == 1

    @pytest.mark.parametrize(("status", "body"), [(500, b"{}"), (404, b""), (302, b""), (200, b"<html>"), (200, b"[]")])
    def test_a_server_that_answers_otherwise_is_away(
        self, auth: AuthSettings, key_server: KeyServer, status: int, body: bytes
    ) -> None:
        key_server.status, key_server.body = status, body
        with pytest.raises(Transient):
            Keys([keys_of_server(auth, key_server.url)], auth).current()

    def test_a_file_in_the_place_of_another_is_noticed(
        self, auth: AuthSettings, issuer: Issuer, stranger: Issuer, clock: Clock, tmp_path: Path
    ) -> None:
        file = tmp_path / "keys.json"
        file.write_text(json.dumps(issuer.fetch()))
        keys = Keys([keys_in_file(file)], auth, clock)
        assert keys.find("ec", "ES256") is not None
        file.write_text(json.dumps(stranger.fetch()))
        clock.now += 300
        assert keys.find("ec", "ES256") is None
        assert keys.find("k7", "ES256") is not None

    def test_retired_keys_of_a_file_are_good_beside_the_servers(
        self, auth: AuthSettings, issuer: Issuer, stranger: Issuer, clock: Clock, tmp_path: Path
    ) -> None:
        file = tmp_path / "retired.json"
        file.write_text(json.dumps(stranger.fetch()))
        keys = Keys([issuer.fetch, keys_in_file(file)], auth, clock)
        assert keys.find("ec", "ES256") is not None
        assert keys.find("k7", "ES256") is not None


class TestWiring:
    def test_without_auth_there_is_nothing_to_check(self) -> None:
        assert build_authenticator(Settings()) is None

    def test_a_file_that_can_not_be_read_is_refused_at_the_start(self, tmp_path: Path) -> None:
        for name, text in (("absent", None), ("broken", "{"), ("empty", '{"keys": []}')):
            file = tmp_path / name
            if text is not None:
                file.write_text(text)
            with pytest.raises(Misconfigured, match=r"auth\.jwks_file"):
                build_authenticator(Settings(auth=AuthSettings(enabled=True, jwks_file=file, audience="a")))

    def test_a_server_is_not_asked_before_a_token_comes(self, key_server: KeyServer, issuer: Issuer) -> None:
        key_server.body = json.dumps(issuer.fetch()).encode()
        settings = Settings(auth=AuthSettings(enabled=True, jwks_url=key_server.url, audience="headrace"))
        authenticator = build_authenticator(settings)
        assert authenticator is not None
        assert key_server.asked == 0
        authenticator.check(issuer.token(), tenant="acme", scope=PUBLISH)
        with pytest.raises(Denied):
            authenticator.check(issuer.token(), tenant="other", scope=PUBLISH)
        assert key_server.asked == 1
