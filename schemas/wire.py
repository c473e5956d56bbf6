"""Bytes to messages and back: UTF-8 JSON, one cached codec a type."""

import re
from collections.abc import Hashable
from functools import cache
from typing import Any, TypeVar, cast

import msgspec

T = TypeVar("T")

_high, _low = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_lone_surrogate = re.compile(rb"%b(?!%b)|(?<!%b)%b" % (_high, _low, _high, _low))
_encoder = msgspec.json.Encoder()


@cache
def _decoder(message_type: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(message_type)


def decode(value: bytes, message_type: type[T]) -> T:
    """Read one message.

    Raises msgspec.DecodeError when the bytes are not JSON (lone surrogates in escapes included), and its subclass
    msgspec.ValidationError when a field is missing or of another type; both name the place in their text.
    """
    try:
        message: T = _decoder(cast(Hashable, message_type)).decode(value)
    except RecursionError:
        raise msgspec.DecodeError("JSON is nested too deeply") from None
    except UnicodeDecodeError as exc:
        raise msgspec.DecodeError(f"a string is not UTF-8: {exc.reason}") from None
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError as exc:
        # msgspec calls some of these truncated input.
        if _lone_surrogate.search(value):
            raise msgspec.DecodeError(f"a string holds half of a surrogate pair: {exc}") from None
        raise
    return message


def encode(message: Any) -> bytes:
    """Write one message as UTF-8 JSON."""
    return _encoder.encode(message)
