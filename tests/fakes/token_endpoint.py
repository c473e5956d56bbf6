"""An issuer's token endpoint for programs: the client-credentials grant over HTTP."""

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs

from tests.fakes.issuer import Issuer

CLIENT_ID, CLIENT_SECRET = "headrace", "its secret"


@dataclass
class TokenEndpoint:
    """Answers with a token, or with another `status` where one is set."""

    issuer: Issuer
    key: str = "rsa"
    life_s: int = 300
    status: int = 200
    url: str = ""
    asked: list[dict[str, list[str]]] = field(default_factory=list)

    def answer(self, form: dict[str, list[str]], authorization: str) -> tuple[int, dict[str, Any]]:
        self.asked.append(form)
        if self.status != 200:
            return self.status, {}
        if authorization != "Basic " + base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode():
            return 401, {"error": "invalid_client", "error_description": "no such client, or not its secret"}
        if form.get("grant_type") != ["client_credentials"]:
            return 400, {"error": "unsupported_grant_type"}
        token = self.issuer.token(self.key, sub=CLIENT_ID, iat=int(time.time())).removeprefix(b"Bearer ").decode()
        return 200, {"access_token": token, "token_type": "Bearer", "expires_in": self.life_s}


@contextmanager
def token_endpoint(issuer: Issuer) -> Iterator[TokenEndpoint]:
    endpoint = TokenEndpoint(issuer)

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
            status, body = endpoint.answer(form, self.headers.get("authorization", ""))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/token"
    yield endpoint
    server.shutdown()
    server.server_close()
    thread.join()
