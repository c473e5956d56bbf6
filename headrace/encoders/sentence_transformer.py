"""The encoder that runs in this process: a sentence-transformers model on a CPU or a CUDA device."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from headrace.devices import pick_device
from headrace.encoders.model import (
    encoder_identity,
    load_tokenizer,
    max_tokens,
    model_folder,
    positions,
    prompts,
    window,
)
from headrace.encoders.port import Vectors
from headrace.encoders.settings import EncoderSettings
from headrace.errors import Misconfigured
from schemas import EncoderIdentity

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer


CONTEXT_TOKENS = 64
"""Of a context at most: 19 titles of 20 in SciFact have fewer than 40."""


class SentenceTransformerEncoder:
    """An Encoder. Any number of threads may call it: the model takes one call at a time, while others already tokenise
    theirs.

    Building one loads torch and the model, which takes seconds. Raises Misconfigured when the model, the device or the
    precision can't be had. It tokenises with the model's tokenizer.json itself, not through sentence-transformers:
    texts are counted before any is cut, sorted by their tokens, and tokenised once.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        folder = model_folder(settings)
        # Tokenizers carry their truncation with them, so there is one that cuts and one that doesn't.
        self._whole = load_tokenizer(folder)
        self._cutting = load_tokenizer(folder)
        self._cutting.enable_truncation(window(folder))
        self._window = window(folder)
        self._positions = positions(folder)
        self._max_tokens = max_tokens(folder)
        self._prompts = prompts(folder)
        self._settings = settings
        self._lock = threading.Lock()

        import torch

        if settings.threads:
            torch.set_num_threads(settings.threads)
        self._device = pick_device("encoder", "encoder", settings.device, settings.precision)
        self._model = _load(str(folder), settings, self._device)
        self._pad = getattr(self._model.tokenizer, "pad_token_id", None) or 0
        self._identity = encoder_identity(settings)
        # The first call sets the device up, so it is made here and not on somebody's query.
        made = self._vectors(self._tokens(["headrace"], truncate=True)).shape[1]
        if made != self._identity.dimension:
            raise Misconfigured(
                f"encoder.model: the vectors of {folder} have {made} dimensions, "
                f"and its files say {self._identity.dimension}"
            )

    @property
    def identity(self) -> EncoderIdentity:
        return self._identity

    @property
    def device(self) -> str:
        """Where the model runs: `cpu` or `cuda:0`."""
        return str(self._device)

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    def encode(self, texts: Sequence[str], *, contexts: Sequence[str] | None = None, truncate: bool = False) -> Vectors:
        if contexts is None or not any(contexts):
            return self._encode(texts, self._prompts.passage, truncate=truncate)
        return self._vectors(self._tokens_in_context(texts, contexts, truncate=truncate))

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        return self._encode(texts, self._prompts.query, truncate=True)

    def _encode(self, texts: Sequence[str], prompt: str, *, truncate: bool) -> Vectors:
        if not texts:
            return np.empty((0, self._identity.dimension), dtype=np.float32)
        return self._vectors(self._tokens([prompt + text for text in texts], truncate=truncate))

    def _tokens(self, texts: list[str], *, truncate: bool) -> list[list[int]]:
        encodings = (self._cutting if truncate else self._whole).encode_batch_fast(texts)
        rows = [encoding.ids for encoding in encodings]
        longest = max(rows, key=len)
        if len(longest) > self._window:
            raise Misconfigured(
                f"a text of {len(longest)} tokens does not fit the encoder, which reads {self._window}: "
                f"chunks of at most {self._max_tokens} tokens do; give all workers the same HEADRACE_ENCODER__MODEL"
            )
        return rows

    def _tokens_in_context(self, texts: Sequence[str], contexts: Sequence[str], *, truncate: bool) -> list[list[int]]:
        """Each text behind its context, which may reach into positions that passages alone leave free.

        all-MiniLM-L6-v2 has 512 of them and passages of at most 256 tokens.
        """
        prompt = self._prompts.passage
        shortened = {context: self._first_tokens(context, CONTEXT_TOKENS) for context in set(contexts)}
        before = [shortened[context] for context in contexts]
        joined = self._joined(prompt, before, texts)
        if truncate:
            return self._tokens(joined, truncate=True)
        rows = [encoding.ids for encoding in self._whole.encode_batch_fast(joined)]
        long = [place for place, row in enumerate(rows) if len(row) > self._window]
        if not long:
            return rows
        alone = self._tokens([prompt + texts[place] for place in long], truncate=False)
        for place, own in zip(long, alone, strict=True):
            if len(rows[place]) > self._positions:
                # One token less than there is room for: some tokenizers join what meets.
                fits = self._first_tokens(before[place], self._positions - len(own) - 1)
                [joint] = self._joined(prompt, [fits], [texts[place]])
                again = self._whole.encode(joint).ids
                rows[place] = again if fits and len(again) <= self._positions else own
        return rows

    def _joined(self, prompt: str, before: Sequence[str], texts: Sequence[str]) -> list[str]:
        return [
            f"{prompt}{context} {text}" if context else prompt + text
            for context, text in zip(before, texts, strict=True)
        ]

    def _first_tokens(self, text: str, count: int) -> str:
        """The text up to the end of its so many'th token."""
        if count <= 0:
            return ""
        ends = [end for _, end in self._whole.encode(text, add_special_tokens=False).offsets]
        return text if len(ends) <= count else text[: ends[count - 1]]

    def _vectors(self, rows: list[list[int]]) -> Vectors:
        """Rows of token ids to vectors (len(rows) x dimension), in the order of the rows."""
        import torch

        # Texts of one length share a batch, so little is padding; the longest come first, so memory that is short shows
        # at once.
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]), reverse=True)
        size = self._settings.batch_size
        try:
            with self._lock, torch.inference_mode():
                batches = [
                    self._forward([rows[row] for row in order[start : start + size]])
                    for start in range(0, len(order), size)
                ]
                # Copied once, at the end: a copy waits for the device, and the next batch would not be ready for it.
                computed = torch.cat(batches).cpu().numpy()
        except torch.cuda.OutOfMemoryError as exc:
            raise Misconfigured(
                f"encoder.batch_size: {size} texts at once do not fit the memory of {self._device}; set a smaller one"
            ) from exc
        lengths = np.linalg.norm(computed, axis=1, keepdims=True)
        unusable = ~(np.isfinite(lengths) & (lengths > 0))
        if unusable.any():
            raise RuntimeError(
                f"bug: {self._settings.model} gave no usable vector (NaN, infinite or zero) for "
                f"{int(unusable.sum())} of {len(rows)} texts on {self._device} in {self._settings.precision}"
            )
        vectors = np.empty_like(computed)
        vectors[order] = computed / lengths
        return vectors

    def _forward(self, rows: list[list[int]]) -> torch.Tensor:
        """One batch, float32 on the device (len(rows) x dimension), not yet of length 1."""
        import torch

        ids = np.full((len(rows), max(map(len, rows))), self._pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row
            mask[place, : len(row)] = 1
        features = {
            "input_ids": torch.from_numpy(ids).to(self._device),
            "attention_mask": torch.from_numpy(mask).to(self._device),
        }
        embedding: torch.Tensor = self._model(features)["sentence_embedding"]
        # float32 before anything is divided: half precision has too few digits for a length of 1.
        return embedding.float()


def _load(folder: str, settings: EncoderSettings, device: torch.device) -> SentenceTransformer:
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    # A worker's log is no place for its progress bars.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = SentenceTransformer(
            folder,
            device=str(device),
            local_files_only=True,
            model_kwargs={"dtype": getattr(torch, settings.precision)},
        )
    except (OSError, ValueError) as exc:
        reason = next(iter(str(exc).strip().splitlines()), type(exc).__name__)
        raise Misconfigured(f"encoder.model: {folder} can't be loaded: {reason}") from exc
    return model.eval()
