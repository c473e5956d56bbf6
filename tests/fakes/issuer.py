"""An issuer of tokens, as an identity provider is one: its keys are real, and its key server answers over HTTP."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from headrace.auth import PUBLISH

AUDIENCE, ISSUER = "headrace", "https://issuer.example"


@dataclass
class Issuer:
    """Signs tokens. `published` is what its key server gives, by key id."""

    keys: dict[str, tuple[str, Any]]
    published: dict[str, dict[str, Any]] = field(default_factory=dict)
    fetches: int = 0
    away: bool = False

    def __post_init__(self) -> None:
        for kid, (_, key) in self.keys.items():
            self.published[kid] = public(key, kid)

    def fetch(self) -> Any:
        self.fetches += 1
        if self.away:
            raise ConnectionRefusedError("away")
        return {"keys": [*self.published.values()]}

    def token(self, kid: str = "rsa", *, algorithm: str | None = None, leave_out: str = "", **claims: Any) -> bytes:
        """The header's value, with a token for the tenant `acme` that may publish, unless `claims` say otherwise."""
        its, key = self.keys[kid]
        now = int(time.time())
        said = {
            "aud": AUDIENCE,
            "iss": ISSUER,
            "exp": now + 300,
            "tenant": "acme",
            "scope": f"openid {PUBLISH}",
        } | claims
        said.pop(leave_out, None)
        return b"Bearer " + jwt.encode(said, key, algorithm=algorithm or its, headers={"kid": kid}).encode()


def public(key: Any, kid: str, **fields: Any) -> dict[str, Any]:
    """A private key's other half as a JSON Web Key."""
    kinds: dict[type[Any], Any] = {
        rsa.RSAPrivateKey: RSAAlgorithm,
        ec.EllipticCurvePrivateKey: ECAlgorithm,
        ed25519.Ed25519PrivateKey: OKPAlgorithm,
    }
    kind = next(kind for known, kind in kinds.items() if isinstance(key, known))
    return json.loads(kind.to_jwk(key.public_key())) | {"kid": kid, "key_ops": ["verify"]} | fields


@dataclass
class KeyServer:
    """Answers with `body`, or with another status."""

    url: str = ""
    body: bytes = b""
    status: int = 200
    asked: int = 0


@contextmanager
def serving_keys() -> Iterator[KeyServer]:
    said = KeyServer()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said.asked += 1
            self.send_response(said.status)
            self.end_headers()
            self.wfile.write(said.body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    said.url = f"http://127.0.0.1:{server.server_address[1]}/keys"
    yield said
    server.shutdown()
    server.server_close()
    thread.join()
