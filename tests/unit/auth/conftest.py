"""One issuer, the settings that trust it, and a clock that stands still."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from headrace.auth import Authenticator, Keys
from headrace.auth.settings import AuthSettings
from tests.fakes.issuer import AUDIENCE, ISSUER, Issuer, KeyServer, serving_keys


@pytest.fixture(scope="session")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture
def issuer(rsa_key: rsa.RSAPrivateKey) -> Issuer:
    return Issuer(
        {
            "rsa": ("RS256", rsa_key),
            "ec": ("ES256", ec.generate_private_key(ec.SECP256R1())),
            "ed": ("EdDSA", ed25519.Ed25519PrivateKey.generate()),
        }
    )


@dataclass
class Clock:
    """Both of the two clocks: the one that a fetch is paced by, and the one that a token is held against."""

    now: float = field(default_factory=time.time)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def auth() -> AuthSettings:
    return AuthSettings(
        enabled=True, jwks_url="https://issuer.example/keys", audience=AUDIENCE, issuer=ISSUER, leeway_s=5
    )


@pytest.fixture
def authenticator(auth: AuthSettings, issuer: Issuer, clock: Clock) -> Authenticator:
    return Authenticator(auth, Keys([issuer.fetch], auth, clock), clock)


@pytest.fixture
def key_server() -> Iterator[KeyServer]:
    with serving_keys() as server:
        yield server
