"""The fast tier: a vector for each token, looked up; a text's is their mean. No network, no torch, no GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from headrace.encoders.meter import Meter
from headrace.encoders.port import Vectors
from headrace.encoders.reading import Reader, Window
from headrace.encoders.transformer import of_length_one
from headrace.errors import Misconfigured
from schemas import EncoderIdentity

DIMENSION = 256
MAX_TOKENS = 8192
"""A mean has no window; beyond this it would say nothing of any part of the text."""
UNKNOWN = 0
"""The token <unk>, whose vector a text without any token has."""


def wordllama_folder() -> Path:
    """Where wordllama's weights and tokenizer lie; raises Misconfigured.

    Its package isn't imported: that sets logging up, and brings a web client and a TOML parser along.
    """
    spec = importlib.util.find_spec("wordllama")
    if spec is None or not spec.submodule_search_locations:
        raise Misconfigured("encoder.backend: static needs the package wordllama: pip install 'headrace[static]'")
    return Path(spec.submodule_search_locations[0])


def tokenizer_file() -> Path:
    return wordllama_folder() / "tokenizers" / "l2_supercat_tokenizer_config.json"


class StaticEncoder:
    """An Encoder. Threads share it without waiting for each other, so every call is as good as urgent."""

    def __init__(self, identity: EncoderIdentity) -> None:
        from safetensors.numpy import load_file

        weights = load_file(wordllama_folder() / "weights" / f"l2_supercat_{DIMENSION}.safetensors")
        self._of_token: Vectors = weights["embedding.weight"].astype(np.float32)
        window = Window(tokens=MAX_TOKENS, positions=MAX_TOKENS, max_tokens=MAX_TOKENS)
        self._reader = Reader(tokenizer_file(), window, special_tokens=False)
        self._identity = identity
        self._meter = Meter()

    @property
    def identity(self) -> EncoderIdentity:
        return self._identity

    @property
    def max_tokens(self) -> int:
        return MAX_TOKENS

    def encode(
        self,
        texts: Sequence[str],
        *,
        contexts: Sequence[str] | None = None,
        truncate: bool = False,
        urgent: bool = False,
    ) -> Vectors:
        del urgent
        return self._vectors(self._reader.passages(texts, contexts, truncate=truncate).rows)

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        return self._vectors(self._reader.questions(texts).rows)

    def _vectors(self, rows: Sequence[Sequence[int]]) -> Vectors:
        # Text by text: what is gathered for one fits a core's cache, what is gathered for many doesn't. A sum has the
        # direction of the mean.
        sums = np.empty((len(rows), DIMENSION), dtype=np.float32)
        with self._meter.reading(rows):
            for place, row in enumerate(rows):
                self._of_token.take(row or [UNKNOWN], axis=0).sum(axis=0, out=sums[place])
        return of_length_one(sums, self._identity.name)
