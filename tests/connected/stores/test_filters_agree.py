"""Both stores let the same documents through as `Filters.matches` does, for every filter and value that the contract allows."""

import operator
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from headrace.stores import Filters, StoreSettings, TextRow, VectorRow, parse_filters
from headrace.stores.milvus import MilvusStore
from headrace.stores.opensearch import OpenSearchTextStore
from schemas import Attributes, EncoderIdentity

ENCODER = EncoderIdentity(name="test/four-dimensions", dimension=4, normalised=True)
TENANT = "filters"
NOW = datetime(2026, 5, 17, 12, 30, 15, 123456, tzinfo=UTC)

TEXTS = [
    "", "a", "b", "ab", "A", 'qu"ote', "apo'strophe", "back\\slash", "\\", "\\n", "line\nbreak", "tab\t", "nul\x00l", "é", "漢字", "😀", "%",
    "a_b", "{x}", '"] or id != "', "1", "true", "null", "2020-01-01", "2021-06-30T00:00:00Z", "x" * 1024, "x" * 1025, "x" * 2000,
    "x" * 1999 + "y", "漢" * 500, " ", "\x7f\u2028\ufeff",
]  # fmt: skip
NUMBERS = [
    0, 1, -1, 2, 7, 10, 100, -100, 0.0, 1.0, -1.0, 0.1, 0.5, 1.5, -0.5, 1e-9, 1e300, -1e300, 5e-324, 2**31, 2**53, 2**53 + 1, 2**53 - 1,
    float(2**53), 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 2019, 2020, 2020.5, 1e308,
]  # fmt: skip
SCALARS = [*TEXTS, *NUMBERS, True, False]
KEYS = [
    "k",
    "a.b",
    "a b",
    'a"b',
    "a'b",
    "",
    "é",
    "a/b",
    "a~1b",
    "k" * 64,
    "k" * 65,
    "K",
    "a\nb",
    "metadata.k",
    "=",
    "k=s",
    "#k",
    "0",
    "漢" * 200,
]


def _documents() -> dict[str, Attributes]:
    """One value at a time under one key, every key once, and mixtures."""
    documents = {
        f"value {place}": Attributes(created_at=NOW, metadata={"k": value}) for place, value in enumerate(SCALARS)
    }
    documents |= {
        f"key {place}": Attributes(created_at=NOW, metadata={key: "v", "all": 1}) for place, key in enumerate(KEYS)
    }
    documents |= {
        f"list {place}": Attributes(created_at=NOW, metadata={"k": texts}, tags=texts)
        for place, texts in enumerate([[], ["a"], ["a", "b"], TEXTS[:22], ["1", "true"], ["x" * 500]])
    }
    documents |= {
        f"tag {place}": Attributes(created_at=NOW, tags=[text, "shared"]) for place, text in enumerate(TEXTS[:22])
    }
    documents |= {f"source {place}": Attributes(created_at=NOW, source=text) for place, text in enumerate(TEXTS)}
    documents |= {
        f"time {place}": Attributes(created_at=moment)
        for place, moment in enumerate(
            [
                NOW - timedelta(milliseconds=1),
                NOW + timedelta(milliseconds=1),
                NOW.replace(year=1969),
                NOW.replace(year=1),
                NOW.replace(year=9999),
                datetime(1970, 1, 1, tzinfo=UTC),
            ]
        )
    }
    return documents | {text: Attributes(created_at=NOW, metadata={"id": text}) for text in TEXTS[1:22]}


def _conditions() -> list[dict[str, Any]]:
    conditions: list[dict[str, Any]] = [{"metadata.k": value} for value in SCALARS]
    conditions += [{"metadata.k": [value, "b", 7]} for value in SCALARS]
    conditions += [{"metadata.k": {bound: value}} for value in NUMBERS for bound in ("gte", "gt", "lte", "lt")]
    conditions += [
        {"metadata.k": {bound: text}}
        for text in TEXTS
        if len(text.encode()) <= 1000
        for bound in ("gte", "gt", "lte", "lt")
    ]
    conditions += [
        {"metadata.k": {"gte": 0, "lt": 10}},
        {"metadata.k": {"gt": 10, "lt": 0}},
        {"metadata.k": {"gt": "a", "lte": "b"}},
        {"metadata.k": []},
        {"metadata.nowhere": 1},
        {"metadata.k": list(range(1000))},
        {},
        {"doc_id": []},
        {"doc_id": [f"value {place}" for place in range(900)]},
        {"created_at": {"gte": "2026-05-17T12:30:15.123Z"}},
        {"created_at": {"gte": "2026-05-17T12:30:15.124Z"}},
        {"created_at": {"lt": "2026-05-17T12:30:15.123Z"}},
        {"created_at": {"lt": "2026-05-17T14:30:15.124+02:00"}},
        {"created_at": {"gte": "1970-01-01T00:00:00Z", "lt": "2026-01-01T00:00:00Z"}},
        {"created_at": {"lt": "1970-01-01T00:00:00Z"}},
        {"created_at": {"gte": "9999-01-01T00:00:00Z"}},
        {"created_at": {"gte": "0001-01-01T00:00:00Z"}},
        {"tags": {"any": []}},
        {"tags": {"all": []}},
        {"tags": {"all": ["a", "b"]}},
        {"tags": {"any": ["a", "nowhere"], "all": ["shared"]}},
        {"tags": {"any": ["shared"]}, "metadata.k": "a"},
        {"metadata.all": 1, "metadata.k": "v", "tags": {"all": []}},
        {"metadata.all": {"gte": 1}, 'metadata.a"b': "v"},
    ]
    conditions += [{f"metadata.{key}": "v"} for key in KEYS]
    conditions += [{f"metadata.{key}": {"gte": "u"}} for key in KEYS]
    for text in TEXTS:
        conditions += [{"tags": {"any": [text]}}, {"tags": {"all": [text, "shared"]}}, {"doc_id": [text, "value 1"]}]
        conditions += [{"source": text}] if text else []
    chance = random.Random(7)
    for _ in range(60):
        both = chance.sample(conditions, 2)
        conditions.append(both[0] | both[1])
    return conditions


@pytest.fixture(scope="module")
def documents() -> dict[str, Attributes]:
    return _documents()


@pytest.fixture(scope="module")
def vectors(
    settings: StoreSettings, documents: dict[str, Attributes], eventually: Callable[[Callable[[], bool]], None]
) -> MilvusStore:
    store = MilvusStore(settings, ENCODER)
    vector = np.ones(4, dtype=np.float32)
    store.upsert(
        TENANT,
        [
            VectorRow(
                id=f"r{place}",
                doc_id=doc_id,
                version=1,
                ordinal=0,
                content_hash="",
                attributes=attributes,
                vector=vector,
            )
            for place, (doc_id, attributes) in enumerate(documents.items())
        ],
    )
    eventually(lambda: len(_by_vector(store, Filters())) == len(documents))
    return store


@pytest.fixture(scope="module")
def texts(
    settings: StoreSettings, documents: dict[str, Attributes], eventually: Callable[[Callable[[], bool]], None]
) -> OpenSearchTextStore:
    store = OpenSearchTextStore(settings)
    store.upsert(
        TENANT,
        [
            TextRow(
                id=f"r{place}",
                doc_id=doc_id,
                version=1,
                ordinal=0,
                content_hash="",
                attributes=attributes,
                text="word",
                start=0,
                end=4,
            )
            for place, (doc_id, attributes) in enumerate(documents.items())
        ],
    )
    eventually(lambda: len(_by_text(store, Filters())) == len(documents))
    return store


def test_milvus_agrees(vectors: MilvusStore, documents: dict[str, Attributes]) -> None:
    assert [
        wrong for raw in _conditions() if (wrong := _disagreement(raw, documents, lambda f: _by_vector(vectors, f)))
    ] == []


def test_opensearch_agrees(texts: OpenSearchTextStore, documents: dict[str, Attributes]) -> None:
    assert [
        wrong for raw in _conditions() if (wrong := _disagreement(raw, documents, lambda f: _by_text(texts, f)))
    ] == []


def test_rows_come_back_as_they_were(texts: OpenSearchTextStore, documents: dict[str, Attributes]) -> None:
    found = texts.search(TENANT, "word", limit=1000, filters=Filters())
    rows, _ = texts.read(TENANT, [one.id for one in found], [])
    assert {row.doc_id: row.attributes for row in rows.values()} == documents


names = st.sampled_from([*KEYS, "all", "nowhere"])
texts_asked = st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
bounds_asked = st.sampled_from([text for text in TEXTS if len(text.encode()) <= 1000])
numbers_asked = st.sampled_from(NUMBERS) | st.integers(-3, 12) | st.floats(-3, 12)
scalars_asked = texts_asked | numbers_asked | st.booleans()
below, above = st.sampled_from(["gte", "gt"]), st.sampled_from(["lte", "lt"])
moments = st.sampled_from(
    ["1970-01-01T00:00:00Z", "2026-05-17T12:30:15.123Z", "2026-05-17T14:30:15.124+02:00", "9999-01-01T00:00:00Z"]
)


def ranges(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    one_side = (
        st.dictionaries(below, values, min_size=1, max_size=1),
        st.dictionaries(above, values, min_size=1, max_size=1),
    )
    return st.one_of(*one_side, st.builds(operator.or_, *one_side))


metadata_asked = scalars_asked | st.lists(scalars_asked, max_size=4) | ranges(numbers_asked) | ranges(bounds_asked)
conditions_asked = st.one_of(
    st.builds(lambda texts: {"tags": {"any": texts}}, st.lists(texts_asked, max_size=3)),
    st.builds(lambda text: {"tags": {"all": [text, "shared"]}}, texts_asked),
    st.builds(lambda place: {"doc_id": [f"value {place}", f"tag {place}", TEXTS[place]]}, st.integers(0, 21)),
    st.builds(lambda text: {"source": text}, texts_asked.filter(bool)),
    st.builds(
        lambda bounds: {"created_at": bounds}, st.dictionaries(st.sampled_from(["gte", "lt"]), moments, min_size=1)
    ),
    st.builds(lambda condition: {"metadata.k": condition}, metadata_asked),
    st.builds(lambda condition: {"metadata.k": condition}, metadata_asked),
    st.builds(lambda key, condition: {f"metadata.{key}": condition}, names, st.just("v") | ranges(st.just("v"))),
)
filters_asked = st.lists(conditions_asked, min_size=1, max_size=2).map(lambda asked: asked[0] | asked[-1])


@pytest.mark.parametrize("store", ["vectors", "texts"])
@seed(5)
@hypothesis_settings(
    max_examples=300, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(raw=filters_asked)
def test_any_filter_lets_through_what_the_contract_says(
    request: pytest.FixtureRequest, store: str, documents: dict[str, Attributes], raw: dict[str, Any]
) -> None:
    found_by = {"vectors": _by_vector, "texts": _by_text}[store]
    found = found_by(request.getfixturevalue(store), parse_filters(raw))
    assert found == {doc_id for doc_id, attributes in documents.items() if passes(raw, doc_id, attributes)}


def passes(raw: dict[str, Any], doc_id: str, attributes: Attributes) -> bool:
    """The contract's table of filters, read word by word."""
    return all(_holds(name, condition, doc_id, attributes) for name, condition in raw.items())


def _holds(name: str, condition: Any, doc_id: str, attributes: Attributes) -> bool:
    match name:
        case "tags":
            tags = set(attributes.tags)
            return set(condition.get("all", [])) <= tags and (
                "any" not in condition or bool(tags & set(condition["any"]))
            )
        case "doc_id":
            return doc_id in condition
        case "source":
            return attributes.source == condition
        case "created_at":
            held: Any = _milliseconds(attributes.created_at)
            return _within(
                held, {bound: _milliseconds(datetime.fromisoformat(text)) for bound, text in condition.items()}
            )
    key = name.removeprefix("metadata.")
    if key not in attributes.metadata:
        return False
    held = attributes.metadata[key]
    if isinstance(condition, dict):
        kinds = {isinstance(bound, str) for bound in condition.values()}
        return not isinstance(held, bool | list) and {isinstance(held, str)} == kinds and _within(held, condition)
    asked = condition if isinstance(condition, list) else [condition]
    return any(
        one == value and isinstance(one, bool) == isinstance(value, bool)
        for one in (held if isinstance(held, list) else [held])
        for value in asked
    )


def _within(held: Any, bounds: dict[str, Any]) -> bool:
    signs = {"gte": operator.ge, "gt": operator.gt, "lte": operator.le, "lt": operator.lt}
    return all(signs[name](held, bound) for name, bound in bounds.items())


def _milliseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def _disagreement(
    raw: dict[str, Any], documents: dict[str, Attributes], search: Callable[[Filters], set[str]]
) -> tuple[dict[str, Any], set[str], set[str]] | None:
    """The filter, what was found too much, and what was missed."""
    filters = parse_filters(raw)
    expected = {doc_id for doc_id, attributes in documents.items() if filters.matches(attributes, doc_id)}
    found = search(filters)
    return None if found == expected else (raw, found - expected, expected - found)


def _by_vector(store: MilvusStore, filters: Filters) -> set[str]:
    found = store.search(TENANT, np.ones(4, dtype=np.float32), limit=1000, filters=filters)
    return {one.doc_id for one in found}


def _by_text(store: OpenSearchTextStore, filters: Filters) -> set[str]:
    return {one.doc_id for one in store.search(TENANT, "word", limit=1000, filters=filters)}
