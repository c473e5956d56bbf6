"""What is refused before anything is sent, and what is sent."""

import struct
from datetime import datetime
from typing import Any

import pytest
from headrace_client import Deletion, Document, Invalid, Query
from headrace_client.records import (
    DOCUMENT_MAX_BYTES,
    document_record,
    own_headers,
    query_record,
    reply_headers,
)

import schemas


@pytest.mark.parametrize(
    "document",
    [
        Document(text="x"),
        Document(text="x", doc_id=""),
        Document(text="x", doc_id="é" * 257),
        Document(text="x", doc_id="half \ud800"),
        Document(text="x", doc_id="a", tenant="UPPER"),
        Document(text="x", doc_id="a", tenant=""),
        Document(text="x", doc_id="a", tenant="a" * 49),
        Document(text="x", doc_id="a", tenant="a\n"),
        Document(text="half \ud800", doc_id="a"),
        Document(text=5, doc_id="a"),  # type: ignore[arg-type]
        Document(text="x", doc_id="a", source_confidence=1.5),
        Document(text="x", doc_id="a", created_at=datetime(2026, 1, 1)),  # noqa: DTZ001 - without an offset
        Document(text="x", doc_id="a", metadata={"k": object()}),  # type: ignore[dict-item]
        Document(text="x", doc_id="a", version=2**63),
        Document(text="x" * DOCUMENT_MAX_BYTES, doc_id="a"),
        Deletion(doc_id="a", version=2**63),
        Deletion(),
    ],
    ids=lambda document: repr(document)[:60],
)
def test_what_headrace_could_not_take_is_refused(document: Any) -> None:
    with pytest.raises(Invalid) as refused:
        document_record("documents.raw", document, ())
    assert isinstance(refused.value, ValueError)
    assert str(refused.value)


@pytest.mark.parametrize(
    "query",
    [Query(query=""), Query(query="x" * 8193), Query(query="x", top_k=0), Query(query="x", tenant="UPPER"),
     Query(query="x", filters={"doc_id": ["y" * 1_000_000]})],
    ids=lambda query: repr(query)[:60],
)  # fmt: skip
def test_a_question_that_is_none_is_refused(query: Query) -> None:
    with pytest.raises(Invalid):
        query_record("queries", query, b"key", ())


def test_headrace_reads_the_key_and_the_value_as_they_were_meant() -> None:
    document = Document(text="Grüße", doc_id="a/b", tenant="acme", tags=["x"])
    record = document_record("documents.raw", document, (("traceparent", b"00-1"),))
    assert schemas.parse_key(record.key) == ("acme", "a/b")
    assert schemas.decode(record.value or b"", schemas.Document).text == "Grüße"
    assert record.headers == (("traceparent", b"00-1"),)


def test_a_deletion_without_a_version_is_a_record_without_a_value() -> None:
    assert document_record("documents.raw", Deletion(doc_id="a"), ()).value is None
    value = document_record("documents.raw", Deletion(doc_id="a", version=3), ()).value
    assert schemas.decode(value or b"", schemas.Deletion) == schemas.Deletion(doc_id="a", version=3)


def test_the_largest_document_is_within_the_limit_with_its_headers() -> None:
    headers = (("authorization", b"x" * 2000),)
    text = "x" * (DOCUMENT_MAX_BYTES - 2600)
    assert document_record("documents.raw", Document(text=text, doc_id="a"), headers).size <= DOCUMENT_MAX_BYTES
    with pytest.raises(Invalid, match="split the document"):
        document_record("documents.raw", Document(text=text + "x" * 600, doc_id="a"), headers)


def test_a_reply_s_way_is_told_in_the_headers_of_spring() -> None:
    headers = dict(reply_headers(b"id", "p.replies", 3, 1234))
    assert headers == {
        "kafka_correlationId": b"id",
        "kafka_replyTopic": b"p.replies",
        "kafka_replyPartition": struct.pack(">i", 3),
        "headrace.deadline": b"1234",
    }


def test_a_call_s_own_headers_win_and_the_client_s_are_not_to_be_set() -> None:
    assert own_headers({"authorization": "Bearer a"}, {"tracestate": "s"}, {"authorization": "Bearer b"}) == (
        ("authorization", b"Bearer b"),
        ("tracestate", b"s"),
    )
    for name in ("kafka_correlationId", "REPLY_TOPIC", "headrace.deadline"):
        with pytest.raises(Invalid, match=name):
            own_headers({name: "x"})
