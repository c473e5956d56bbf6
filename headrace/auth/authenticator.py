"""Whether a token lets its bearer do what a message asks for."""

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from cachetools import LRUCache

from headrace.auth.bearer import AUTHORIZATION
from headrace.auth.keys import Keys
from headrace.auth.settings import AuthSettings
from headrace.errors import HeadraceError

DeniedCode = Literal["unauthorized", "forbidden"]
PUBLISH, QUERY = "headrace.publish", "headrace.query"
"""Scopes: to send documents and deletions, and to ask."""
EVERY_TENANT = "*"
AUTHORIZATION_MAX_BYTES = 16_384
"""Issuers that put groups and permissions into a token stay below half of it."""
CACHED_TOKENS = 1024
SHOWN_CHARACTERS = 64


class Denied(HeadraceError):
    """The sender may not do this. `unauthorized`: nobody knows who it is; `forbidden`: it is known, and may not.

    Each stage says what follows: a dead letter, or an error reply. The text never has a part of a token's signature
    or claims.
    """

    def __init__(self, code: DeniedCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What a token with a good signature, audience and issuer says. Times are Unix seconds."""

    tenants: frozenset[str]
    scopes: frozenset[str]
    expires: float
    not_before: float


class Authenticator:
    """Checks tokens against the issuer's keys. From any thread; remembers the last tokens whose signature was good."""

    def __init__(self, settings: AuthSettings, keys: Keys, clock_s: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._keys = keys
        self._clock_s = clock_s
        import jwt

        self._jwt = jwt.PyJWT({"enforce_minimum_key_length": True})
        self._verified: LRUCache[tuple[int, bytes], Claims] = LRUCache(CACHED_TOKENS)
        self._lock = threading.Lock()

    def check(self, authorization: bytes | None, *, tenant: str, scope: str, at_ms: int | None = None) -> None:
        """Return if this `authorization` header lets its sender do what `scope` names with this tenant.

        With `at_ms` (Unix milliseconds) the token must have been valid then: a document may wait longer in Kafka than
        a token lasts. A time in the future counts as now. Raises Denied, and Transient when keys are needed and their
        server is away; blocks for as long as fetching them takes.
        """
        claims = self._claims(_token(authorization))
        now = self._clock_s()
        at = now if at_ms is None else min(at_ms / 1000, now)
        if at >= claims.expires + self._settings.leeway_s:
            raise Denied(
                "unauthorized", "the token has expired" if at_ms is None else "the token had expired when this was sent"
            )
        if at < claims.not_before - self._settings.leeway_s:
            raise Denied("unauthorized", "the token is not valid yet")
        if tenant not in claims.tenants and EVERY_TENANT not in claims.tenants:
            raise Denied("forbidden", f"the token is not for tenant {tenant}")
        if scope not in claims.scopes:
            raise Denied("forbidden", f"the token does not have the scope {scope}")

    def _claims(self, token: str) -> Claims:
        # Asked for each time: keys that the issuer has taken back take the tokens along that they once made good.
        place = (self._keys.current().number, hashlib.sha256(token.encode()).digest())
        with self._lock:
            known = self._verified.get(place)
        if known is None:
            known = self._verify(token)
            with self._lock:
                self._verified[place] = known
        return known

    def _verify(self, token: str) -> Claims:
        import jwt
        from jwt.exceptions import PyJWTError

        settings = self._settings
        try:
            header = jwt.get_unverified_header(token)
            kid, algorithm = header.get("kid"), header.get("alg")
            if not isinstance(algorithm, str) or algorithm not in settings.algorithms:
                raise Denied("unauthorized", "the token is signed in a way that is not accepted here")
            key = self._keys.find(kid, algorithm)
            if key is None:
                raise Denied("unauthorized", f"no key of the issuer is {str(kid)[:SHOWN_CHARACTERS]!r} ({algorithm})")
            said = self._jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=settings.audience,
                issuer=settings.issuer,
                # Times are checked for each message, against its own.
                options={
                    "require": ["exp", "aud", *(["iss"] if settings.issuer is not None else [])],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except PyJWTError as exc:
            raise Denied("unauthorized", f"the token is not accepted: {_reason(exc)}") from None
        return Claims(
            tenants=frozenset(_words(said.get(settings.tenant_claim), split=False)),
            scopes=frozenset([*_words(said.get("scope"), split=True), *_words(said.get("scp"), split=True)]),
            expires=_time(said, "exp"),
            not_before=_time(said, "nbf") if "nbf" in said else float("-inf"),
        )


def authorization_of(headers: Iterable[tuple[str, bytes | None]]) -> bytes | None:
    """A record's `authorization` header; of two that differ, nobody can say which one counts, so it is neither."""
    values = {value for name, value in headers if name == AUTHORIZATION}
    return values.pop() if len(values) == 1 else None


def _token(authorization: bytes | None) -> str:
    if not authorization:
        raise Denied("unauthorized", "there is no authorization header, or more than one")
    if len(authorization) > AUTHORIZATION_MAX_BYTES:
        raise Denied("unauthorized", f"the authorization header has more than {AUTHORIZATION_MAX_BYTES} bytes")
    scheme, _, token = authorization.partition(b" ")
    if scheme.lower() != b"bearer" or not token.strip() or not token.isascii():
        raise Denied("unauthorized", "the authorization header must be `Bearer` and a token")
    return token.strip().decode()


def _reason(error: Exception) -> str:
    """By its class: the library's own words may repeat what the token says."""
    words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in type(error).__name__)
    return words.strip().removesuffix(" error")


def _words(claim: Any, *, split: bool) -> list[str]:
    """A claim that is one text, or a list of them."""
    texts = claim if isinstance(claim, list) else [claim]
    found = [text for text in texts if isinstance(text, str)]
    return [word for text in found for word in text.split()] if split else found


def _time(said: dict[str, Any], name: str) -> float:
    value = said[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Denied("unauthorized", f"the token's {name} is no time")
    return float(value)
