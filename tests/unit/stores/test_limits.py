from datetime import UTC, datetime
from typing import Any

import pytest

from headrace.stores import check_attributes
from headrace.stores.limits import in_requests
from headrace.stores.milvus import collection_name
from headrace.stores.opensearch import first_words
from schemas import Attributes

NOW = datetime(2026, 5, 17, tzinfo=UTC)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"source": "é" * 4097}, "the source takes 8194 bytes"),
        ({"tags": ["a"] * 1001}, "1001 tags"),
        ({"tags": ["a", "é" * 257]}, "a tag takes 514 bytes"),
        ({"title": "x" * 70_000}, "the title, source, tags and metadata together"),
        ({"metadata": {str(n): 1 for n in range(6500)}}, "the metadata, as it is indexed"),
    ],
)
def test_attributes_that_the_stores_would_refuse(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_attributes(Attributes(created_at=NOW, **fields))


def test_attributes_that_fit() -> None:
    check_attributes(Attributes(created_at=NOW))
    check_attributes(Attributes(created_at=NOW, source="x" * 8192, tags=["é" * 256] * 90, metadata={"k": "x" * 5000}))


@pytest.mark.parametrize(
    ("sizes", "requests"),
    [
        ([], []),
        ([1] * 2000, [2000]),
        ([1] * 4001, [2000, 2000, 1]),
        ([4 * 2**20] * 5, [2, 2, 1]),
        ([9 * 2**20, 1, 9 * 2**20], [1, 1, 1]),
    ],
)
def test_requests_end_at_2000_items_or_8_mib(sizes: list[int], requests: list[int]) -> None:
    assert [len(request) for request in in_requests(sizes, lambda size: size)] == requests


def test_collections_of_different_tenants_have_different_names() -> None:
    names = {collection_name("tenant_", tenant) for tenant in ("a-b", "a_b", "ab", "a--b", "a_-b", "a-_b", "a-b_docs")}
    assert len(names) == 7
    assert all(name.isidentifier() for name in names)


@pytest.mark.parametrize(
    ("question", "kept"),
    [
        ("how does a turbine's wheel turn?", "how does a turbine's wheel turn?"),
        ("word " * 800, "word " * 800),
        ("word " * 801, "word " * 800),
        ("漢" * 900, "漢" * 800),
        ("x" * 8192, "x" * 8192),
        ("-" * 8192, "-" * 8192),
    ],
)
def test_a_question_is_searched_for_by_its_first_800_words(question: str, kept: str) -> None:
    assert first_words(question) == kept
