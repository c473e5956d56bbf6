"""`--filter KEY=VALUE` as the contract's filters."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import orjson

_CONDITION = re.compile(r"(?P<name>[^=<>]+?)\s*(?P<sign>>=|<=|=|>|<)\s*(?P<value>.*)", re.DOTALL)
_BOUNDS = {">=": "gte", ">": "gt", "<=": "lte", "<": "lt"}
_CREATED_AT_BOUNDS = {">=": "gte", "<": "lt"}
METADATA = "metadata."

HELP = (
    "Only what fulfils this; repeat it for several, which all must hold: tag=a · tags.any=a,b · tags.all=a,b · "
    "doc_id=x (again: any of them) · source=… · created_at>=2020-01-01 · created_at<2021-01-01 · metadata.lang=en "
    "(again: any of them) · metadata.year>=2019."
)


def parse_filters(conditions: Iterable[str], given: dict[str, Any] | None = None) -> dict[str, Any]:
    """The conditions joined with the filters given as JSON; raises ValueError, naming the condition at fault."""
    filters: dict[str, Any] = dict(given or {})
    for condition in conditions:
        found = _CONDITION.fullmatch(condition.strip())
        if found is None:
            raise ValueError(f"{condition!r} is not of the form KEY=VALUE (or >=, >, <=, <)")
        try:
            _add(filters, found["name"].strip(), found["sign"], found["value"].strip())
        except ValueError as exc:
            raise ValueError(f"{condition!r}: {exc}") from None
    return filters


def _add(filters: dict[str, Any], name: str, sign: str, value: str) -> None:
    if not value:
        raise ValueError("has no value")
    match name:
        case "tag" | "tags.all":
            _equals(sign)
            _extend(filters, "tags", "all", [value] if name == "tag" else _listed(value))
        case "tags" | "tags.any":
            _equals(sign)
            _extend(filters, "tags", "any", _listed(value))
        case "doc_id":
            _equals(sign)
            filters["doc_id"] = [*_as_list(filters.get("doc_id", [])), value]
        case "source":
            _equals(sign)
            if "source" in filters:
                raise ValueError("a document has one source")
            filters["source"] = value
        case "created_at":
            if sign not in _CREATED_AT_BOUNDS:
                raise ValueError("created_at takes >= and <")
            _bound(filters, name, _CREATED_AT_BOUNDS[sign], _timestamp(value))
        case _ if name.startswith(METADATA) and name != METADATA:
            _add_metadata(filters, name, sign, value)
        case _:
            raise ValueError(
                "what can be filtered is tag, tags.any, tags.all, doc_id, source, created_at, metadata.<key>"
            )


def _add_metadata(filters: dict[str, Any], name: str, sign: str, value: str) -> None:
    if sign in _BOUNDS:
        bound = _scalar(value)
        if isinstance(bound, bool):
            raise ValueError(f"{sign} takes a number or a text")
        _bound(filters, name, _BOUNDS[sign], bound)
    elif name not in filters:
        filters[name] = _scalar(value)
    elif isinstance(filters[name], dict):
        raise ValueError(f"{name} has both a value and bounds")
    else:
        filters[name] = [*_as_list(filters[name]), _scalar(value)]


def _equals(sign: str) -> None:
    if sign != "=":
        raise ValueError("takes = only")


def _extend(filters: dict[str, Any], name: str, how: str, values: list[str]) -> None:
    conditions = dict(filters.get(name, {}))
    conditions[how] = list(dict.fromkeys([*conditions.get(how, []), *values]))
    filters[name] = conditions


def _bound(filters: dict[str, Any], name: str, bound: str, value: Any) -> None:
    bounds = filters.get(name, {})
    if not isinstance(bounds, dict):
        raise ValueError(f"{name} has both a value and bounds")
    if bound in bounds:
        raise ValueError(f"{name} has two such bounds")
    filters[name] = {**bounds, bound: value}


def _listed(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _scalar(value: str) -> str | bool | int | float:
    """A JSON number, boolean or quoted string is what it says; anything else is text."""
    try:
        parsed = orjson.loads(value)
    except orjson.JSONDecodeError:
        return value
    return parsed if isinstance(parsed, str | bool | int | float) else value


def _timestamp(value: str) -> str:
    """RFC 3339; a date is its midnight, and what names no zone is UTC."""
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("takes a date or an RFC 3339 time") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat().replace("+00:00", "Z")
