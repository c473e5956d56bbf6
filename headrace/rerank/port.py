"""What the retrieval needs of a reranker."""

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Pair: TypeAlias = tuple[str, str]
"""A question and a passage."""
Scores: TypeAlias = npt.NDArray[np.float32]


class Reranker(Protocol):
    """Reads question and passage together. Blocks: it is called from one thread, its own."""

    def score(self, pairs: Sequence[Pair]) -> Scores:
        """One finite score for each pair, in the order given; higher is better, and there is no scale.

        A pair that is too long is cut at its end. Raises Transient("rerank", ...) when the device could not do it now.
        """
