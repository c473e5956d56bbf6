"""The published contract says what the code does, and every file of it is what the code would write today."""

import json
from contextlib import nullcontext
from datetime import UTC
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.stores.filters import parse_filters
from schemas import Answer, Document, Query, decode, encode
from schemas.document import Deletion, read_document
from schemas.key import parse_key
from tests.unit.contract.contract_examples import EXAMPLES
from topics import TOPICS, contract
from topics.fields import ABOUT, FIELDS
from topics.provisioning import topic_config
from topics.settings import KafkaSettings

ROOT = Path(__file__).parents[3]
PUBLISHED = ROOT / "schemas" / "published"
SCHEMAS = {schema["title"]: schema for schema in contract.json_schemas().values()}
VALIDATORS = {name: jsonschema.Draft202012Validator(schema) for name, schema in SCHEMAS.items()}
DOCUMENT = contract.asyncapi()


def accepts(message: type[msgspec.Struct], value: bytes) -> bool:
    return bool(VALIDATORS[message.__name__].is_valid(json.loads(value)))


def decodes(message: type[msgspec.Struct], value: bytes) -> bool:
    try:
        if message in (Document, Deletion):
            return type(read_document(value)) is message
        decode(value, message)
    except msgspec.ValidationError:
        return False
    return True


def test_the_published_contract_has_not_drifted() -> None:
    assert contract.drift(PUBLISHED) == [], "run `headrace schema export`"


def test_export_writes_the_same_bytes_every_time(tmp_path: Path) -> None:
    first = {path.name: path.read_bytes() for path in contract.export(tmp_path / "a")}
    second = {path.name: path.read_bytes() for path in contract.export(tmp_path / "b")}
    assert first == second
    assert contract.drift(tmp_path / "a") == []


def test_drift_names_what_is_missing_changed_and_stray(tmp_path: Path) -> None:
    contract.export(tmp_path)
    (tmp_path / "document.schema.json").unlink()
    (tmp_path / "asyncapi.json").write_text("{}")
    (tmp_path / "gone.schema.json").write_text("{}")
    assert contract.drift(tmp_path) == [
        "document.schema.json is missing",
        "asyncapi.json differs from the message types and the topic table",
        "gone.schema.json is no part of the contract any more",
    ]


# JSON Schemas


@pytest.mark.parametrize("file", sorted(contract.json_schemas()))
def test_each_json_schema_is_a_valid_one(file: str) -> None:
    schema = contract.json_schemas()[file]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$id"] == file


def test_every_field_and_every_type_of_the_schemas_is_described() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert schema["description"], name
        for field, prop in schema["properties"].items():
            assert prop["description"].rstrip().endswith((".", "`")), f"{name}.{field}"


def test_the_table_of_meanings_has_just_the_fields_that_there_are() -> None:
    published = set(DOCUMENT["components"]["schemas"])
    assert {struct.__name__ for struct in FIELDS} == published
    assert {struct.__name__ for struct in ABOUT} <= published
    for struct, meanings in FIELDS.items():
        assert sorted(meanings) == sorted(struct.__struct_fields__)


@pytest.mark.parametrize("message", contract.MESSAGES)
def test_a_schema_accepts_what_is_encoded(message: type[msgspec.Struct]) -> None:
    example = next(example for example in EXAMPLES.values() if type(example) is message)
    assert accepts(message, encode(example))


metadata_values = st.one_of(
    st.text(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.lists(st.text())
)
documents = st.builds(
    Document,
    text=st.text(),
    title=st.none() | st.text(),
    content_type=st.sampled_from(["text/plain", "text/markdown", "text/html"]),
    source_confidence=st.none() | st.floats(0, 1),
    created_at=st.none() | st.datetimes(timezones=st.just(UTC)),
    tags=st.lists(st.text()),
    metadata=st.dictionaries(st.text(), metadata_values),
    version=st.none() | st.integers(-(2**63), 2**63 - 1),
)


@given(documents)
def test_any_document_that_is_encoded_is_accepted_and_decodes(document: Document) -> None:
    value = encode(document)
    assert accepts(Document, value)
    assert read_document(value) == document


BROKEN = [
    (Document, b"{}"),
    (Document, b"[]"),
    (Document, b"null"),
    (Document, b'"text"'),
    (Document, b'{"title": "no text"}'),
    (Document, b'{"text": null}'),
    (Document, b'{"text": 5}'),
    (Document, b'{"text": ["a"]}'),
    (Document, b'{"text": "a", "op": "replace"}'),
    (Document, b'{"text": "a", "op": null}'),
    (Document, b'{"text": "a", "op": "delete"}'),
    (Document, b'{"text": "a", "title": 5}'),
    (Document, b'{"text": "a", "content_type": "application/pdf"}'),
    (Document, b'{"text": "a", "source_confidence": 1.5}'),
    (Document, b'{"text": "a", "source_confidence": "high"}'),
    (Document, b'{"text": "a", "created_at": 5}'),
    (Document, b'{"text": "a", "tags": null}'),
    (Document, b'{"text": "a", "tags": "b"}'),
    (Document, b'{"text": "a", "tags": [1]}'),
    (Document, b'{"text": "a", "metadata": {"k": null}}'),
    (Document, b'{"text": "a", "metadata": {"k": {"deep": 1}}}'),
    (Document, b'{"text": "a", "metadata": {"k": [1]}}'),
    (Document, b'{"text": "a", "version": "7"}'),
    (Document, b'{"text": "a", "version": 1.5}'),
    (Document, b'{"text": "a", "version": true}'),
    (Document, b'{"text": "a", "version": 9223372036854775808}'),
    (Document, b'{"text": "a", "chunking": {"strategy": "random"}}'),
    (Document, b'{"text": "a", "chunking": {"max_tokens": 0}}'),
    (Document, b'{"text": "a", "chunking": {"overlap_tokens": -1}}'),
    (Deletion, b"{}"),
    (Deletion, b'{"version": 7}'),
    (Deletion, b'{"op": "upsert"}'),
    (Deletion, b'{"op": "delete", "version": "7"}'),
    (Query, b"{}"),
    (Query, b'{"query": ""}'),
    (Query, b'{"query": "a", "tenant": "UPPER"}'),
    (Query, b'{"query": "a", "mode": "guess"}'),
    (Query, b'{"query": "a", "top_k": 0}'),
    (Query, b'{"query": "a", "top_k": 101}'),
    (Query, b'{"query": "a", "filters": []}'),
    (Query, b'{"query": "a", "fusion": {"method": "sum"}}'),
    (Query, b'{"query": "a", "fusion": {"alpha": 2}}'),
    (Query, b'{"query": "a", "stream": null}'),
    (Answer, b'{"error": {"code": "oops", "message": "a"}}'),
    (Answer, b'{"hits": [{"rank": 1}]}'),
]


@pytest.mark.parametrize(("message", "value"), BROKEN)
def test_schema_and_decoder_refuse_the_same(message: type[msgspec.Struct], value: bytes) -> None:
    assert not accepts(message, value)
    assert not decodes(message, value)


@pytest.mark.parametrize(
    ("message", "value"),
    [
        (Document, b'{"text": ""}'),
        (Document, b'{"text": "a", "of_tomorrow": {"x": 1}}'),
        (Document, b'{"text": "a", "source_confidence": 1, "created_at": "2026-01-01T00:00:00+02:00"}'),
        (Deletion, b'{"op": "delete"}'),
        (Deletion, b'{"op": "delete", "version": -3, "of_tomorrow": 1}'),
        (Query, b'{"query": "a"}'),
        (Query, b'{"query": "a", "of_tomorrow": 1}'),
        (Answer, b"{}"),
    ],
)
def test_schema_and_decoder_accept_the_same(message: type[msgspec.Struct], value: bytes) -> None:
    assert accepts(message, value)
    assert decodes(message, value)


FILTERS: list[tuple[bool, dict[str, Any]]] = [
    (True, {}),
    (True, {"tags": {"any": ["a"]}}),
    (True, {"tags": {"any": ["a"], "all": []}}),
    (True, {"doc_id": ["a", "b"], "source": "s"}),
    (True, {"created_at": {"gte": "2026-01-01T00:00:00Z"}}),
    (True, {"metadata.k": "v", "metadata.n": 1.5, "metadata.b": True}),
    (True, {"metadata.k": ["v", 1, False]}),
    (True, {"metadata.k": {"gte": 1, "lt": 2.5}}),
    (True, {"metadata.k": {"gt": "a", "lte": "b"}}),
    (False, {"tag": ["a"]}),
    (False, {"tags": ["a"]}),
    (False, {"tags": {}}),
    (False, {"tags": {"none": ["a"]}}),
    (False, {"tags": {"any": [1]}}),
    (False, {"doc_id": "a"}),
    (False, {"source": ""}),
    (False, {"source": ["s"]}),
    (False, {"created_at": "2026-01-01T00:00:00Z"}),
    (False, {"created_at": {"gt": "2026-01-01T00:00:00Z"}}),
    (False, {"created_at": {"gte": 5}}),
    (False, {"metadata.k": None}),
    (False, {"metadata.k": [["v"]]}),
    (False, {"metadata.k": {}}),
    (False, {"metadata.k": {"eq": 1}}),
    (False, {"metadata.k": {"gte": True}}),
    (False, {"metadata.k": {"gte": 1, "gt": 1}}),
    (False, {"metadata.k": {"gte": 1, "lt": "b"}}),
    (False, {"doc_id": ["a"] * 1001}),
    (False, {f"metadata.{number}": 1 for number in range(101)}),
]


@pytest.mark.parametrize(("good", "filters"), FILTERS)
def test_schema_and_parser_agree_on_filters(good: bool, filters: dict[str, Any]) -> None:
    assert VALIDATORS["Query"].is_valid({"query": "a", "filters": filters}) is good
    with nullcontext() if good else pytest.raises(ValueError, match="filters"):
        parse_filters(filters)


# AsyncAPI


def test_the_asyncapi_document_is_a_valid_one() -> None:
    schema = json.loads((ROOT / "tests/data/asyncapi/asyncapi-3.0.0.schema.json").read_text())
    jsonschema.Draft7Validator(schema).validate(DOCUMENT)


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    def references(node: Any) -> list[str]:
        if isinstance(node, list):
            return [found for part in node for found in references(part)]
        if not isinstance(node, dict):
            return []
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for part in node.values() for found in references(part)]

    found = references(DOCUMENT)
    assert found
    for reference in found:
        target: Any = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            assert step in target, reference
            target = target[step]


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_a_channel_is_the_topic_as_it_is_created(topic: Any) -> None:
    channel = DOCUMENT["channels"][topic.name]
    configuration = channel["bindings"]["kafka"]["topicConfiguration"]
    assert channel["address"] == topic.name
    assert topic_config(topic) == {
        name: ",".join(value) if isinstance(value, list) else str(value) for name, value in configuration.items()
    }


def test_channels_have_the_default_number_of_partitions() -> None:
    assert KafkaSettings().partitions == contract.PARTITIONS


def test_no_topic_carries_a_message_that_is_not_published() -> None:
    assert {topic.message_type for topic in TOPICS} - {None} <= set(contract.MESSAGES)


def test_each_stage_sends_and_receives_what_the_table_says() -> None:
    operations = {
        (name.split(".", 2)[0], operation["action"], operation["channel"]["$ref"].removeprefix("#/channels/"))
        for name, operation in DOCUMENT["operations"].items()
    }
    outside = {"producers", "operators", "apps"}
    assert operations == {
        *((stage, "receive", topic.name) for topic in TOPICS for stage in topic.read_by if stage not in outside),
        *((stage, "receive", topic.name) for topic in TOPICS for stage in topic.watched_by),
        *((stage, "send", topic.name) for topic in TOPICS for stage in topic.written_by if stage not in outside),
    }


@given(st.binary(max_size=80) | st.from_regex(rb"\A[a-z0-9_/-]{1,60}\Z"))
def test_the_schema_of_keys_refuses_no_key_that_is_read(raw: bytes) -> None:
    schema = DOCUMENT["components"]["messages"]["Document"]["bindings"]["kafka"]["key"]
    try:
        text = str(parse_key(raw))
    except ValueError:
        return
    jsonschema.Draft7Validator(schema).validate(text)


# Words


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_every_topic_is_documented(topic: Any) -> None:
    assert f"`{topic.name}`" in (ROOT / "docs/contract.md").read_text(encoding="utf-8")


def test_every_field_that_others_send_or_read_is_documented() -> None:
    words = (ROOT / "docs/contract.md").read_text(encoding="utf-8")
    public = ("Document", "Deletion", "DocumentEvent", "Query", "Answer", "Hit", "Citation", "Delta")
    named = [(struct.__name__, field) for struct, fields in FIELDS.items() for field in fields]
    missing = [f"{struct}.{field}" for struct, field in named if struct in public and f"`{field}`" not in words]
    assert missing == []


def test_every_header_is_documented() -> None:
    words = (ROOT / "docs/contract.md").read_text(encoding="utf-8")
    messages = DOCUMENT["components"]["messages"].values()
    headers = {header for message in messages for header in message.get("headers", {}).get("properties", {})}
    assert headers
    assert sorted(header for header in headers if f"`{header}`" not in words) == []
