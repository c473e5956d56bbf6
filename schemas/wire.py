"""Bytes to messages and back: UTF-8 JSON, one cached codec a type."""

from functools import cache
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

_encoder = msgspec.json.Encoder()


@cache
def _decoder(message_type: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(message_type)


def decode(value: bytes, message_type: type[T]) -> T:
    """Read one message.

    Raises msgspec.DecodeError when the bytes are not JSON (lone surrogates in escapes included), and its subclass
    msgspec.ValidationError when a field is missing or of another type; both name the place in their text.
    """
    message: T = _decoder(message_type).decode(value)
    return message


def encode(message: Any) -> bytes:
    """Write one message as UTF-8 JSON."""
    return _encoder.encode(message)
