"""Fields that a newer release wrote into a record, kept when a worker that doesn't know them writes the record again.

While old and new workers run together, both replace the same manifests. Decoding ignores what is unknown, so encoding
what was decoded would drop it.
"""

from typing import Any

import msgspec

from schemas.wire import decode, encode


def beyond(source: bytes, known: msgspec.Struct) -> bytes | None:
    """The bytes, if they are not just what `known`, which was decoded from them, is encoded to."""
    return source if encode(known) != source else None


def rewritten(source: bytes, after: msgspec.Struct) -> bytes:
    """`after`, which takes the place of `source`, as JSON, with what `source` has beyond its own release.

    A part keeps its unknown fields as long as it tells of the same thing: a struct or an item of a list that has a
    `revision`, of the same revision.
    """
    return encode(_merged(msgspec.Raw(source), decode(source, type(after)), after))


def _merged(source: msgspec.Raw, before: Any, after: Any) -> Any:
    if before == after:
        return source
    if isinstance(after, msgspec.Struct) and type(before) is type(after) and _revision(before) == _revision(after):
        found = decode(bytes(source), dict[str, msgspec.Raw])
        known = {name: getattr(after, name) for name in after.__struct_fields__}
        return found | {
            name: _merged(found[name], getattr(before, name), value) if name in found else value
            for name, value in known.items()
        }
    if isinstance(before, list) and isinstance(after, list):
        parts = zip(decode(bytes(source), list[msgspec.Raw]), before, strict=True)
        known_items = {revision: part for part in parts if (revision := _revision(part[1])) is not None}
        return [
            _merged(*known_items[_revision(item)], item) if _revision(item) in known_items else item for item in after
        ]
    return after


def _revision(value: Any) -> Any:
    return getattr(value, "revision", None)
