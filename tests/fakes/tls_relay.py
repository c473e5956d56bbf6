"""TLS in front of a server that has none: what a load balancer or a sidecar does."""

import select
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from tests.fakes.certificates import Pair

ALERT_IS_READ_S = 2.0


@contextmanager
def tls_relay(target: str, pair: Pair, *, clients_of: Path | None = None, alpn: Sequence[str] = ()) -> Iterator[int]:
    """The port at which `target` (an address with a scheme) is reached over TLS.

    With `clients_of`, a PEM file of an authority, whoever comes must show a certificate of it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if clients_of is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients_of)
    parts = urlsplit(target)
    relay = _Relay(context, (parts.hostname or "", parts.port or 0))
    try:
        yield relay.port
    finally:
        relay.close()


class _Relay:
    def __init__(self, context: ssl.SSLContext, target: tuple[str, int]) -> None:
        self._context = context
        self._target = target
        self._far: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._far:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with near:
            try:
                secured = self._context.wrap_socket(near, server_side=True, do_handshake_on_connect=False)
                secured.do_handshake()
            except OSError:
                _let_the_alert_be_read(secured)
                return
            with secured, socket.create_connection(self._target) as far, suppress(OSError):
                self._far.append(far)
                _pump(secured, far)


def _pump(near: ssl.SSLSocket, far: socket.socket) -> None:
    """In one thread: OpenSSL takes no reading and writing of one connection at once."""
    while True:
        ready = [near] if near.pending() else select.select([near, far], [], [])[0]
        for source, sink in ((near, far), (far, near)):
            if source in ready:
                data = source.recv(65536)
                if not data:
                    return
                sink.sendall(data)


def _let_the_alert_be_read(refused: ssl.SSLSocket) -> None:
    """Closed with something unread, the connection would be reset, and the alert be lost on its way."""
    plain = socket.socket(fileno=refused.detach())
    with plain, suppress(OSError):
        plain.settimeout(ALERT_IS_READ_S)
        plain.shutdown(socket.SHUT_WR)
        while plain.recv(65536):
            pass
