"""Which vectors a collection holds: whatever differs here can't be compared by cosine."""

import msgspec


class EncoderIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """`name` is the model's public name, the same on every machine;
    `normalised` means that every vector has length 1.
    """

    name: str
    dimension: int
    normalised: bool
