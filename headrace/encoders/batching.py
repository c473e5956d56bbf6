"""Which texts a model reads together. Pure."""

from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Places in `lengths`, in batches: each place in one, and a batch of several takes at most `batch_tokens`, all of
    its texts counted as long as its longest.

    The longest come first, so memory that is short shows at once, and texts of one length share a batch, so little of
    it is padding.
    """
    places = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    batches = []
    first = 0
    while first < len(places):
        rows = max(1, batch_tokens // max(1, lengths[places[first]]))
        batches.append(places[first : first + rows])
        first += rows
    return batches
