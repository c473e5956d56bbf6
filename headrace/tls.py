"""How this process trusts a server, and shows who it is. Host names are always checked."""

import re
import socket
import ssl
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, SecretStr, model_validator

from headrace.errors import Misconfigured

_CERTIFICATE = re.compile(rb"-----BEGIN (TRUSTED |X509 )?CERTIFICATE-----")
_KEY = re.compile(rb"-----BEGIN ([A-Z]+ )*PRIVATE KEY-----")
_HIDDEN_KEY = re.compile(rb"BEGIN ENCRYPTED PRIVATE KEY|Proc-Type: 4,ENCRYPTED")
_ALERT_WITHIN_S = 1.0
"""With TLS 1.3 a client learns only after its handshake what a server thinks of its certificate."""

# In the words of OpenSSL, of BoringSSL (gRPC) and of Python; the first that fits.
_REFUSALS = tuple(
    (re.compile(pattern, re.IGNORECASE), what_to_do)
    for pattern, what_to_do in (
        (
            r"(host ?name|IP address) mismatch|hostname verification",
            "the certificate of {address} is for another host name; use a name that it has",
        ),
        (
            r"certificate.has.expired|CERTIFICATE_EXPIRED",
            "the certificate of {address} has expired, or one that signed it; renew it",
        ),
        (
            r"certificate is not yet valid",
            "the certificate of {address} is not valid yet; is this machine's clock right?",
        ),
        (
            r"certificate.verify.failed",
            "the certificate of {address} is signed by nobody trusted; set {section}.ca",
        ),
        (
            (
                r"alert.(certificate|bad.certificate|unknown.ca|no.certificate|unsupported.certificate|handshake.failure"
                r"|access.denied|decrypt.error)|ALERT_UNKNOWN_CA|ALERT_(BAD_)?CERTIFICATE"
            ),
            (
                "{address} does not accept this client; set {section}.certificate and {section}.key to a pair that it "
                "trusts and that has not expired"
            ),
        ),
    )
)


class TlsSettings(BaseModel):
    """PEM files. They are read when a process starts: after a change, start it again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ca: Path | None = None
    """Who signs the server's certificate; without it, the authorities that this machine trusts."""
    certificate: Path | None = None
    """The client certificate, with those between it and its authority after it."""
    key: Path | None = None
    key_password: SecretStr | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key need each other")
        if self.key_password is not None and self.key is None:
            raise ValueError("key_password needs a key")
        return self

    def __bool__(self) -> bool:
        return self.ca is not None or self.certificate is not None

    def password(self) -> str | None:
        return self.key_password.get_secret_value() if self.key_password else None

    def context(self, section: str) -> ssl.SSLContext:
        """A client's. Raises Misconfigured where a file can't be used, naming its setting in the `section`."""
        if self.ca is not None:
            _read(self.ca, f"{section}.ca", _CERTIFICATE, "certificate")
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except ssl.SSLError as exc:
            raise Misconfigured(f"{section}.ca: {self.ca} can't be used: {exc.reason or exc}") from exc
        if self.certificate is not None and self.key is not None:
            _read(self.certificate, f"{section}.certificate", _CERTIFICATE, "certificate")
            self._load_pair(context, section, self.certificate, self.key)
        return context

    def _load_pair(self, context: ssl.SSLContext, section: str, certificate: Path, key: Path) -> None:
        content = _read(key, f"{section}.key", _KEY, "private key")
        if _HIDDEN_KEY.search(content) and self.key_password is None:
            raise Misconfigured(f"{section}.key: {key} is encrypted; set {section}.key_password")
        try:
            # Never None: OpenSSL would ask for a password at the terminal.
            context.load_cert_chain(certificate, key, password=self.password() or "")
        except ssl.SSLError as exc:
            if exc.reason == "KEY_VALUES_MISMATCH":
                raise Misconfigured(f"{section}.key: {key} is not the key of {certificate}") from exc
            hint = f"; is {section}.key_password right?" if self.key_password else ""
            raise Misconfigured(
                f"{section}.certificate and {section}.key: {certificate} and {key} can't be used"
                f" ({exc.reason or 'not valid PEM'}){hint}"
            ) from exc


def refusal(reason: str, section: str, address: str) -> str | None:
    """What to do where TLS says no for this reason, in one line that begins with whose `section` of the settings it is:
    `kafka.tls`, `stores.milvus.tls`. None where it is no refusal: a connection broke.

    `reason` is the text of an error of Python, OpenSSL or gRPC.
    """
    for pattern, what_to_do in _REFUSALS:
        if pattern.search(reason):
            service, said = section.split(".")[-2], _short(reason)
            return f"{service}: {what_to_do.format(address=address, section=section)} ({said})"
    return None


def shake_hands(
    host: str,
    port: int,
    tls: TlsSettings,
    section: str,
    *,
    timeout_s: float,
    alpn: tuple[str, ...] = (),
    hello: bytes = b"",
) -> None:
    """Connect, and hang up. Raises Misconfigured where one side refuses the other, naming what to set in the `section`,
    and OSError where nobody answers.

    `hello` is what a client says first, where a server is silent until it has heard something.
    """
    context = tls.context(section)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    try:
        with (
            socket.create_connection((host, port), timeout=timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            secured.settimeout(min(timeout_s, _ALERT_WITHIN_S))
            try:
                secured.sendall(hello)
                secured.recv(1)
            except TimeoutError:
                return  # It would have said so.
    except ssl.SSLError as exc:
        if (told := refusal(str(exc), section, f"{host}:{port}")) is not None:
            raise Misconfigured(told) from exc
        raise


def _read(path: Path, setting: str, has: re.Pattern[bytes], what: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise Misconfigured(f"{setting}: {path} can't be read: {exc.strerror}") from exc
    if not has.search(content):
        raise Misconfigured(f"{setting}: {path} has no {what} in PEM form")
    return content


def _short(reason: str) -> str:
    """Without where in OpenSSL's code it was."""
    return re.sub(r"\s*\(_ssl\.c:\d+\)|\[SSL: \w+\] ", "", reason)
