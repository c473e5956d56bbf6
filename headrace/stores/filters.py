"""The contract's filters, parsed once into a typed form that both stores compile."""

from __future__ import annotations

import msgspec


class Filters(msgspec.Struct, frozen=True, kw_only=True):
    """All conditions hold together (AND). Empty means everything."""
