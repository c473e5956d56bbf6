"""The client's messages are headrace's own, without a line of its code: every field, type, bound and default."""

from collections.abc import Iterator
from datetime import UTC, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any

import headrace_client
import msgspec
import pytest
from headrace_client import messages
from hypothesis import given, settings
from hypothesis import strategies as st

import schemas
from topics.contract import MESSAGES

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
TYPES = {
    name: found
    for name in headrace_client.__all__
    if isinstance(found := getattr(messages, name, None), type) and issubclass(found, msgspec.Struct)
}
ROOTS = ["Document", "Deletion", "DocumentEvent", "Query", "Answer", "Delta"]
MIDDLE = {"ChunkBatch", "EmbeddingBatch", "Receipt", "Settlement", "Generations"}
"""Of the topics between the stages and of operators; the client has nothing to do with them."""


def shape(message_type: type) -> Any:
    """The JSON Schema, without the words that describe it."""

    def plain(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: plain(part) for name, part in node.items() if name != "description"}
        return [plain(part) for part in node] if isinstance(node, list) else node

    return plain(msgspec.json.schema(message_type))


def configuration(message_type: Any) -> dict[str, Any]:
    config = message_type.__struct_config__
    return {name: getattr(config, name) for name in dir(config) if not name.startswith("_")}


@pytest.mark.parametrize("name", sorted(TYPES))
def test_a_message_has_the_fields_types_bounds_and_defaults_of_the_contract(name: str) -> None:
    ours, theirs = TYPES[name], getattr(schemas, name)
    assert shape(ours) == shape(theirs)
    assert ours.__struct_fields__ == theirs.__struct_fields__
    assert configuration(ours) == configuration(theirs)


def test_every_public_message_of_the_contract_is_there() -> None:
    assert {message.__name__ for message in MESSAGES} - MIDDLE == set(ROOTS)
    assert {*ROOTS} <= set(TYPES)


def golden() -> Iterator[Any]:
    for file in sorted(GOLDEN.glob("*/*.json")):
        name = "".join(part.title() for part in file.stem.split("_"))
        if name in TYPES:
            yield pytest.param(name, file.read_bytes(), id=f"{file.parent.name}/{file.stem}")


@pytest.mark.parametrize(("name", "value"), [*golden()])
def test_what_a_released_version_wrote_is_read_and_written_as_headrace_does(name: str, value: bytes) -> None:
    ours = messages.decode(value, TYPES[name])
    theirs = schemas.decode(value, getattr(schemas, name))
    assert messages.encode(ours) == schemas.encode(theirs)
    assert schemas.decode(messages.encode(ours), getattr(schemas, name)) == theirs


def test_there_is_a_golden_file_of_every_message_that_travels() -> None:
    assert {case.values[0] for case in golden()} == set(ROOTS)


@cache
def made(message_type: type) -> st.SearchStrategy[Any]:
    """Messages of any content, within their bounds; a field is sometimes left at its default."""
    found = msgspec.inspect.type_info(message_type)
    assert isinstance(found, msgspec.inspect.StructType)
    required = {field.name: value_of(field.type) for field in found.fields if field.required}
    optional = {field.name: value_of(field.type) for field in found.fields if not field.required}
    return st.fixed_dictionaries(required, optional=optional).map(lambda fields: message_type(**fields))


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def value_of(kind: Any) -> st.SearchStrategy[Any]:
    match kind:
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.IntType(ge=low, le=high):
            return st.integers(-(2**63) if low is None else low, 2**63 - 1 if high is None else high)
        case msgspec.inspect.FloatType(ge=low, le=high):
            return st.floats(low, high, allow_nan=False, allow_infinity=False)
        case msgspec.inspect.StrType(pattern=str(pattern)):
            return st.from_regex(pattern.replace("$", r"\Z"))
        case msgspec.inspect.StrType(min_length=least):
            return st.text(st.characters(exclude_categories=["Cs"]), min_size=least or 0, max_size=20)
        case msgspec.inspect.DateTimeType():
            return st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-5, minutes=-30))]))
        case msgspec.inspect.LiteralType(values=values):
            return st.sampled_from(values)
        case msgspec.inspect.ListType(item_type=item):
            return st.lists(value_of(item), max_size=3)
        case msgspec.inspect.DictType(value_type=value):
            return st.dictionaries(TEXT, value_of(value), max_size=3)
        case msgspec.inspect.UnionType(types=types):
            return st.one_of([value_of(one) for one in types])
        case msgspec.inspect.StructType(cls=message_type):
            return made(message_type)
        case msgspec.inspect.AnyType():
            return st.recursive(
                st.none() | st.booleans() | st.integers(-(2**31), 2**31) | TEXT,
                lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
                max_leaves=4,
            )
    raise NotImplementedError(kind)


@pytest.mark.parametrize("name", ROOTS)
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_what_either_side_writes_the_other_reads_alike(name: str, data: st.DataObject) -> None:
    for ours, theirs in ((TYPES[name], getattr(schemas, name)), (getattr(schemas, name), TYPES[name])):
        message = data.draw(made(ours))
        written = schemas.encode(message)
        there = messages.decode(written, theirs)
        assert messages.encode(there) == written
        assert schemas.decode(messages.encode(there), ours) == schemas.decode(written, ours)
