"""An encoder and a tokenizer of a few lines: a token is a word, and a text's vector depends on nothing but the text."""

from collections.abc import Sequence
from zlib import crc32

import numpy as np

from headrace.chunking import Reading
from headrace.encoders import Vectors
from schemas import EncoderIdentity


class FakeTokenizer:
    """A TokenCounter: what stands between spaces is a token, and two special ones stand around."""

    special_tokens = 2

    def read(self, text: str) -> Reading:
        starts = [at for at in range(len(text)) if not text[at].isspace() and (at == 0 or text[at - 1].isspace())]
        ends = [at + 1 for at in range(len(text)) if not text[at].isspace() and text[at + 1 : at + 2].strip() == ""]
        return Reading(np.array(ends, dtype=np.int64), np.array(starts, dtype=np.int64))

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) + self.special_tokens for text in texts]


class FakeEncoder:
    """An Encoder of four dimensions. `calls` are the texts of each call."""

    identity = EncoderIdentity(name="test/four-dimensions", dimension=4, normalised=True)
    max_tokens = 256

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def encode(
        self,
        texts: Sequence[str],
        *,
        contexts: Sequence[str] | None = None,
        truncate: bool = False,
        urgent: bool = False,
    ) -> Vectors:
        if contexts is not None:
            texts = [f"{context} {text}".strip() for context, text in zip(contexts, texts, strict=True)]
        self.calls.append(list(texts))
        return np.array([self.vector(text) for text in texts], dtype=np.float32).reshape(-1, 4)

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        return self.encode(texts, truncate=True)

    def vector(self, text: str) -> Vectors:
        digits = crc32(text.encode())
        made = np.array([1 + (digits >> shift) % 256 for shift in (0, 8, 16, 24)], dtype=np.float32)
        return (made / np.linalg.norm(made)).astype(np.float32)
