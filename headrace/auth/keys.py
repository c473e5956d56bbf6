"""The issuer's public keys: where they come from, and how long they are good for."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import structlog

from headrace.auth.settings import AuthSettings
from headrace.calls import asking
from headrace.errors import Misconfigured, Transient

if TYPE_CHECKING:
    from jwt import PyJWK

log = structlog.get_logger("headrace.auth")

SERVICE = "jwks"
KeySource = Callable[[], Any]
"""Gives a JSON Web Key Set as JSON has it. Raises OSError, ValueError or PyJWTError where it can't."""

_ALGORITHMS: dict[tuple[str, str | None], tuple[str, ...]] = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
    ("OKP", "Ed448"): ("EdDSA",),
}
"""What a key of this type and curve can check. A shared secret (`oct`) is none of them, whatever the server says."""


@dataclass(frozen=True)
class KeySet:
    """Public keys by id and algorithm. A set with other keys has another number."""

    number: int
    keys: "Mapping[tuple[str | None, str], PyJWK]"

    def find(self, kid: str | None, algorithm: str) -> "PyJWK | None":
        """A token that names no key fits a set with one of its algorithm."""
        if kid is not None:
            return self.keys.get((kid, algorithm))
        fitting = [key for (_, its), key in self.keys.items() if its == algorithm]
        return fitting[0] if len(fitting) == 1 else None


class Keys:
    """Keys that are fetched when they are needed, and kept. From any thread.

    What was fetched once stays in use while the server is away. However many tokens name keys that nobody knows, the
    server is asked once in `jwks_refetch_s` at most.
    """

    def __init__(
        self, sources: Sequence[KeySource], settings: AuthSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sources = sources
        self._settings = settings
        self._clock = clock
        self._fetching = threading.Lock()
        self._known: KeySet | None = None
        self._raw: Any = None
        self._known_at = self._tried_at = float("-inf")
        self._failure: str | None = None

    def current(self) -> KeySet:
        """Raises Transient when no keys are known and none can be fetched."""
        known = self._known
        if known is None:
            return self._renewed()
        if self._clock() - self._known_at < self._settings.jwks_cache_s or not self._fetching.acquire(blocking=False):
            return known
        try:
            return self._try_again()
        finally:
            self._fetching.release()

    def find(self, kid: str | None, algorithm: str) -> "PyJWK | None":
        """None where the issuer has no such key. Raises Transient where it could not be asked, for it might have."""
        key = self.current().find(kid, algorithm) or self._renewed().find(kid, algorithm)
        if key is None and self._failure is not None:
            raise Transient(SERVICE, self._failure)
        return key

    def load(self) -> None:
        """Raises Misconfigured where the keys can't be read now: for sources that are no server."""
        try:
            self._renewed()
        except Transient as exc:
            raise Misconfigured(f"auth.jwks_file: {self._failure}") from exc

    def _renewed(self) -> KeySet:
        with self._fetching:
            return self._try_again()

    def _try_again(self) -> KeySet:
        if self._clock() - self._tried_at >= self._settings.jwks_refetch_s:
            self._fetch()
        if self._known is None:
            raise Transient(SERVICE, self._failure or "no keys")
        return self._known

    def _fetch(self) -> None:
        from jwt.exceptions import PyJWTError

        try:
            with asking(SERVICE):
                raw = [source() for source in self._sources]
            keys = self._usable(raw)
        except (OSError, ValueError, PyJWTError) as exc:
            self._failure = f"{type(exc).__name__}: {exc}"
            log.warning("jwks_fetch_failed", reason=self._failure, goes_on=self._known is not None)
            return
        finally:
            # From its end: whoever waited while it took long has its answer, too.
            self._tried_at = self._clock()
        self._failure = None
        self._known_at = self._clock()
        if self._known is None or raw != self._raw:
            self._known = KeySet(0 if self._known is None else self._known.number + 1, keys)
            self._raw = raw
            log.info("jwks_fetched", keys=len({kid for kid, _ in keys}))

    def _usable(self, raw: Sequence[Any]) -> "dict[tuple[str | None, str], PyJWK]":
        """Of two keys with one id, the first counts. Raises ValueError where there is none that a token could name."""
        from jwt import PyJWK
        from jwt.exceptions import PyJWTError

        found: dict[tuple[str | None, str], PyJWK] = {}
        for entry in (entry for key_set in raw for entry in _entries(key_set)):
            for algorithm in _ALGORITHMS.get((str(entry.get("kty")), _curve(entry)), ()):
                if algorithm not in self._settings.algorithms or entry.get("alg", algorithm) != algorithm:
                    continue
                try:
                    key = PyJWK(entry, algorithm)
                except PyJWTError:
                    continue  # One that is broken, or of a kind to come, doesn't make the others useless.
                found.setdefault((entry.get("kid"), algorithm), key)
        if not found:
            raise ValueError(f"no key in the set is for {', '.join(self._settings.algorithms)}")
        return found


def keys_of_server(settings: AuthSettings, url: str) -> KeySource:
    """Nothing connects before it is called. Redirects are not followed."""
    from jwt import PyJWKClient

    client = PyJWKClient(url, cache_jwk_set=False, timeout=settings.jwks_timeout_s, headers={"User-Agent": "headrace"})
    return client.fetch_data


def keys_in_file(path: Path) -> KeySource:
    """Read again each time, so another file in its place is noticed."""
    return lambda: orjson.loads(path.read_bytes())


def _entries(key_set: Any) -> list[dict[str, Any]]:
    """Of a set, the keys that check signatures."""
    entries = key_set.get("keys") if isinstance(key_set, dict) else None
    if not isinstance(entries, list):
        raise ValueError("what was fetched is no JSON Web Key Set")
    return [
        entry
        for entry in entries
        if isinstance(entry, dict)
        and entry.get("use", "sig") == "sig"
        and "verify" in (entry.get("key_ops") or ["verify"])
        and isinstance(entry.get("kid"), str | None)
    ]


def _curve(entry: Mapping[str, Any]) -> str | None:
    curve = entry.get("crv")
    return curve if isinstance(curve, str) else None
