"""Metadata as strings that both stores compare exactly: equal values give equal strings, and numbers and texts keep
their order.

The stores differ from each other, and from Python, in how they compare booleans with numbers, integers with floats, and
integers beyond 2^53. So neither is given a number: a value becomes its kind (`b`, `n`, `s`, or `e` for an element of a
list) and digits or text in code-point order, which is also the order of UTF-8 bytes.
"""

import hashlib
import re
from collections.abc import Mapping
from datetime import datetime

from schemas import MetadataValue

NUMBER, TEXT, ELEMENT, BOOLEAN = "n", "s", "e", "b"
BOUND_MAX_BYTES = 1000
"""A longer bound could not be told from values that begin like it, of which the stores keep only the beginning."""

_KEPT_BYTES = 1024  # OpenSearch takes terms up to 32,766 bytes, but nobody filters by a page of text
_EXPONENT_BIAS = 2**19  # an integer of 64 KiB of digits is below 2^217,706
_COMPLEMENT = str.maketrans("0123456789abcdef", "fedcba9876543210")
_plain_key = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def created_at_ms(moment: datetime) -> int:
    """Unix milliseconds, as both stores hold times."""
    return round(moment.timestamp() * 1000)


def key_term(key: str) -> str:
    """A metadata key as the stores hold it:
    itself, or a digest where it is long or has characters that a path can't have.
    """
    if _plain_key.fullmatch(key):
        return key
    return f"#{_digest(key)}"


def value_term(value: str | bool | float) -> str:
    """One value. Raises OverflowError for an infinite number and ValueError for NaN: JSON has neither."""
    if isinstance(value, bool):
        return f"{BOOLEAN}{value:d}"
    if isinstance(value, str):
        return TEXT + _shortened(value)
    return NUMBER + _shortened(_ordered_digits(value))


def element_term(text: str) -> str:
    """An element of a list: equal to the same text asked for, but without a place in an order."""
    return ELEMENT + _shortened(text)


def metadata_values(metadata: Mapping[str, MetadataValue]) -> dict[str, str | list[str]]:
    """Metadata with keys and values as terms: what Milvus holds."""
    return {
        key_term(key): [element_term(text) for text in value] if isinstance(value, list) else value_term(value)
        for key, value in metadata.items()
    }


def keyed(key: str, term: str) -> str:
    """A key and a value's term as one keyword: what OpenSearch holds."""
    return f"{key_term(key)}={term}"


def metadata_keywords(metadata: Mapping[str, MetadataValue]) -> list[str]:
    """All keys and values as keywords."""
    return [
        f"{key}={term}"
        for key, terms in metadata_values(metadata).items()
        for term in (terms if isinstance(terms, list) else [terms])
    ]


def _shortened(text: str) -> str:
    """The text itself, or its beginning and a digest.
    No text is as long as the second, so the two are never confused.
    """
    encoded = text.encode()
    if len(encoded) <= _KEPT_BYTES:
        return text
    return f"{encoded[:_KEPT_BYTES].decode(errors='ignore')}\x00{_digest(text)}"


def _ordered_digits(number: float) -> str:
    """Binary scientific notation, exact for every integer and float:
    sign, exponent, and the digits after the leading 1.
    """
    if number == 0:
        return "1"
    numerator, denominator = abs(number).as_integer_ratio()
    width = numerator.bit_length() - 1
    exponent = width + 1 - denominator.bit_length()  # the denominator is a power of two
    padding = -width % 4
    fraction = (numerator ^ (1 << width)) << padding
    digits = f"{fraction:0{(width + padding) // 4}x}".rstrip("0") if width else ""
    magnitude = f"{exponent + _EXPONENT_BIAS:05x}{digits}"
    if number > 0:
        return f"2{magnitude}"
    # The larger the magnitude, the lower it sorts; `g` stands after all digits, so what goes on sorts before what ends.
    return f"0{magnitude.translate(_COMPLEMENT)}g"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
