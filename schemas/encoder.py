"""Which vectors a collection holds: whatever differs here can't be compared by cosine."""

from typing import Literal

import msgspec


class EncoderIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """`name` is the model's public name, the same on every machine;
    `normalised` means that every vector has length 1.
    """

    name: str
    dimension: int
    normalised: bool
    context: Literal["none", "title", "title_headings"] = "none"
    """What passages are embedded together with; questions stand alone."""

    @property
    def recipe(self) -> str:
        """The model and the context in one word: vectors of two recipes can't be compared."""
        return self.name if self.context == "none" else f"{self.name}+{self.context}"
