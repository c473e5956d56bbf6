"""Tokens as an encoder reads them, and which ways of cutting it can read."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import tokenizers

from headrace.errors import Misconfigured
from schemas import Chunking

Offsets = npt.NDArray[np.int64]
Boundaries = npt.NDArray[np.uint32]
"""Ascending character offsets, each once; of half the size, because a document can have millions of them."""


LEAST_ROOM = 6
"""Tokens beside the special ones: a single character can take several (Hangul 3), and a chunk holds at least one."""


class Reading(NamedTuple):
    """How a tokenizer reads a text, in character offsets, both ascending."""

    token_ends: Offsets
    """Where each token ends, special tokens left out."""
    word_starts: Offsets
    """Where each of the tokenizer's words begins; a punctuation mark or a Chinese character is a word of its own."""


class TokenCounter(Protocol):
    """What cutting needs to know of an encoder's tokenizer."""

    @property
    def special_tokens(self) -> int:
        """How many tokens the encoder puts around a text, such as [CLS] and [SEP]."""

    def read(self, text: str) -> Reading: ...

    def count(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text, special tokens included, nothing truncated."""


class Tokenizer:
    """A model's own tokenizer, without truncation and padding. Safe to share between threads."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.special_tokens: int = tokenizer.num_special_tokens_to_add(False)

    def read(self, text: str) -> Reading:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        offsets = np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(encoding)).reshape(-1, 2)
        words = np.array(encoding.word_ids, dtype=np.float64)  # float, because a token without a word is None, so NaN
        begins = np.ones(len(encoding), dtype=np.bool_)
        begins[1:] = words[1:] != words[:-1]
        return Reading(offsets[:, 1], offsets[begins, 0])

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(encoding) for encoding in self._tokenizer.encode_batch_fast(list(texts))]


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of the model in `folder`, from its `tokenizer.json`; raises Misconfigured."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise Misconfigured(f"there is no tokenizer at {path}; name the folder of a model that has a tokenizer.json")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as exc:  # the Rust binding raises nothing narrower
        raise Misconfigured(f"the tokenizer at {path} can't be read: {exc}") from exc
    return Tokenizer(tokenizer)


def check_chunking(chunking: Chunking, *, encoder_max_tokens: int | None, special_tokens: int) -> None:
    """Raise ValueError, with a text for whoever set `chunking`, when an encoder can't read such chunks.

    `hierarchical` overlaps nothing, so any overlap is right for it.
    """
    room = chunking.max_tokens - special_tokens
    if room < LEAST_ROOM:
        raise ValueError(
            f"max_tokens is {chunking.max_tokens}, of which {special_tokens} are the encoder's special tokens; "
            f"at least {special_tokens + LEAST_ROOM} are needed"
        )
    if encoder_max_tokens is not None and chunking.max_tokens > encoder_max_tokens:
        raise ValueError(f"max_tokens is {chunking.max_tokens}, but the encoder reads at most {encoder_max_tokens}")
    if chunking.strategy != "hierarchical" and chunking.overlap_tokens >= room:
        raise ValueError(
            f"overlap_tokens is {chunking.overlap_tokens}, which leaves no room for new text: a chunk of max_tokens "
            f"{chunking.max_tokens} holds {room} tokens beside the special ones"
        )
