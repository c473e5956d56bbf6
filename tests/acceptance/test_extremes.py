"""Documents, names and clocks at and beyond the contract's edges, through the real pipeline."""

import gzip
import json
import random
import signal
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from headrace import wiring
from headrace.cli.publishing import Outgoing, Tally, publish
from headrace.versions import sampled_ids
from schemas import Key
from tests.acceptance.conftest import App
from tests.conftest import Deployment

MIB = 1024 * 1024
HERONS = "Grey herons stand still for a long time before they strike. Their nests are built in tall trees."
OTTERS = "River otters close their ears and nostrils under water. They can dive for up to eight minutes."
DAY_MS = 86_400_000


def new_key(tenant: str = "extremes") -> str:
    return f"{tenant}/{uuid.uuid4().hex}"


def hits(app: App, text: str, key: str, **filters: object) -> list[dict[str, Any]]:
    tenant, _, doc_id = key.partition("/")
    answer = app.ask({"query": text, "tenant": tenant, "top_k": 100, "filters": {"doc_id": [doc_id], **filters}})
    assert (answer["error"], answer["degraded"]) == (None, [])
    found: list[dict[str, Any]] = answer["hits"]
    return found


# Size

NINE_MIB = "".join(f"{n}. The heron waits; then it strikes. Its nest is high in the trees.\n" for n in range(140_000))
NINE_MIB = NINE_MIB[: 9 * MIB]
SECTIONS = "".join(f"{'#' * (1 + n % 6)} Heading {n}\n\nA few words, number {n}.\n\n" for n in range(100_000))
SMALL = "small chunks with large attributes"
GIANTS: dict[str, dict[str, Any]] = {
    "9 MiB of prose": {"text": NINE_MIB},
    "100,000 sections": {
        "text": SECTIONS,
        "content_type": "text/markdown",
        "chunking": {"strategy": "hierarchical", "overlap_tokens": 0},
    },
    "a word of 5 MB": {"text": "x" * 5_000_000},
    "5 MB without a space or a full stop": {"text": "水" * 1_666_666, "chunking": {"strategy": "sentence"}},
    SMALL: {
        "text": NINE_MIB[:1_200_000],
        "title": "T" * 60_000,
        "chunking": {"max_tokens": 8, "overlap_tokens": 0},
    },
}
RISE_MAX_BYTES = 160 * MIB
"""Of a worker's memory, for one of these: 16 times the largest record."""


class Chunks:
    """What the chunk worker sends, as it comes."""

    def __init__(self, app: App) -> None:
        name = app.prefix + "documents.chunks"
        self._reader = Consumer({"bootstrap.servers": app.bootstrap, "group.id": uuid.uuid4().hex})
        partitions = self._reader.list_topics(name, timeout=10).topics[name].partitions
        self._reader.assign([TopicPartition(name, partition, 0) for partition in partitions])

    def of(self, key: str, within_s: float = 150) -> Iterator[bytes]:
        """Every message of one document."""
        seen, total, deadline = 0, None, time.monotonic() + within_s
        while seen != total:
            assert time.monotonic() < deadline, f"{seen} of {total} chunks of {key} came"
            message = self._reader.poll(0.5)
            if message is None or message.error() or message.key() != key.encode():
                continue
            value = message.value()
            assert isinstance(value, bytes)
            batch = json.loads(value)
            seen, total = seen + len(batch["chunks"]), batch["total"]
            yield value

    def close(self) -> None:
        self._reader.close()


def memory(pid: int, line: str) -> int:
    """Bytes, from Linux's account of a process: `VmRSS` is now, `VmHWM` the most since the last reset."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(line + ":")[2].split()[0]) * 1024


def reset_peak(pid: int) -> int:
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return memory(pid, "VmRSS")


def test_giant_documents_are_cut_whole_in_bounded_memory(deployment: Deployment) -> None:
    worker = deployment.start_all(["chunk"])["chunk"]
    kafka = deployment.settings.kafka
    app = App(kafka.bootstrap_servers, kafka.topic_prefix)
    chunks = Chunks(app)
    sizes: dict[str, int] = {}
    rises: dict[str, int] = {}
    for name, document in GIANTS.items():
        key, text, before = new_key(), document["text"], reset_peak(worker.pid)
        app.send(key, json.dumps(document, ensure_ascii=False).encode())
        covered = count = sizes[name] = 0
        for raw in chunks.of(key):
            assert len(raw) < 1_000_000
            sizes[name] += len(raw)
            for chunk in json.loads(raw)["chunks"]:
                start, end = chunk["start"], chunk["end"]
                assert chunk["ordinal"] == count
                assert chunk["text"] == text[start:end], name
                assert start <= covered or not text[covered:start].strip(), f"{name}: a gap at {covered}"
                covered, count = max(covered, end), count + 1
            urllib.request.urlopen(deployment.url("chunk", "/healthz"), timeout=30).close()
        assert not text[covered:].strip(), name
        assert count > 1000
        rises[name] = memory(worker.pid, "VmHWM") - before
        assert rises[name] < RISE_MAX_BYTES, name
    assert rises[SMALL] < sizes[SMALL] / 2
    assert worker.poll() is None
    chunks.close()
    app.close()


def test_a_document_of_many_messages_is_indexed_whole_and_deleted_whole(app: App) -> None:
    key = new_key()
    text = " ".join(f"w{n}" for n in range(1500))
    sent = app.send(key, {"text": text, "title": "T" * 5_000, "chunking": {"max_tokens": 16, "overlap_tokens": 0}})
    event = app.event(key, sent)
    assert (event["status"], event["chunks"] > 4 * 64) == ("indexed", True)
    found = hits(app, "w1 w700 w1499", key)
    assert len(found) == 100
    assert all(hit["text"] == text[hit["start"] : hit["end"]] and hit["title"] == "T" * 5_000 for hit in found)
    deleted = app.send(key, None, timestamp=sent + 1)
    assert (app.event(key, deleted)["status"], hits(app, "w700", key)) == ("deleted", [])


def test_more_than_100_000_chunks_are_refused(app: App) -> None:
    key = new_key()
    app.send(key, {"text": "a " * 700_000, "chunking": {"max_tokens": 8, "overlap_tokens": 0}})
    event = app.event(key)
    assert (event["status"], event["error"]["code"]) == ("failed", "bad_chunking")
    assert "100,000 chunks" in event["error"]["message"]


def test_files_too_large_and_empty_are_told_in_a_line_each_and_the_others_go_on(
    pipeline: Deployment, tmp_path: Path
) -> None:
    (tmp_path / "large.txt").write_bytes(b"word " * 10_000_000)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "white.txt").write_text(" \n\t\u2028")
    (tmp_path / "good.txt").write_text(OTTERS)
    (tmp_path / "line.jsonl").write_bytes(json.dumps({"id": "line", "text": "x" * 50_000_000}).encode())
    done = pipeline.run("publish", "--wait", "--json", "--tenant", "sizes", str(tmp_path))
    told = json.loads(done.stdout)
    assert (done.returncode, told["problems"], told["delivered"]) == (1, 2, 3)
    assert (told["outcomes"]["indexed"], told["chunks"]) == (3, 1)
    problems = [line for line in done.stderr.decode().splitlines() if "too large" in line]
    assert [Path(line.partition(": ")[0]).name for line in problems] == ["large.txt", "line.jsonl:1"]
    assert all(line.endswith("split the document") for line in problems)


# Text

ASTRAL = [chr(plane * 0x10000 + place) for plane in range(1, 17) for place in (0, 1, 0xF600, 0xFFFD, 0xFFFE, 0xFFFF)]
BASIC = [*"\0\x01\x1b\x7f\x85\xad\u200b\u200d\u200e\u202e\u2028\u2029\ufeff\ufffc\ufffd\ufdd0\ufffe\uffff\ue000\uf8ff"]
BASIC += [
    "e\u0301\u0327",
    "\u05e9\u05dc\u05d5\u05dd",
    "مرحبا",
    "ไทย",
    "한국어",
    "\u1112\u1161\u11ab",
    "水",
    "ﬁ",
    "İ",
    "ẞ",
]
BASIC += ["👩‍👩‍👧‍👦", "🏴\U000e0067\U000e0062\U000e007f", "🇨🇭", "a" + "\u0301" * 300]
EVERY_PLANE = "\n".join(f"{n} {piece} behind{piece}{piece}" for n, piece in enumerate(BASIC + ASTRAL))


def test_every_plane_of_unicode_comes_back_as_it_was_at_the_offsets_that_are_told(app: App) -> None:
    key = new_key()
    strange = "".join(BASIC[:20]) + "".join(ASTRAL[:12])
    document = {
        "text": EVERY_PLANE,
        "title": strange,
        "source": f"urn:{strange}",
        "tags": [strange, "\0"],
        "metadata": {strange: strange, "": ["", "\0"]},
        "chunking": {"max_tokens": 32, "overlap_tokens": 8},
    }
    event = app.event(key, app.send(key, document))
    assert event["status"] == "indexed"
    found = hits(app, "behind", key, tags={"all": [strange, "\0"]}, source=f"urn:{strange}")
    assert len(found) == event["chunks"] > 10
    found.sort(key=lambda hit: hit["start"])
    covered = 0
    for hit in found:
        assert hit["text"] == EVERY_PLANE[hit["start"] : hit["end"]]
        assert not EVERY_PLANE[covered : hit["start"]].strip()
        covered = max(covered, hit["end"])
        assert {name: hit[name] for name in ("title", "source", "tags", "metadata")} == {
            name: document[name] for name in ("title", "source", "tags", "metadata")
        }
    assert covered == len(EVERY_PLANE)
    assert len(hits(app, strange, key, **{f"metadata.{strange}": strange})) == len(found)


# Names

DOC_IDS = [
    "a/b//c/../d/",
    "/",
    "'single' \"double\" `back`",
    'back\\slash \\" \\n \\',
    "new\nline\r\n\ttab",
    "x" * 512,
    "🦦" * 128,
    "nul\0inside",
    "\0",
    "\u2028\ufeff\uffff\U0010ffff",
    '" or doc_id != "',
    "' || 1 == 1 --",
    'doc_id in ["x"] and not (tenant like "%")',
    '{"match_all": {}}',
    "{doc_id} {{doc_id}} ${doc_id} %s",
    "* ? % _ (NOT a) ~ ^ +tenant:*",
    "--version",
    " ",
    "null",
]


def test_whatever_a_doc_id_holds_it_is_found_by_it_and_deleted_by_it(app: App, pipeline: Deployment) -> None:
    tenant = f"names-{uuid.uuid4().hex[:8]}"
    lines = [{"doc_id": doc_id, "text": f"{OTTERS} Number {n}."} for n, doc_id in enumerate(DOC_IDS)]
    sent = pipeline.run("publish", "--wait", "--json", "-t", tenant, "-", stdin=json_lines(lines))
    assert (sent.returncode, json.loads(sent.stdout)["outcomes"]["indexed"]) == (0, len(DOC_IDS)), sent.stderr.decode()
    for line in lines:
        found = [(hit["doc_id"], hit["text"]) for hit in hits(app, "otters", f"{tenant}/{line['doc_id']}")]
        assert found == [(line["doc_id"], line["text"])]
    by_name = [doc_id for doc_id in DOC_IDS if "\0" not in doc_id]
    deleted = pipeline.run("delete", "--wait", "--json", "-t", tenant, "--", *by_name)
    assert (deleted.returncode, json.loads(deleted.stdout)["outcomes"]["deleted"]) == (0, len(by_name))
    left = app.ask({"query": "otters", "tenant": tenant, "top_k": 100})["hits"]
    assert {hit["doc_id"] for hit in left} == set(DOC_IDS) - set(by_name)
    rest = [{"doc_id": doc_id, "op": "delete"} for doc_id in DOC_IDS if "\0" in doc_id]
    deleted = pipeline.run("publish", "--wait", "--json", "-t", tenant, "-", stdin=json_lines(rest))
    assert json.loads(deleted.stdout)["outcomes"]["deleted"] == len(rest)
    assert app.ask({"query": "otters", "tenant": tenant})["hits"] == []


def json_lines(lines: list[dict[str, str]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


# Poison

DEEP = b"[" * 10_000 + b"]" * 10_000
DIGITS = b"1" * 5_000
POISON: list[tuple[str, bytes | None, bytes, str]] = [
    ("an empty value", None, b"", "bad_json"),
    ("an empty key", b"", b'{"text": "x"}', "bad_key"),
    ("a key without a slash", b"extremes", b'{"text": "x"}', "bad_key"),
    ("a key that is not UTF-8", b"extremes/\xff", b'{"text": "x"}', "bad_key"),
    ("a surrogate in the key", b"extremes/\xed\xa0\x80", b'{"text": "x"}', "bad_key"),
    ("a tenant in capitals", b"Extremes/x", b'{"text": "x"}', "bad_key"),
    ("a doc_id of 513 bytes", b"extremes/" + b"x" * 513, b'{"text": "x"}', "bad_key"),
    ("a key of 2 MB", b"x" * 2_000_000, b'{"text": "x"}', "bad_key"),
    ("not JSON", None, b"{text: 1}", "bad_json"),
    ("two values", None, b'{"text": "x"} {}', "bad_json"),
    ("a byte order mark", None, b'\xef\xbb\xbf{"text": "x"}', "bad_json"),
    ("UTF-16", None, '{"text": "x"}'.encode("utf-16"), "bad_json"),
    ("a list", None, b"[]", "bad_document"),
    ("a number", None, b"1", "bad_document"),
    ("null as JSON", None, b"null", "bad_document"),
    ("nested 10,000 deep", None, b'{"text": "x", "metadata": {"a": ' + DEEP + b"}}", "bad_json"),
    ("nested 10,000 deep where nobody looks", None, b'{"text": "x", "y": ' + DEEP + b"}", "bad_json"),
    ("1e400", None, b'{"text": "x", "metadata": {"a": 1e400}}', "bad_document"),
    ("a number of 5,000 digits", None, b'{"text": "x", "metadata": {"a": ' + DIGITS + b"}}", "bad_document"),
    ("a version of 5,000 digits", None, b'{"text": "x", "version": ' + DIGITS + b"}", "bad_document"),
    ("a version of 65 bits", None, b'{"text": "x", "version": 9223372036854775808}', "bad_document"),
    ("NaN", None, b'{"text": "x", "metadata": {"a": NaN}}', "bad_json"),
    ("-Infinity", None, b'{"text": "x", "source_confidence": -Infinity}', "bad_json"),
    ("half a surrogate pair as text", None, b'{"text": "\\ud800"}', "bad_json"),
    ("... as title", None, b'{"text": "x", "title": "\\udc00"}', "bad_json"),
    ("... as tag", None, b'{"text": "x", "tags": ["\\ud800 "]}', "bad_json"),
    ("... as metadata", None, b'{"text": "x", "metadata": {"a": "\\ud83d\\ud83d\\ude00"}}', "bad_json"),
    ("... as name of metadata", None, b'{"text": "x", "metadata": {"\\udfff": 1}}', "bad_json"),
    ("... as source", None, b'{"text": "x", "source": "\\uDBFF"}', "bad_json"),
    ("... as doc_id", None, b'{"text": "x", "doc_id": "\\ud800"}', "bad_json"),
    ("... as a field that nobody knows", None, b'{"text": "x", "\\ud800": 1}', "bad_json"),
]


def test_each_record_that_cannot_be_read_is_one_dead_letter_and_one_event_and_no_other_waits(app: App) -> None:
    sent: dict[bytes, tuple[bytes, bytes, str, int]] = {}
    beside: list[str] = []
    for _, named, value, code in POISON:
        key, mark = named if named is not None else new_key().encode(), uuid.uuid4().bytes
        sent[mark] = (key, value, code, app.send(key, value, headers=[("mark", mark)]))
        beside.append(new_key())
        app.send(beside[-1], {"text": OTTERS})
    for key_beside in beside:
        assert app.event(key_beside)["status"] == "indexed"
    for (name, *_), (mark, (key, value, code, timestamp)) in zip(POISON, sent.items(), strict=True):
        dead = app.read("documents.dead", of_mark(mark))
        told = dict(dead.headers())
        assert (dead.key(), dead.value(), dead.timestamp()[1]) == (key, value, timestamp), name
        assert (told["headrace.error.code"], told["headrace.error.stage"]) == (code.encode(), b"chunk"), name
        event = json.loads(app.read("documents.events", of_record(key, timestamp)).value())
        assert (event["status"], event["error"]["code"]) == ("failed", code), name
    assert "half of a surrogate pair" in event["error"]["message"]
    for mark, (key, _, _, timestamp) in sent.items():
        assert len([1 for message in app.seen["documents.dead"] if of_mark(mark)(message)]) == 1
        assert len([1 for message in app.seen["documents.events"] if of_record(key, timestamp)(message)]) == 1


def of_mark(mark: bytes) -> Any:
    return lambda message: ("mark", mark) in (message.headers() or [])


def of_record(key: bytes, timestamp: int) -> Any:
    """An event's key is the record's, but for one that is larger than any document's."""

    def wanted(message: Message) -> bool:
        return (
            message.key() == (key if len(key) <= 1024 else None) and json.loads(message.value())["version"] == timestamp
        )

    return wanted


def test_a_record_that_compression_made_small_is_refused_and_its_letter_says_where_it_is(app: App) -> None:
    producer = Producer(
        {"bootstrap.servers": app.bootstrap, "message.max.bytes": 100 * MIB, "compression.type": "gzip"}
    )
    key, behind = new_key(), new_key()
    value = b'{"text": "' + b"word " * 4_000_000 + b'"}'
    assert len(gzip.compress(value)) < MIB
    placed: list[Message] = []
    producer.produce(app.prefix + "documents.raw", value, key, on_delivery=lambda _, message: placed.append(message))
    assert producer.flush(30) == 0
    app.send(behind, {"text": OTTERS})
    dead = app.read("documents.dead", lambda message: message.key() == key.encode())
    told = dict(dead.headers())
    assert dead.value() == b""  # not null: sent again, that would delete
    assert told["headrace.error.code"] == b"record_too_large"
    assert told["headrace.error.left_out_bytes"] == str(len(value)).encode()
    assert int(told["__connect.errors.offset"]) == placed[0].offset()
    assert app.event(key)["error"]["code"] == "record_too_large"
    assert app.event(behind)["status"] == "indexed"


def test_the_broker_takes_no_document_without_a_key(app: App) -> None:
    with pytest.raises(AssertionError, match="Broker failed to validate record"):
        app.send(None, {"text": "x"})


# Clocks


def test_a_record_from_the_future_is_refused_at_once_and_the_next_one_is_taken(app: App) -> None:
    for topic in ("documents.raw", "documents.urgent"):
        key = new_key()
        with pytest.raises(AssertionError, match="Invalid timestamp"):
            app.send(key, {"text": HERONS}, topic=topic, timestamp=int(time.time() * 1000) + DAY_MS)
        sent = app.send(key, {"text": OTTERS}, topic=topic)
        assert app.event(key, sent)["status"] == "indexed"


class Told:
    def __init__(self) -> None:
        self.problems: list[str] = []

    def changed(self, tally: Tally) -> None: ...

    def problem(self, where: str, why: str) -> None:
        self.problems.append(f"{where}: {why}")


def test_publish_says_that_a_clock_is_fast(pipeline: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    key, told, now = Key("extremes", uuid.uuid4().hex), Told(), time.time_ns
    monkeypatch.setattr("time.time_ns", lambda: now() + DAY_MS * 1_000_000)
    records = [Outgoing(where="a.txt", key=key, value=b'{"text": "x"}')]
    tally = publish(records, pipeline.settings.kafka, told, wait_s=20)
    assert (tally.delivered, tally.undelivered, tally.unfinished) == (0, 1, [])
    assert told.problems == [
        "a.txt: did not reach Kafka: its timestamp is too far ahead of the broker's clock; set this machine's clock right"
    ]


def test_a_producer_whose_clock_lags_is_told_that_it_is_superseded(app: App) -> None:
    key = new_key()
    sent = app.send(key, {"text": OTTERS})
    assert app.event(key, sent)["status"] == "indexed"
    for late in (sent - 60_000, 1):
        app.send(key, {"text": HERONS}, timestamp=late)
        assert app.event(key, late)["status"] == "superseded"
    app.send(key, None, timestamp=sent - 1)
    assert app.event(key, sent - 1)["status"] == "superseded"
    assert [hit["text"] for hit in hits(app, "animals", key)] == [OTTERS]


def test_the_highest_version_there_is_can_be_replaced_and_deleted(app: App) -> None:
    key, highest = new_key(), 2**63 - 1
    first = app.send(key, {"text": OTTERS, "version": highest})
    assert app.event(key, highest)["chunks"] == 1
    app.send(key, {"text": "", "version": highest}, timestamp=first + 1)
    app.read("documents.events", outcome(key, "indexed", 0))
    app.send(key, {"op": "delete", "version": highest}, timestamp=first + 2)
    app.read("documents.events", outcome(key, "deleted", 0))


def outcome(key: str, status: str, chunks: int) -> Any:
    def wanted(message: Message) -> bool:
        event = json.loads(message.value())
        return message.key() == key.encode() and (event["status"], event["chunks"]) == (status, chunks)

    return wanted


# A, B, A

SEED = 4
STAGES = ("chunk", "embed", "upsert-milvus", "upsert-opensearch", "commit")


def test_a_b_a_ends_with_a_though_workers_die_in_between(deployment: Deployment) -> None:
    chance = random.Random(SEED)
    static = {stage: {"HEADRACE_WORKER__INSTANCE_ID": f"{stage}-1"} for stage in STAGES}
    workers = {stage: deployment.start(stage, environment=static[stage]) for stage in STAGES}
    for stage, worker in workers.items():
        deployment.wait_ready(stage, worker)
    kafka = deployment.settings.kafka
    app = App(kafka.bootstrap_servers, kafka.topic_prefix)
    final: dict[str, int] = {}
    for victims in (["chunk"], ["commit"], ["chunk", "commit"], ["chunk"]):
        for lanes in (("raw", "raw", "raw"), ("urgent", "raw", "urgent"), ("raw", "urgent", "raw")):
            for numbered in (False, True):
                key, now = new_key(), int(time.time() * 1000)
                for place, (text, lane) in enumerate(zip((HERONS, OTTERS, HERONS), lanes, strict=True), start=1):
                    named = {"version": place} if numbered else {}
                    app.send(key, {"text": text, **named}, topic=f"documents.{lane}", timestamp=now + place)
                final[key] = 3 if numbered else now + 3
        time.sleep(chance.uniform(0, 2))
        for stage in victims:
            workers[stage].send_signal(signal.SIGKILL)
            workers[stage].wait()
        for stage in victims:
            workers[stage] = deployment.start(stage, environment=static[stage])
    for key, version in final.items():
        last = app.read("documents.events", of_version(key, version), within=60)
        assert json.loads(last.value())["status"] in {"indexed", "unchanged"}, f"{key}, seed {SEED}"
    stores = wiring.build_texts(deployment.settings), wiring.build_vectors(deployment.settings)
    for key, version in final.items():
        document = Key(*key.split("/"))
        manifest = stores[0].read(document.tenant, [], [document.doc_id])[1][document.doc_id]
        assert manifest.live is not None
        assert manifest.intake is not None
        assert manifest.intake.revision.version == version, f"{key}, seed {SEED}"
        assert manifest.live.revision == manifest.intake.content
        rows, _ = stores[0].read(document.tenant, sampled_ids(document, manifest.live), [])
        assert [row.text for row in rows.values()] == [HERONS], f"{key}, seed {SEED}"
    deadline = time.monotonic() + 60
    while any(store.count("extremes").chunks != len(final) for store in stores):
        assert time.monotonic() < deadline, f"rows of versions that lost stay, seed {SEED}"
        time.sleep(0.5)
    app.close()


def of_version(key: str, version: int) -> Any:
    return lambda message: message.key() == key.encode() and json.loads(message.value())["version"] == version
