"""The contract's document side, from outside: publish, update, delete, bad input, lanes, tenants."""

import json
import struct
import time
import uuid

import pytest

from tests.acceptance.conftest import App
from tests.conftest import Deployment

HERONS = "Grey herons stand still for a long time before they strike. Their nests are built in tall trees."
OTTERS = "River otters close their ears and nostrils under water. They can dive for up to eight minutes."


def new_key(tenant: str = "default") -> str:
    return f"{tenant}/{uuid.uuid4().hex}"


def doc_of(key: str) -> str:
    return key.partition("/")[2]


def hits(app: App, text: str, key: str, **query: object) -> list[dict[str, object]]:
    answer = app.ask({"query": text, "tenant": key.partition("/")[0], "filters": {"doc_id": [doc_of(key)]}, **query})
    assert answer["error"] is None
    assert answer["degraded"] == []
    return answer["hits"]


def test_a_document_is_found_as_soon_as_its_event_says_indexed(app: App) -> None:
    key = new_key()
    sent = app.send(
        key,
        {
            "text": HERONS,
            "title": "Herons",
            "source": "https://example.org/herons",
            "tags": ["bird"],
            "metadata": {"year": 2020, "peer reviewed": True},
            "source_confidence": 0.75,
        },
    )
    event = app.event(key)
    assert (event["status"], event["version"], event["chunks"], event["stage"]) == ("indexed", sent, 1, "commit")
    [hit] = hits(app, "How do herons hunt?", key)
    assert hit["text"] == HERONS
    assert (hit["start"], hit["end"]) == (0, len(HERONS))
    assert (hit["rank"], hit["ordinal"], hit["version"], hit["doc_id"]) == (1, 0, sent, doc_of(key))
    assert (hit["title"], hit["source"], hit["tags"]) == ("Herons", "https://example.org/herons", ["bird"])
    assert (hit["metadata"], hit["source_confidence"]) == ({"year": 2020, "peer reviewed": True}, 0.75)
    assert hit["scores"]["dense"] is not None
    assert hit["scores"]["bm25"] is not None


def test_an_update_replaces_every_chunk_of_the_version_before(app: App) -> None:
    key = new_key()
    long = "\n\n".join(f"Paragraph {number}. {HERONS}" for number in range(60))
    assert app.event(key, app.send(key, {"text": long}))["chunks"] > 3
    time.sleep(0.002)
    sent = app.send(key, {"text": OTTERS})
    assert app.event(key, sent)["status"] == "indexed"
    found = hits(app, "herons and otters", key, top_k=50)
    assert [(hit["text"], hit["version"]) for hit in found] == [(OTTERS, sent)]


def test_of_an_update_only_what_changed_is_embedded(app: App, pipeline: Deployment) -> None:
    def reused() -> float:
        name = 'headrace_chunks_reused_total{lane="bulk",stage="embed"} '
        return next((float(line[len(name) :]) for line in pipeline.metrics("embed").splitlines() if name in line), 0)

    key = new_key()
    sections = [f"# Section {number}\n\nAbout the {number}th thing. {HERONS}" for number in range(80)]
    document = {"content_type": "text/markdown", "chunking": {"strategy": "hierarchical", "max_tokens": 40}}
    first = app.send(key, document | {"text": "\n\n".join(sections)})
    assert app.event(key, first)["chunks"] == 80
    before = reused()
    changed = [*sections[:3], "# Otters\n\nThey were not there before.", *sections[3:]]
    changed[70] = changed[70].replace(HERONS, OTTERS)
    time.sleep(0.002)
    sent = app.send(key, document | {"text": "\n\n".join(changed)})
    assert app.event(key, sent)["chunks"] == 81
    assert reused() - before == 79
    for place in (2, 3, 4, 70, 80):
        [best, *_] = hits(app, changed[place], key, top_k=3)
        assert (best["ordinal"], best["version"], best["text"]) == (place, sent, changed[place])


def test_each_chunk_is_exactly_the_slice_that_it_names(app: App) -> None:
    key = new_key()
    text = "\n\n".join(f"§ {number} — naïve 𝔘nicode 🦦. {OTTERS}" for number in range(40))
    app.event(key, app.send(key, {"text": text}))
    found = hits(app, "otters", key, top_k=100)
    assert len(found) > 3
    for hit in found:
        assert hit["text"] == text[hit["start"] : hit["end"]]


@pytest.mark.parametrize("deletion", [None, {"op": "delete"}], ids=["tombstone", "op"])
def test_a_deleted_document_is_gone_and_can_come_back(app: App, deletion: dict[str, str] | None) -> None:
    key = new_key()
    app.event(key, app.send(key, {"text": HERONS}))
    time.sleep(0.002)
    deleted = app.send(key, deletion)
    assert app.event(key, deleted)["status"] == "deleted"
    assert hits(app, "herons", key) == []
    time.sleep(0.002)
    again = app.send(key, {"text": HERONS})
    assert app.event(key, again)["status"] == "indexed"
    assert len(hits(app, "herons", key)) == 1


def test_a_higher_version_wins_whatever_order_they_arrive_in(app: App) -> None:
    key = new_key()
    app.send(key, {"text": OTTERS, "version": 7})
    assert app.event(key, 7)["status"] == "indexed"
    app.send(key, {"text": HERONS, "version": 6})
    assert app.event(key, 6)["status"] == "superseded"
    app.send(key, {"op": "delete", "version": 5})
    assert app.event(key, 5)["status"] == "superseded"
    [hit] = hits(app, "otters", key)
    assert (hit["text"], hit["version"]) == (OTTERS, 7)
    app.send(key, {"op": "delete", "version": 8})
    assert app.event(key, 8)["status"] == "deleted"
    app.send(key, {"text": OTTERS, "version": 7})
    assert app.event(key, 7, "superseded")["status"] == "superseded"
    assert hits(app, "otters", key) == []


def test_the_same_document_again_is_unchanged(app: App) -> None:
    key = new_key()
    document = {"text": HERONS, "title": "Herons"}
    app.event(key, app.send(key, document))
    time.sleep(0.002)
    assert app.event(key, app.send(key, document))["status"] == "unchanged"
    time.sleep(0.002)
    assert app.event(key, app.send(key, document | {"tags": ["new"]}))["status"] == "indexed"


def test_a_b_a_ends_with_a(app: App) -> None:
    key = new_key()
    for version, text in enumerate([HERONS, OTTERS, HERONS], start=1):
        app.send(key, {"text": text, "version": version})
    # The last one is `unchanged` if B never became live before it came.
    assert app.event(key, 3)["status"] in {"indexed", "unchanged"}
    for version in (1, 2):
        app.event(key, version)
    assert {hit["text"] for hit in hits(app, "herons otters", key)} == {HERONS}


def test_urgent_documents_take_their_own_way(app: App) -> None:
    key = new_key()
    sent = app.send(key, {"text": HERONS}, topic="documents.urgent")
    assert app.event(key, sent)["status"] == "indexed"
    assert len(hits(app, "herons", key)) == 1


def test_tenants_do_not_see_each_other(app: App) -> None:
    doc_id = uuid.uuid4().hex
    for tenant, text in (("acme-eu", HERONS), ("acme_eu", OTTERS)):
        assert app.event(f"{tenant}/{doc_id}", app.send(f"{tenant}/{doc_id}", {"text": text}))["tenant"] == tenant
    assert [hit["text"] for hit in hits(app, "animals", f"acme-eu/{doc_id}")] == [HERONS]
    assert [hit["text"] for hit in hits(app, "animals", f"acme_eu/{doc_id}")] == [OTTERS]


def test_a_doc_id_may_hold_anything(app: App) -> None:
    key = f"default/a/b \"quoted\" 'and' \\ back\nnew line {uuid.uuid4().hex} 🦦"
    app.event(key, app.send(key, {"text": OTTERS}))
    assert [hit["doc_id"] for hit in hits(app, "otters", key)] == [doc_of(key)]


def test_an_empty_document_is_indexed_without_chunks(app: App) -> None:
    key = new_key()
    event = app.event(key, app.send(key, {"text": ""}))
    assert (event["status"], event["chunks"]) == ("indexed", 0)


@pytest.mark.parametrize("strategy", ["fixed", "sentence", "hierarchical"])
def test_a_document_can_say_how_it_is_cut(app: App, strategy: str) -> None:
    key = new_key()
    text = "# Birds\n\n" + f"{HERONS}\n\n" * 5 + "# Mammals\n\n" + f"{OTTERS}\n\n" * 5
    chunking = {"strategy": strategy, "max_tokens": 48, "overlap_tokens": 8}
    event = app.event(key, app.send(key, {"text": text, "content_type": "text/markdown", "chunking": chunking}))
    found = hits(app, "otters", key, top_k=100)
    assert len(found) == event["chunks"] > 3
    for hit in found:
        assert hit["text"] == text[hit["start"] : hit["end"]]


def test_html_is_shown_as_read_and_located_in_the_source(app: App) -> None:
    key = new_key()
    html = f"<html><head><title>x</title><script>var a = 1;</script></head><body><h1>Otters</h1><p>{OTTERS} Fish &amp; crabs.</p></body></html>"
    app.event(key, app.send(key, {"text": html, "content_type": "text/html"}))
    [hit] = hits(app, "otters", key)
    assert "Fish & crabs." in hit["text"]
    assert "var a" not in hit["text"]
    assert "&amp; crabs." in html[hit["start"] : hit["end"]]


UNREADABLE = [
    ("not JSON", "default/x", b"{not json", "bad_json"),
    ("not UTF-8", "default/x", b'{"text": "\xff\xfe"}', "bad_json"),
    ("a lone surrogate", "default/x", b'{"text": "\\ud800"}', "bad_json"),
    ("no text", "default/x", b'{"title": "x"}', "bad_document"),
    ("text of another type", "default/x", b'{"text": 3}', "bad_document"),
    ("an unknown op", "default/x", b'{"text": "x", "op": "upend"}', "bad_document"),
    ("nested too deeply", "default/x", b'{"text": "x", "y": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "bad_json"),
    ("a key without a slash", "nothing", b'{"text": "x"}', "bad_key"),
    ("a tenant of another form", "UPPER/x", b'{"text": "x"}', "bad_key"),
    ("an empty doc_id", "default/", b'{"text": "x"}', "bad_key"),
    ("a long doc_id", "default/" + "x" * 513, b'{"text": "x"}', "bad_key"),
    ("another doc_id than the key's", "default/x", b'{"text": "x", "doc_id": "y"}', "key_mismatch"),
    ("another tenant than the key's", "default/x", b'{"text": "x", "tenant": "y"}', "key_mismatch"),
    (
        "chunks that the encoder can't read",
        "default/x",
        b'{"text": "x", "chunking": {"max_tokens": 100000}}',
        "bad_chunking",
    ),
    ("too many tags", "default/x", json.dumps({"text": "x", "tags": ["t"] * 1001}).encode(), "attributes_too_large"),
    (
        "a time that no calendar has",
        "default/x",
        b'{"text": "x", "created_at": "0001-01-01T00:00:00+02:00"}',
        "bad_document",
    ),
]


@pytest.mark.parametrize(("key", "value", "code"), [row[1:] for row in UNREADABLE], ids=[row[0] for row in UNREADABLE])
def test_what_cannot_be_read_is_dead_byte_for_byte_and_the_rest_goes_on(
    app: App, pipeline: Deployment, key: str, value: bytes, code: str
) -> None:
    mark = uuid.uuid4().hex.encode()
    sent = app.send(key, value, headers=[("mark", mark), ("twice", b"1"), ("twice", b"2")])
    behind = new_key()
    app.send(behind, {"text": HERONS})
    dead = app.read("documents.dead", lambda message: ("mark", mark) in (message.headers() or []))
    assert (dead.key(), dead.value(), dead.timestamp()[1]) == (key.encode(), value, sent)
    headers = dead.headers()
    assert headers[:3] == [("mark", mark), ("twice", b"1"), ("twice", b"2")]
    found = dict(headers)
    assert found["headrace.error.code"] == code.encode()
    assert (found["headrace.error.stage"], found["headrace.error.attempts"]) == (b"chunk", b"1")
    assert found["__connect.errors.topic"] == pipeline.topic("documents.raw").encode()
    assert found["kafka_dlt-original-topic"] == found["__connect.errors.topic"]
    assert (
        str(struct.unpack(">i", found["kafka_dlt-original-partition"])[0]).encode()
        == found["__connect.errors.partition"]
    )
    assert str(struct.unpack(">q", found["kafka_dlt-original-offset"])[0]).encode() == found["__connect.errors.offset"]
    for name in ("headrace.error.message", "__connect.errors.exception.message", "kafka_dlt-exception-message"):
        assert found[name]
    for name in ("__connect.errors.exception.class.name", "kafka_dlt-exception-fqcn"):
        assert found[name] == b"headrace.errors.Poison"
    event = app.event(key, sent)
    assert (event["status"], event["stage"], event["error"]["code"]) == ("failed", "chunk", code)
    assert app.event(behind)["status"] == "indexed"
