"""Tokens as an encoder reads them, and which ways of cutting it can read."""

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers.models import BPE, WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer

from headrace import tokenizing
from headrace.errors import Misconfigured
from schemas import Chunking

Offsets = npt.NDArray[np.int64]
Boundaries = npt.NDArray[np.uint32]
"""Ascending character offsets, each once; of half the size, because a document can have millions of them."""


_nowhere: Offsets = np.empty(0, dtype=np.int64)
_SPACE = "\u2581"
"""What SentencePiece writes for a space."""
_single_space = re.compile(r"(?<=\S) (?=\S)|^(?=\S)|(?<=\S)\Z")
LEAST_ROOM = 6
"""Tokens beside the special ones: a single character can take several (Hangul 3), and a chunk holds at least one."""


class Reading(NamedTuple):
    """How a tokenizer reads a text, in character offsets, both ascending."""

    token_ends: Offsets
    """Where each token ends, special tokens left out."""
    word_starts: Offsets
    """Where each of the tokenizer's words begins; a punctuation mark or a Chinese character is a word of its own."""
    cuts: Offsets = _nowhere
    """Where the text can be cut and both parts, without the whitespace at the cut, keep their tokens; its end, if the
    whitespace there has none. As far as it is known: of what is cut elsewhere, the tokens must be counted.
    """


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
        self._cuts = _cuts_of(tokenizer)

    def read(self, text: str) -> Reading:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        offsets = np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(encoding)).reshape(-1, 2)
        if self._tokenizer.pre_tokenizer is None:
            # Such a tokenizer knows no words, and calls the whole text one: its tokens are the best there is, but for
            # those that begin with an accent of the letter before.
            letters = [not unicodedata.combining(text[start]) for start in offsets[:, 0]]
            word_starts = offsets[letters, 0]
        else:
            # float, because a token without a word is None, so NaN
            words = np.array(encoding.word_ids, dtype=np.float64)
            begins = np.ones(len(encoding), dtype=np.bool_)
            begins[1:] = words[1:] != words[:-1]
            word_starts = offsets[begins, 0]
        return Reading(offsets[:, 1], word_starts, self._cuts(text, word_starts))

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(encoding) for encoding in self._tokenizer.encode_batch_fast(list(texts))]


Cuts: TypeAlias = Callable[[str, Offsets], Offsets]
"""Of a text and the starts of its words, the `cuts` of its Reading."""


def _cuts_of(tokenizer: tokenizers.Tokenizer) -> Cuts:
    if isinstance(tokenizer.pre_tokenizer, BertPreTokenizer) and isinstance(tokenizer.model, WordPiece):
        # BERT's family reads each word by itself.
        return lambda text, word_starts: np.append(word_starts, len(text))
    if _reads_words_behind_a_space(tokenizer):
        # Both of these it reads as if the text began behind them, or wasn't interrupted at all.
        odd = [_SPACE, *(token.content for token in tokenizer.get_added_tokens_decoder().values())]
        interrupts = re.compile("|".join(map(re.escape, odd)))
        return lambda text, _: _nowhere if interrupts.search(text) else _behind_single_spaces(text)
    return lambda _, __: _nowhere


def _reads_words_behind_a_space(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether it reads as Llama 2's family: every space, and one more before the text, is the first character of the
    word behind it, and no token reaches from one word into the next.
    """
    if not isinstance(tokenizer.model, BPE) or tokenizer.pre_tokenizer is not None:
        return False
    steps = (json.loads(tokenizer.to_str())["normalizer"] or {}).get("normalizers")
    as_llama = [
        {"type": "Prepend", "prepend": _SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
    ]
    return steps == as_llama and not any(_SPACE in token.lstrip(_SPACE) for token in tokenizer.get_vocab())


def _behind_single_spaces(text: str) -> Offsets:
    return np.array([place.end() for place in _single_space.finditer(text)], dtype=np.int64)


def load_tokenizer(path: Path) -> Tokenizer:
    """A model's tokenizer from its file, mostly a `tokenizer.json`; raises Misconfigured."""
    if not path.is_file():
        raise Misconfigured(f"there is no tokenizer at {path}; name the folder of a model that has a tokenizer.json")
    try:
        tokenizer = tokenizing.load_tokenizer(path)
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
