"""An endpoint that speaks OpenAI's embeddings: OpenAI itself, TEI, vLLM and others."""

import base64
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import numpy as np
import openai

from headrace.calls import asking
from headrace.encoders.meter import Meter
from headrace.encoders.port import Vectors
from headrace.encoders.reading import Read, Reader, Window
from headrace.encoders.settings import EncoderSettings
from headrace.encoders.transformer import of_length_one
from headrace.encoders.turns import Turns
from headrace.errors import HeadraceError, Misconfigured, Poison, Transient
from headrace.quoting import server_words
from schemas import EncoderIdentity

SERVICE = "encoder"
BASE_URL = "https://api.openai.com/v1"
NO_KEY = "none"
"""The SDK insists on a key; a server without keys reads none."""
RETRIES = 2
"""By the SDK, of one request of many; an urgent one is not tried again, for its asker knows best whether to wait."""
_CONNECT_TIMEOUT_S = 5.0
_RETRIED_LATER = frozenset({408, 409, 425, 429})
_NOT_THIS_FORM = frozenset({400, 422})
_NOT_THIS_INPUT = frozenset({400, 413, 422})
_HARMLESS = "water"
"""A text that no endpoint refuses unless it refuses every one."""


class _Embedding(msgspec.Struct):
    index: int
    embedding: str | list[float]


class _InputRefused(Misconfigured):
    """Of these texts, or of every one."""


class _Embeddings(msgspec.Struct):
    """What is read of what the SDK gives, which checks no types."""

    data: list[_Embedding]


class EndpointEncoder:
    """An Encoder. At most `concurrency` requests are open at once, of all callers together; urgent ones are sent first.

    Texts are counted with the model's tokenizer before they are sent: some servers cut what is too long, and don't say.
    """

    def __init__(
        self, settings: EncoderSettings, identity: EncoderIdentity, tokenizer_file: Path, max_tokens: int
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._reader = Reader(tokenizer_file, Window(tokens=max_tokens, positions=max_tokens, max_tokens=max_tokens))
        self._turns = Turns(settings.concurrency)
        self._meter = Meter()
        self._asked: dict[str, Any] = {"model": settings.model, "encoding_format": "base64"}
        if settings.ask_dimension:
            self._asked["dimensions"] = settings.dimension
        self._client = openai.OpenAI(
            api_key=settings.api_key.get_secret_value() if settings.api_key else NO_KEY,
            base_url=settings.base_url or BASE_URL,
            max_retries=RETRIES,
            # It follows no redirect, which would take the key along to somebody else.
            http_client=httpx2.Client(
                timeout=httpx2.Timeout(settings.timeout_s, connect=min(_CONNECT_TIMEOUT_S, settings.timeout_s)),
                limits=httpx2.Limits(
                    max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency
                ),
            ),
        )
        self._urgent_client = self._client.with_options(max_retries=0)

    @property
    def identity(self) -> EncoderIdentity:
        return self._identity

    @property
    def max_tokens(self) -> int:
        return self._reader.max_tokens

    def encode(
        self,
        texts: Sequence[str],
        *,
        contexts: Sequence[str] | None = None,
        truncate: bool = False,
        urgent: bool = False,
    ) -> Vectors:
        return self._vectors(self._reader.passages(texts, contexts, truncate=truncate), urgent=urgent)

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        return self._vectors(self._reader.questions(texts), urgent=True)

    def _vectors(self, read: Read, *, urgent: bool) -> Vectors:
        size = self._settings.texts_per_request
        requests = [read.texts[start : start + size] for start in range(0, len(read.texts), size)]
        if not requests:
            return np.empty((0, self._identity.dimension), dtype=np.float32)
        threads = ThreadPoolExecutor(min(len(requests), self._settings.concurrency))
        with self._meter.reading(read.rows), threads:
            asked = [threads.submit(self._ask_for_each, request, urgent=urgent) for request in requests]
            try:
                answers = [answer.result() for answer in asked]
            finally:
                # After one has failed, those that aren't sent yet needn't be.
                for answer in asked:
                    answer.cancel()
        return of_length_one(np.concatenate(answers), f"{self._identity.name} at {self._client.base_url}")

    def _ask_for_each(self, texts: list[str], *, urgent: bool) -> Vectors:
        """Raises Poison for a text that the endpoint refuses while it takes others. A request may be too large in all,
        so one that is refused is asked again in halves.
        """
        try:
            return self._ask(texts, urgent=urgent)
        except _InputRefused as refused:
            if len(texts) == 1:
                self._ask([_HARMLESS], urgent=urgent)
                raise Poison("text_refused", str(refused)) from None
        middle = len(texts) // 2
        halves = (texts[:middle], texts[middle:])
        return np.concatenate([self._ask_for_each(half, urgent=urgent) for half in halves])

    def _ask(self, texts: list[str], *, urgent: bool) -> Vectors:
        """One request (len(texts) x dimension), not of length 1."""
        client = self._urgent_client if urgent else self._client
        # Endpoints refuse an empty text.
        sent = [text or " " for text in texts]
        with self._turns.turn(urgent=urgent), asking(SERVICE), _translated(self._settings, sent):
            try:
                answer = client.embeddings.create(input=sent, **self._asked)
            except openai.APIStatusError as refused:
                if refused.status_code not in _NOT_THIS_FORM or self._asked["encoding_format"] == "float":
                    raise
                # Some servers know no base64; if that wasn't why, this raises too.
                answer = client.embeddings.create(input=sent, **self._asked | {"encoding_format": "float"})
                self._asked = self._asked | {"encoding_format": "float"}
            embeddings = msgspec.convert(answer, _Embeddings, from_attributes=True).data
            if sorted(embedding.index for embedding in embeddings) != list(range(len(texts))):
                raise ValueError(f"it has {len(embeddings)} vectors, or other ones, for {len(texts)} texts")
            made = [_vector(embedding) for embedding in sorted(embeddings, key=lambda one: one.index)]
        dimensions = {len(vector) for vector in made}
        if dimensions != {self._identity.dimension}:
            raise Misconfigured(
                f"encoder.dimension is {self._identity.dimension}, and the vectors of {self._settings.model} at "
                f"{self._client.base_url} have {', '.join(map(str, sorted(dimensions)))}; set what they have, or "
                "encoder.ask_dimension for a model whose vectors can be shortened"
            )
        return np.stack(made)


def _vector(embedding: _Embedding) -> Vectors:
    if isinstance(embedding.embedding, list):
        return np.array(embedding.embedding, dtype=np.float32)
    return np.frombuffer(base64.b64decode(embedding.embedding, validate=True), dtype="<f4")


@contextmanager
def _translated(settings: EncoderSettings, sent: Sequence[str]) -> Iterator[None]:
    """What the SDK raises becomes Transient or Misconfigured, whose text never holds the key, nor any of the texts."""
    try:
        yield
    except (openai.OpenAIError, httpx2.HTTPError, msgspec.ValidationError, ValueError, OSError) as exc:
        key = settings.api_key.get_secret_value() if settings.api_key else None
        # Without the original error behind it: that carries the server's words, and those may repeat the key.
        raise _meaning(exc, server_words(exc, sent=sent, secret=key)) from None


def _meaning(exc: Exception, said: str) -> HeadraceError:
    if isinstance(exc, openai.APIStatusError):
        return _status(exc.status_code, said)
    if isinstance(exc, (openai.APITimeoutError, httpx2.TimeoutException)):
        return Transient(SERVICE, "the endpoint was silent: see encoder.timeout_s")
    if isinstance(exc, openai.APIConnectionError):
        return Transient(SERVICE, f"the endpoint can't be reached: {said}")
    return Transient(SERVICE, f"the endpoint's answer can't be read: {type(exc).__name__}: {said}")


def _status(status: int, said: str) -> HeadraceError:
    if status in _RETRIED_LATER or status >= 500:
        return Transient(SERVICE, f"the endpoint can't answer now ({status}): {said}")
    if status in {401, 403}:
        # Its words would quote the key as it was sent.
        return Misconfigured(f"the encoder's endpoint refuses the key ({status}): set encoder.api_key")
    if status == 404:
        return Misconfigured(
            f"the encoder's endpoint knows no such model or path ({status}): see encoder.model and encoder.base_url: "
            f"{said}"
        )
    refused = _InputRefused if status in _NOT_THIS_INPUT else Misconfigured
    return refused(f"the encoder's endpoint refuses the request ({status}): {said}")
