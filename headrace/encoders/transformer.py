"""An encoder that runs a transformer in this process, whatever runs the network.

    read      texts to rows of token ids (reading.py)                              many calls at once
    plan      rows to batches of so many tokens, the longest first (batching.py)   many calls at once
    forward   a batch to its vectors (a Network)                                    one call at a time (turns.py)
    finish    vectors of length 1, in the order of the texts                       many calls at once

Torch and ONNX Runtime share all of it but the Network.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from headrace.encoders.batching import plan_batches
from headrace.encoders.meter import Meter
from headrace.encoders.port import Vectors
from headrace.encoders.reading import Read, Reader
from headrace.encoders.turns import Turns
from headrace.errors import Misconfigured
from schemas import EncoderIdentity

Ids = npt.NDArray[np.int64]
Batch = TypeVar("Batch")


class DeviceFull(Exception):
    """A batch doesn't fit the device's memory."""


class Network(Protocol[Batch]):
    """A loaded model. `Batch` is what it makes of a batch, and stays on its device."""

    pad: int
    """The token id that fills short rows up."""
    runs_on: str
    """For people: on which device, and how."""

    def forward(self, ids: Ids, mask: Ids) -> Batch:
        """Raises DeviceFull. Called by one thread at a time, and may return before the device is done, but not before
        it is done with the batch before.
        """

    def collect(self, batches: Sequence[Batch]) -> Vectors:
        """Of all these batches, one after the other. Waits for the device; from any thread. Raises DeviceFull."""


class TransformerEncoder(Generic[Batch]):
    """An Encoder. Any number of threads may call it: each tokenises its own texts, and the network works for one call
    at a time, which gives way to urgent ones after each batch.
    """

    def __init__(
        self, network: Network[Batch], reader: Reader, identity: EncoderIdentity, *, batch_tokens: int
    ) -> None:
        """Raises Misconfigured when the network's vectors aren't those of the identity."""
        self._network = network
        self._reader = reader
        self._batch_tokens = batch_tokens
        self._turns = Turns()
        self._meter = Meter()
        self._identity = identity
        # The first call sets the device up, so it is made here and not on somebody's query.
        made = self.encode_queries(["headrace"]).shape[1]
        if made != identity.dimension:
            raise Misconfigured(
                f"encoder.model: the vectors of {identity.name} have {made} dimensions, "
                f"and its files say {identity.dimension}"
            )

    @property
    def identity(self) -> EncoderIdentity:
        return self._identity

    @property
    def max_tokens(self) -> int:
        return self._reader.max_tokens

    @property
    def runs_on(self) -> str:
        """For people: on which device, and how."""
        return self._network.runs_on

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
        if not read.rows:
            return np.empty((0, self._identity.dimension), dtype=np.float32)
        plan = plan_batches([len(row) for row in read.rows], self._batch_tokens)
        padded = [_padded([read.rows[place] for place in places], self._network.pad) for places in plan]
        batches = []
        try:
            # The device may be busy until the vectors are collected, when it is somebody else's turn already.
            with ExitStack() as busy:
                with self._turns.turn(urgent=urgent) as give_way:
                    busy.enter_context(self._meter.reading(read.rows))
                    for ids, mask in padded:
                        batches.append(self._network.forward(ids, mask))
                        give_way()
                computed = self._network.collect(batches)
        except DeviceFull as exc:
            raise Misconfigured(
                f"encoder.batch_tokens: {self._batch_tokens} tokens at once do not fit the memory of "
                f"{self._network.runs_on}; set fewer"
            ) from exc
        vectors = np.empty_like(computed)
        vectors[[place for places in plan for place in places]] = of_length_one(
            computed, f"{self._identity.name} on {self._network.runs_on}"
        )
        return vectors


def of_length_one(vectors: Vectors, made_by: str) -> Vectors:
    """Raises RuntimeError when one has no direction: that is a bug of what made them, and must not reach a store."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unusable = ~(np.isfinite(lengths) & (lengths > 0))
    if unusable.any():
        raise RuntimeError(
            f"bug: no usable vector (NaN, infinite or zero) for {int(unusable.sum())} of {len(vectors)} texts "
            f"from {made_by}"
        )
    scaled: Vectors = vectors / lengths
    return scaled


def _padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Ids, Ids]:
    """Token ids and their mask (len(rows) x the longest row)."""
    ids = np.full((len(rows), max(map(len, rows))), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = 1
    return ids, mask
