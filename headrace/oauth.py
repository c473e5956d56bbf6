"""Access tokens by the client-credentials grant (RFC 6749, section 4.4)."""

import threading
import time
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, SecretStr, model_validator

from headrace.errors import Misconfigured, Transient
from headrace.tls import TlsSettings, refusal

if TYPE_CHECKING:
    import httpx2

SERVICE = "oauth"
TIMEOUT_S = 5.0
USED_FOR = 0.8
"""The part of a token's life after which a new one is fetched."""
UNKNOWN_LIFE_S = 60.0
"""Of a token whose issuer doesn't say when it expires."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class OAuthSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    token_url: str | None = None
    client_id: str | None = None
    client_secret: SecretStr | None = None
    scope: str | None = None
    tls: TlsSettings = TlsSettings()
    """For the token endpoint."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = (self.token_url, self.client_id, self.client_secret)
        if any(given) and not all(given):
            raise ValueError("token_url, client_id and client_secret need one another")
        if self.token_url is not None:
            parts = urlsplit(self.token_url)
            if not parts.hostname or not (
                parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
            ):
                raise ValueError("token_url must be an https:// address (http:// for this machine alone)")
            if parts.scheme == "http" and self.tls:
                raise ValueError("tls needs a token_url with https://")
        return self

    def __bool__(self) -> bool:
        return self.token_url is not None


class Token(NamedTuple):
    value: str
    expires_at: float
    """As `time.time` counts."""


class Tokens:
    """The token of the moment, fetched when it is asked for and the last one has grown old. From any thread."""

    def __init__(self, settings: OAuthSettings, section: str) -> None:
        """Raises Misconfigured where something is not set, or the files of TLS can't be used."""
        if settings.token_url is None or settings.client_id is None or settings.client_secret is None:
            raise Misconfigured(f"{section} needs token_url, client_id and client_secret")
        self._url = settings.token_url
        self._client = (settings.client_id, settings.client_secret.get_secret_value())
        self._form = {"grant_type": "client_credentials"} | ({"scope": settings.scope} if settings.scope else {})
        self._section = section
        self._context = settings.tls.context(f"{section}.tls")
        self._fetching = threading.Lock()
        self._token = Token("", float("-inf"))
        self._renew_at = float("-inf")

    def token(self) -> Token:
        """Raises Misconfigured where the endpoint refuses, and Transient where it is away and no token is good."""
        with self._fetching:
            if time.time() >= self._renew_at:
                try:
                    self._fetch()
                except Transient:
                    if time.time() >= self._token.expires_at:
                        raise
            return self._token

    def _fetch(self) -> None:
        # A second to import, for those who don't use it.
        import httpx2

        asked_at = time.time()
        try:
            answer = httpx2.post(
                self._url,
                data=self._form,
                auth=self._client,
                headers={"accept": "application/json"},
                verify=self._context,
                timeout=TIMEOUT_S,
            )
        except httpx2.TransportError as exc:
            if (told := refusal(str(exc), f"{self._section}.tls", urlsplit(self._url).netloc)) is not None:
                raise Misconfigured(told) from exc
            raise Transient(SERVICE, f"no token from {self._url}: {exc}") from exc
        if answer.status_code == httpx2.codes.TOO_MANY_REQUESTS or answer.is_server_error:
            raise Transient(SERVICE, f"no token from {self._url}: status {answer.status_code}")
        if not answer.is_success:
            raise Misconfigured(
                f"oauth: {self._url} gives no token; set {self._section}.client_id, client_secret and scope"
                f" (status {answer.status_code}{_why(answer)})"
            )
        self._token = self._read(answer, asked_at)
        self._renew_at = asked_at + USED_FOR * (self._token.expires_at - asked_at)

    def _read(self, answer: "httpx2.Response", asked_at: float) -> Token:
        try:
            said = answer.json()
            return Token(str(said["access_token"]), asked_at + float(said.get("expires_in") or UNKNOWN_LIFE_S))
        except (ValueError, KeyError, TypeError) as exc:
            raise Misconfigured(
                f"oauth: {self._url} answers with no access token; is {self._section}.token_url right?"
            ) from exc


@cache
def tokens(settings: OAuthSettings, section: str) -> Tokens:
    """One for all clients of a process."""
    return Tokens(settings, section)


def _why(answer: "httpx2.Response") -> str:
    try:
        said = answer.json()
        return f", {said['error']}" + (f": {said['error_description']}" if "error_description" in said else "")
    except (ValueError, KeyError, TypeError):
        return ""
