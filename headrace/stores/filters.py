"""The contract's filters, parsed once into a typed form that both stores compile."""

import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, TypeAlias

import msgspec

from headrace.stores.terms import (
    BOUND_MAX_BYTES,
    created_at_ms,
    element_term,
    key_term,
    keyed,
    value_term,
)
from schemas import Attributes, MetadataValue

Scalar: TypeAlias = str | bool | int | float
Bound: TypeAlias = str | int | float

MAX_CONDITIONS = 100
MAX_VALUES = 1000
_BOUNDS = ("gte", "gt", "lte", "lt")
_METADATA = "metadata."
_KNOWN = "tags, doc_id, source, created_at and metadata.<key>"
_NUMBER_LIMIT = 2**1024  # beyond what a double can be; a longer number would not be told from others that begin like it


class AnyOf(msgspec.Struct, frozen=True, kw_only=True):
    """The value under `key` is one of `values`, or is a list that has one of them."""

    key: str
    values: tuple[Scalar, ...]

    def matches(self, metadata: Mapping[str, MetadataValue]) -> bool:
        held = metadata.get(self.key)
        if held is None:
            return False
        if isinstance(held, list):
            return any(_same(element, value) for element in held for value in self.values)
        return any(_same(held, value) for value in self.values)


class Between(msgspec.Struct, frozen=True, kw_only=True):
    """The value under `key` is of the bounds' kind (numbers, or texts in code-point order) and within them.
    A list has no order.
    """

    key: str
    gte: Bound | None = None
    gt: Bound | None = None
    lte: Bound | None = None
    lt: Bound | None = None

    @property
    def bounds(self) -> dict[str, Bound]:
        return {name: bound for name in _BOUNDS if (bound := getattr(self, name)) is not None}

    def matches(self, metadata: Mapping[str, MetadataValue]) -> bool:
        held = metadata.get(self.key)
        if held is None or isinstance(held, bool | list):
            return False
        # Any: the kinds are compared right here, and bounds of two kinds were refused when the filter was read.
        value: Any = held
        return all(
            isinstance(held, str) == isinstance(bound, str) and _holds(name, value, bound)
            for name, bound in self.bounds.items()
        )


class Filters(msgspec.Struct, frozen=True, kw_only=True):
    """All conditions hold together (AND). Empty means everything.

    A list of alternatives that is empty lets nothing through. Times are compared in whole milliseconds, in [from,
    before).
    """

    tags_any: tuple[str, ...] | None = None
    tags_all: tuple[str, ...] = ()
    doc_ids: tuple[str, ...] | None = None
    source: str | None = None
    created_from_ms: int | None = None
    created_before_ms: int | None = None
    metadata: tuple[AnyOf | Between, ...] = ()

    def matches(self, attributes: Attributes, doc_id: str) -> bool:
        """What both stores promise to agree with."""
        created = created_at_ms(attributes.created_at)
        return (
            (self.tags_any is None or any(tag in attributes.tags for tag in self.tags_any))
            and all(tag in attributes.tags for tag in self.tags_all)
            and (self.doc_ids is None or doc_id in self.doc_ids)
            and (self.source is None or attributes.source == self.source)
            and (self.created_from_ms is None or created >= self.created_from_ms)
            and (self.created_before_ms is None or created < self.created_before_ms)
            and all(condition.matches(attributes.metadata) for condition in self.metadata)
        )


def parse_filters(raw: Mapping[str, Any]) -> Filters:
    """Read a query's `filters`; raises ValueError, which names the filter at fault,
    for whatever is not of the contract's form.
    """
    if len(raw) > MAX_CONDITIONS:
        raise ValueError(f"filters: {len(raw)} conditions; at most {MAX_CONDITIONS} are allowed")
    fields: dict[str, Any] = {}
    metadata: list[AnyOf | Between] = []
    for name, condition in raw.items():
        match name:
            case "tags":
                fields |= _parse_tags(condition)
            case "doc_id":
                fields["doc_ids"] = _texts("doc_id", condition)
            case "source":
                if not isinstance(condition, str) or not condition:
                    raise _takes("source", "a string that is not empty")
                fields["source"] = condition
            case "created_at":
                fields |= _parse_created_at(condition)
            case _ if name.startswith(_METADATA):
                metadata.append(_parse_metadata(name, condition))
            case _:
                raise ValueError(f"filters: there is no {name!r}; what can be filtered is {_KNOWN}")
    return Filters(**fields, metadata=tuple(metadata))


def milvus_expression(filters: Filters) -> str:
    """As Milvus reads it; "" for no condition."""
    conditions: list[str] = []
    if filters.tags_any is not None:
        conditions.append(_unless_empty("array_contains_any(tags, {})", filters.tags_any))
    if filters.tags_all:
        conditions.append(f"array_contains_all(tags, {_literals(filters.tags_all)})")
    if filters.doc_ids is not None:
        conditions.append(_unless_empty("doc_id in {}", filters.doc_ids))
    if filters.source is not None:
        conditions.append(f"source == {milvus_literal(filters.source)}")
    if filters.created_from_ms is not None:
        conditions.append(f"created_at >= {filters.created_from_ms}")
    if filters.created_before_ms is not None:
        conditions.append(f"created_at < {filters.created_before_ms}")
    for condition in filters.metadata:
        path = f'metadata["{key_term(condition.key)}"]'
        if isinstance(condition, AnyOf):
            alternatives = [_unless_empty(f"{path} in {{}}", [value_term(value) for value in condition.values])]
            if elements := _elements(condition.values):
                alternatives.append(f"json_contains_any({path}, {_literals(elements)})")
            conditions.append(f"({' or '.join(alternatives)})")
        else:
            conditions += [
                f"{path} {_SIGNS[name]} {milvus_literal(term)}" for name, term in _term_bounds(condition).items()
            ]
    return " and ".join(conditions)


def opensearch_clauses(filters: Filters) -> list[dict[str, Any]]:
    """As the `filter` clauses of an OpenSearch bool query; [] for no condition."""
    clauses: list[dict[str, Any]] = []
    if filters.tags_any is not None:
        clauses.append({"terms": {"tags": list(filters.tags_any)}})
    clauses += [{"term": {"tags": tag}} for tag in filters.tags_all]
    if filters.doc_ids is not None:
        clauses.append({"terms": {"doc_id": list(filters.doc_ids)}})
    if filters.source is not None:
        clauses.append({"term": {"source": filters.source}})
    created = {"gte": filters.created_from_ms, "lt": filters.created_before_ms}
    if any(bound is not None for bound in created.values()):
        given = {name: bound for name, bound in created.items() if bound is not None}
        clauses.append({"range": {"created_at_ms": given}})
    for condition in filters.metadata:
        if isinstance(condition, AnyOf):
            terms = [*(value_term(value) for value in condition.values), *_elements(condition.values)]
            clauses.append({"terms": {"metadata_terms": [keyed(condition.key, term) for term in terms]}})
        else:
            bounds = {name: keyed(condition.key, term) for name, term in _term_bounds(condition).items()}
            clauses.append({"range": {"metadata_terms": bounds}})
    return clauses


def milvus_literal(text: str) -> str:
    """A string in Milvus' expression language, in ASCII, so that nothing in it can end it."""
    return f'"{"".join(map(_escaped, text))}"'


_SIGNS = {"gte": ">=", "gt": ">", "lte": "<=", "lt": "<"}
_NOTHING = 'id == ""'  # no row has an empty id


def _escaped(character: str) -> str:
    code = ord(character)
    if character in {'"', "\\"}:
        return f"\\{character}"
    if 0x20 <= code < 0x7F:
        return character
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _literals(texts: Iterable[str]) -> str:
    return f"[{', '.join(map(milvus_literal, texts))}]"


def _unless_empty(template: str, texts: Iterable[str]) -> str:
    literals = _literals(texts)
    return _NOTHING if literals == "[]" else template.format(literals)


def _elements(values: Iterable[Scalar]) -> list[str]:
    return [element_term(value) for value in values if isinstance(value, str)]


def _term_bounds(condition: Between) -> dict[str, str]:
    """Bounds on terms, always on both sides: what is open ends where the terms of the bounds' kind end."""
    given = {name: value_term(bound) for name, bound in condition.bounds.items()}
    kind = next(iter(given.values()))[0]
    if not given.keys() & {"gte", "gt"}:
        given["gte"] = kind
    if not given.keys() & {"lte", "lt"}:
        given["lt"] = chr(ord(kind) + 1)
    return given


def _same(held: Scalar, asked: Scalar) -> bool:
    """Equal and of one kind: 1 is 1.0, but True is not 1."""
    return isinstance(held, bool) == isinstance(asked, bool) and held == asked


def _holds(name: str, value: Any, bound: Any) -> bool:
    match name:
        case "gte":
            return bool(value >= bound)
        case "gt":
            return bool(value > bound)
        case "lte":
            return bool(value <= bound)
        case _:
            return bool(value < bound)


def _parse_tags(condition: Any) -> dict[str, Any]:
    given = _only("tags", condition, ("any", "all"))
    return {f"tags_{how}": _texts(f"tags.{how}", texts) for how, texts in given.items()}


def _parse_created_at(condition: Any) -> dict[str, Any]:
    given = _only("created_at", condition, ("gte", "lt"))
    names = {"gte": "created_from_ms", "lt": "created_before_ms"}
    return {names[name]: _moment(f"created_at.{name}", text) for name, text in given.items()}


def _parse_metadata(name: str, condition: Any) -> AnyOf | Between:
    key = name.removeprefix(_METADATA)
    if isinstance(condition, Mapping):
        bounds = {bound: _bound(f"{name}.{bound}", value) for bound, value in _only(name, condition, _BOUNDS).items()}
        if len({isinstance(bound, str) for bound in bounds.values()}) > 1:
            raise ValueError(f"filters: {name} has bounds of two kinds, a number and a string")
        if {"gte", "gt"} <= bounds.keys() or {"lte", "lt"} <= bounds.keys():
            raise ValueError(f"filters: {name} has two bounds on one side")
        return Between(key=key, **bounds)
    values = _listed(name, condition) if isinstance(condition, list) else [condition]
    return AnyOf(key=key, values=tuple(_scalar(name, value) for value in values))


def _only(name: str, condition: Any, known: tuple[str, ...]) -> Mapping[str, Any]:
    allowed = ", ".join(known)
    if not isinstance(condition, Mapping) or not condition:
        raise _takes(name, f"an object of {allowed}")
    unknown = sorted(set(condition) - set(known))
    if unknown:
        raise ValueError(f"filters: {name} has no {', '.join(map(repr, unknown))}; it takes {allowed}")
    return condition


def _listed(name: str, condition: Any) -> list[Any]:
    if not isinstance(condition, list):
        raise _takes(name, "a list")
    if len(condition) > MAX_VALUES:
        raise ValueError(f"filters: {name} has {len(condition)} values; at most {MAX_VALUES} are allowed")
    return condition


def _texts(name: str, condition: Any) -> tuple[str, ...]:
    texts = _listed(name, condition)
    if not all(isinstance(text, str) for text in texts):
        raise _takes(name, "a list of strings")
    return tuple(texts)


def _scalar(name: str, value: Any) -> Scalar:
    if not isinstance(value, str | bool | int | float):
        raise _takes(name, "a string, a number, a boolean, a list of these, or an object of bounds")
    if not isinstance(value, str | bool):
        _check_number(name, value)
    return value


def _bound(name: str, value: Any) -> Bound:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _takes(name, "a number or a string")
    if not isinstance(value, str):
        _check_number(name, value)
    elif len(value.encode()) > BOUND_MAX_BYTES:
        raise ValueError(f"filters: {name} is longer than {BOUND_MAX_BYTES} bytes")
    return value


def _check_number(name: str, value: float) -> None:
    if (isinstance(value, float) and not math.isfinite(value)) or abs(value) >= _NUMBER_LIMIT:
        raise ValueError(f"filters: {name} is a number beyond any double")


def _moment(name: str, text: Any) -> int:
    try:
        moment = msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise _takes(name, "an RFC 3339 time with its zone, such as 2020-01-31T00:00:00Z")
    return created_at_ms(moment)


def _takes(name: str, what: str) -> ValueError:
    return ValueError(f"filters: {name} takes {what}")
