"""What one document's attributes may hold so that every row of it fits in both stores,
and how rows are cut into requests.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import msgspec

from headrace.stores.terms import metadata_values
from schemas import Attributes

T = TypeVar("T")

ATTRIBUTES_MAX_BYTES = 64 * 1024
SOURCE_MAX_BYTES = 8 * 1024
TAGS_MAX = 1000
TAG_MAX_BYTES = 512
METADATA_MAX_BYTES = 64 * 1024
"""As terms (`headrace.stores.terms`), in JSON: Milvus takes 65,536 bytes in a JSON field."""

REQUEST_ROWS = 2000
REQUEST_BYTES = 8 * 1024 * 1024


def check_attributes(attributes: Attributes) -> None:
    """Raise ValueError, which says what is too large, for attributes that the stores would refuse."""
    _within("the title, source, tags and metadata together", _json_size(attributes), ATTRIBUTES_MAX_BYTES)
    _within("the source", len((attributes.source or "").encode()), SOURCE_MAX_BYTES)
    if len(attributes.tags) > TAGS_MAX:
        raise ValueError(f"{len(attributes.tags)} tags; at most {TAGS_MAX} are allowed")
    _within("a tag", max((len(tag.encode()) for tag in attributes.tags), default=0), TAG_MAX_BYTES)
    _within("the metadata, as it is indexed,", _json_size(metadata_values(attributes.metadata)), METADATA_MAX_BYTES)


def in_requests(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Consecutive items in lists of up to 2,000 or 8 MiB, whichever comes first;
    an item larger than that stands alone.
    """
    request: list[T] = []
    total = 0
    for item in items:
        added = size(item)
        if request and (len(request) == REQUEST_ROWS or total + added > REQUEST_BYTES):
            yield request
            request, total = [], 0
        request.append(item)
        total += added
    if request:
        yield request


def _json_size(value: object) -> int:
    return len(msgspec.json.encode(value))


def _within(what: str, size: int, most: int) -> None:
    if size > most:
        raise ValueError(f"{what} takes {size} bytes; at most {most} are allowed")
