"""What the stages and the retrieval need of an encoder.
Everything here blocks (call it from a thread) and is thread-safe.
"""

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from schemas import EncoderIdentity

Vectors: TypeAlias = npt.NDArray[np.float32]


class Encoder(Protocol):
    """Vectors are float32 (len(texts) x identity.dimension), C-ordered, finite,
    and of length 1, so a dot product is a cosine.
    """

    @property
    def identity(self) -> EncoderIdentity: ...

    @property
    def max_tokens(self) -> int:
        """The longest text that is read whole, in the model's own tokens, its special ones included."""

    def encode(
        self,
        texts: Sequence[str],
        *,
        contexts: Sequence[str] | None = None,
        truncate: bool = False,
        urgent: bool = False,
    ) -> Vectors:
        """Passages, in the order given. `contexts` has for each what is read before it, and "" for nothing: as much of
        it as there is room for beside the text, which is never cut for it.

        An `urgent` call goes before others that wait for the model, and waits for no more than what it reads at once.

        Raises Misconfigured when a text is longer than `max_tokens`: nothing of a document is dropped unnoticed. With
        `truncate` such a text, its context included, is cut at its end instead. Raises Transient when the model runs
        elsewhere, and is away.
        """

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Questions, in the order given, and urgent. One that is too long is cut at its end,
        for a long question still has an answer. Raises Transient as `encode` does.
        """
