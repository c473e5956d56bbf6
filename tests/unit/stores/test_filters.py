import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from headrace.stores import Filters, parse_filters
from headrace.stores.filters import AnyOf, Between, milvus_expression, milvus_literal, opensearch_clauses
from headrace.stores.terms import key_term, metadata_keywords, metadata_values, value_term

numbers = some.integers() | some.floats(allow_nan=False, allow_infinity=False)
texts = some.text(some.characters(exclude_categories=["Cs"]), max_size=50)
scalars = some.booleans() | numbers | texts


def test_every_form_of_the_contract() -> None:
    raw = {
        "tags": {"any": ["a"], "all": ["b", "c"]},
        "doc_id": ["x/y"],
        "source": "https://example.org",
        "created_at": {"gte": "1970-01-01T00:00:01Z", "lt": "1970-01-01T01:00:02+01:00"},
        "metadata.lang": "en",
        "metadata.year": {"gte": 2019, "lt": 2020.5},
        "metadata.kind": ["a", 1, True],
    }
    assert parse_filters(raw) == Filters(
        tags_any=("a",),
        tags_all=("b", "c"),
        doc_ids=("x/y",),
        source="https://example.org",
        created_from_ms=1000,
        created_before_ms=2000,
        metadata=(
            AnyOf(key="lang", values=("en",)),
            Between(key="year", gte=2019, lt=2020.5),
            AnyOf(key="kind", values=("a", 1, True)),
        ),
    )


def test_no_filters() -> None:
    assert parse_filters({}) == Filters()
    assert milvus_expression(Filters()) == ""
    assert opensearch_clauses(Filters()) == []


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"title": "x"}, "there is no 'title'; what can be filtered is tags, doc_id"),
        ({"metadata": {"a": 1}}, "there is no 'metadata'"),
        ({"tags": ["a"]}, "tags takes an object of any, all"),
        ({"tags": {}}, "tags takes an object of any, all"),
        ({"tags": {"none": ["a"]}}, "tags has no 'none'; it takes any, all"),
        ({"tags": {"any": "a"}}, "tags.any takes a list"),
        ({"tags": {"any": [1]}}, "tags.any takes a list of strings"),
        ({"doc_id": "a"}, "doc_id takes a list"),
        ({"doc_id": ["a"] * 1001}, "doc_id has 1001 values; at most 1000"),
        ({"source": ["a"]}, "source takes a string"),
        ({"source": ""}, "source takes a string that is not empty"),
        ({"created_at": "2020-01-01T00:00:00Z"}, "created_at takes an object of gte, lt"),
        ({"created_at": {"gt": "2020-01-01T00:00:00Z"}}, "created_at has no 'gt'"),
        ({"created_at": {"gte": "2020-01-01"}}, "created_at.gte takes an RFC 3339 time"),
        ({"created_at": {"gte": "2020-01-01T00:00:00"}}, "created_at.gte takes an RFC 3339 time with its zone"),
        ({"created_at": {"gte": 5}}, "created_at.gte takes an RFC 3339 time"),
        ({"metadata.a": None}, "metadata.a takes a string, a number"),
        ({"metadata.a": [["b"]]}, "metadata.a takes a string, a number"),
        ({"metadata.a": {"eq": 1}}, "metadata.a has no 'eq'; it takes gte, gt, lte, lt"),
        ({"metadata.a": {}}, "metadata.a takes an object of gte"),
        ({"metadata.a": {"gte": True}}, "metadata.a.gte takes a number or a string"),
        ({"metadata.a": {"gte": [1]}}, "metadata.a.gte takes a number or a string"),
        ({"metadata.a": {"gte": 1, "lt": "b"}}, "metadata.a has bounds of two kinds"),
        ({"metadata.a": {"gte": 1, "gt": 2}}, "metadata.a has two bounds on one side"),
        ({"metadata.a": {"gte": "x" * 1001}}, "metadata.a.gte is longer than 1000 bytes"),
        ({"metadata.a": 2**1024}, "metadata.a is a number beyond any double"),
        ({"metadata.a": math.inf}, "metadata.a is a number beyond any double"),
        ({f"metadata.{n}": 1 for n in range(101)}, "101 conditions; at most 100"),
    ],
)
def test_what_is_not_of_the_contracts_form_is_refused(raw: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=r"^filters: ") as refusal:
        parse_filters(raw)
    assert says in str(refusal.value)


@given(numbers, numbers)
def test_terms_of_numbers_compare_as_the_numbers_do(one: float, other: float) -> None:
    assert (value_term(one) < value_term(other)) == (one < other)
    assert (value_term(one) == value_term(other)) == (one == other)


@given(texts, texts)
def test_terms_of_texts_compare_as_the_texts_do(one: str, other: str) -> None:
    terms = value_term(one), value_term(other)
    assert (terms[0] < terms[1]) == (one < other) == (terms[0].encode() < terms[1].encode())


@given(scalars, scalars)
def test_terms_are_equal_when_kind_and_value_are(one: Any, other: Any) -> None:
    assert (value_term(one) == value_term(other)) == AnyOf(key="k", values=(other,)).matches({"k": one})


@given(texts, texts)
def test_keys_are_told_apart(one: str, other: str) -> None:
    assert (key_term(one) == key_term(other)) == (one == other)


@pytest.mark.parametrize("length", [1023, 1024, 1025, 30_000])
def test_long_texts_stay_apart_and_short_enough(length: int) -> None:
    same, longer, other = value_term("é" * length), value_term("é" * (length + 1)), value_term("é" * length + "x")
    assert len({same, longer, other}) == 3
    assert value_term("é" * length) == same
    assert max(len(term.encode()) for term in (same, longer, other)) < 1100


def test_metadata_as_the_stores_hold_it() -> None:
    metadata = {"lang": "en", "year": 2019, "public": True, "authors": ["A", "B"], "a b": "c"}
    assert metadata_values(metadata) == {
        "lang": "sen",
        "year": value_term(2019),
        "public": "b1",
        "authors": ["eA", "eB"],
        key_term("a b"): "sc",
    }
    assert metadata_keywords({"lang": "en", "authors": ["A", "B"]}) == ["lang=sen", "authors=eA", "authors=eB"]


@given(texts)
def test_a_literal_is_ascii_and_ends_where_it_should(text: str) -> None:
    literal = milvus_literal(text)
    assert literal.isascii()
    assert literal.isprintable()
    inner = literal[1:-1].replace("\\\\", "").replace('\\"', "")
    assert '"' not in inner
