"""Bootstrap intervals: how far a mean over these questions may be from the mean over all that could be asked.

Efron and Tibshirani, "An Introduction to the Bootstrap" (1993): percentiles of the means of resampled questions.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000
_BLOCK = 2_000_000
"""Numbers drawn at once."""


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean and its 95 % interval; the same values always give the same. Raises ValueError where there are none.

    Given the differences of pairs it is a paired bootstrap.
    """
    if not values:
        raise ValueError("no values to take a mean of")
    observed = np.asarray(values, dtype=np.float64)
    random = np.random.default_rng(0)
    block = max(1, _BLOCK // len(observed))
    means = np.concatenate(
        [
            observed[random.integers(len(observed), size=(min(block, RESAMPLES - first), len(observed)))].mean(axis=1)
            for first in range(0, RESAMPLES, block)
        ]
    )
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean=float(observed.mean()), low=float(low), high=float(high))
