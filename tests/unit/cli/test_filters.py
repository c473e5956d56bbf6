import re

import pytest

from headrace.cli.filters import parse_filters


@pytest.mark.parametrize(
    ("conditions", "filters"),
    [
        ([], {}),
        (["tag=a"], {"tags": {"all": ["a"]}}),
        (["tag=a", "tag=b", "tag=a"], {"tags": {"all": ["a", "b"]}}),
        (["tags=a,b"], {"tags": {"any": ["a", "b"]}}),
        (["tags.any=a, b", "tags.all=c"], {"tags": {"any": ["a", "b"], "all": ["c"]}}),
        (["doc_id=a,b/c"], {"doc_id": ["a,b/c"]}),
        (["doc_id=a", "doc_id=b"], {"doc_id": ["a", "b"]}),
        (["source=https://x.y/?a=b"], {"source": "https://x.y/?a=b"}),
        (["created_at>=2020-01-01"], {"created_at": {"gte": "2020-01-01T00:00:00Z"}}),
        (
            ["created_at>=2020-01-01T10:00:00+02:00", "created_at < 2021-01-01"],
            {"created_at": {"gte": "2020-01-01T10:00:00+02:00", "lt": "2021-01-01T00:00:00Z"}},
        ),
        (["metadata.lang=en"], {"metadata.lang": "en"}),
        (["metadata.lang=en", "metadata.lang=de"], {"metadata.lang": ["en", "de"]}),
        (["metadata.year=2019"], {"metadata.year": 2019}),
        (['metadata.year="2019"'], {"metadata.year": "2019"}),
        (["metadata.open=true"], {"metadata.open": True}),
        (["metadata.odd=NaN"], {"metadata.odd": "NaN"}),
        (["metadata.year>=2019", "metadata.year<2021.5"], {"metadata.year": {"gte": 2019, "lt": 2021.5}}),
        (["metadata.day>2020-01-01"], {"metadata.day": {"gt": "2020-01-01"}}),
    ],
)
def test_conditions_become_the_contracts_filters(conditions: list[str], filters: dict[str, object]) -> None:
    assert parse_filters(conditions) == filters


def test_conditions_join_the_filters_given_as_json() -> None:
    given = {"tags": {"any": ["x"]}, "source": "s"}
    assert parse_filters(["tag=a"], given) == {"tags": {"any": ["x"], "all": ["a"]}, "source": "s"}
    assert given == {"tags": {"any": ["x"]}, "source": "s"}


@pytest.mark.parametrize(
    "condition",
    [
        "tag",
        "tag=",
        "=a",
        "tag>=a",
        "author=x",
        "metadata.=x",
        "created_at=2020-01-01",
        "created_at>2020-01-01",
        "created_at>=yesterday",
        "metadata.year>=true",
    ],
)
def test_a_condition_of_another_form_is_refused_by_its_name(condition: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(condition))):
        parse_filters([condition])


@pytest.mark.parametrize(
    "conditions",
    [
        ["source=a", "source=b"],
        ["metadata.y=1", "metadata.y>=1"],
        ["metadata.y>=1", "metadata.y=1"],
        ["metadata.y>=1"] * 2,
    ],
)
def test_conditions_that_exclude_each_other_are_refused(conditions: list[str]) -> None:
    with pytest.raises(ValueError, match=r"source|metadata\.y"):
        parse_filters(conditions)
