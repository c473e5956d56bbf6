"""Both stores let the same documents through as `Filters.matches` does, for every filter and value that the contract allows."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

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
    assert {one.doc_id: one.row.attributes for one in found if one.row} == documents


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
