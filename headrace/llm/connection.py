"""HTTP as both SDKs speak it, and their errors as ours. They are built alike, down to the names of their errors."""

import email.utils
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import httpx2
import msgspec

from headrace.llm.port import CallFailed, Refused
from headrace.llm.prompts import Prompt
from headrace.llm.settings import LLMSettings
from headrace.quoting import server_words

_RETRIED_LATER = frozenset({408, 409, 425})


class SDKErrors(NamedTuple):
    """An SDK's errors by what they mean. Only the SDK that is used is loaded: each takes a second."""

    all: type[Exception]
    timeout: type[Exception]
    away: type[Exception]
    status: type[Exception]


def http_client(settings: LLMSettings) -> httpx2.AsyncClient:
    """Connects when it is first used. A redirect is not followed: it would take the key along to somebody else."""

    async def wait_no_longer(response: httpx2.Response) -> None:
        # Both SDKs obey this header, which is how a server forbids another try; the wait that they would
        # take is bounded by themselves at two minutes (openai) or not at all (anthropic).
        if (wait_s := retry_after_s(response.headers)) is not None and wait_s > settings.max_retry_wait_s:
            response.headers["x-should-retry"] = "false"

    return httpx2.AsyncClient(
        timeout=httpx2.Timeout(settings.silence_timeout_s, connect=settings.connect_timeout_s),
        limits=httpx2.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency),
        event_hooks={"response": [wait_no_longer]},
    )


def retry_after_s(headers: httpx2.Headers) -> float | None:
    """How long the server asks to be left alone: `retry-after-ms`, or `retry-after` in seconds or as a date."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return float(headers[name]) * unit_s
        except (KeyError, ValueError):
            continue
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return email.utils.mktime_tz(date) - time.time() if date is not None else None


@contextmanager
def translated(sdk: SDKErrors, settings: LLMSettings, prompt: Prompt) -> Iterator[None]:
    """What the SDK raises becomes CallFailed, whose text never holds the key, the question or a passage."""
    key = settings.api_key.get_secret_value() if settings.api_key else None
    try:
        yield
    except (sdk.all, httpx2.HTTPError, httpx2.StreamError, msgspec.ValidationError, ValueError, OSError) as exc:
        # Without the original error behind it: that carries the server's words, and those may repeat the key.
        said = server_words(exc, sent=(prompt.question, prompt.user), secret=key)
        raise _failure(exc, sdk, said) from None


def _failure(exc: Exception, sdk: SDKErrors, said: str) -> CallFailed:
    if isinstance(exc, sdk.status):
        return _status(getattr(exc, "status_code", 0), said)
    if isinstance(exc, (sdk.timeout, httpx2.TimeoutException)):
        return CallFailed("timeout", "the server was silent: see llm.silence_timeout_s and llm.connect_timeout_s")
    if isinstance(exc, sdk.away):
        return CallFailed("away", f"the server can't be reached: {said}")
    return CallFailed("broken", f"the answer can't be read, or was cut: {type(exc).__name__}: {said}")


def _status(status: int, said: str) -> CallFailed:
    if status in {401, 403}:
        # Its words would quote the key as it was sent.
        return Refused(f"the server refuses the key ({status}): set llm.api_key")
    if status == 404:
        return Refused(f"the server knows no such model or path ({status}): see llm.model and llm.base_url: {said}")
    if status == 429:
        return CallFailed("rate_limited", f"the server's limits are reached ({status}): {said}")
    if status in _RETRIED_LATER or status >= 500:
        return CallFailed("away", f"the server can't answer now ({status}): {said}")
    if status < 300:
        return CallFailed("broken", f"the server gave up in the middle of its answer: {said}")
    return Refused(f"the server refuses the request ({status}): {said}")
