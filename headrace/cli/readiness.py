"""Asking workers over HTTP: are they ready, and what have they done?"""

import http.client
import urllib.error
import urllib.request

ANSWER_WITHIN_S = 3.0


def readiness(url: str) -> tuple[bool, str]:
    """Whether a worker is ready for work, and what it says of it."""
    try:
        with _get(url) as answer:
            return True, _line(answer.read())
    except urllib.error.HTTPError as exc:
        return False, _line(exc.read())
    except (OSError, http.client.HTTPException) as exc:
        return False, f"does not answer ({getattr(exc, 'reason', exc)})"


def scrape(url: str) -> str | None:
    """A worker's /metrics as text; None when it does not answer."""
    try:
        return metrics(url)
    except (OSError, ValueError, http.client.HTTPException):
        return None


def metrics(url: str) -> str:
    """A worker's /metrics as text. Raises OSError, HTTPException or ValueError when no text comes."""
    with _get(url) as answer:
        return str(answer.read().decode())


def _get(url: str) -> http.client.HTTPResponse:
    # Never through a proxy: workers of the local stack are on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    answer: http.client.HTTPResponse = opener.open(url, timeout=ANSWER_WITHIN_S)
    return answer


def _line(body: bytes) -> str:
    return " ".join(body.decode(errors="replace").split())[:300]
