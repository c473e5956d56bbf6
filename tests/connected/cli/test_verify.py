"""What `headrace verify` finds and mends, through real workers: stores are wiped, rows deleted and added by hand."""

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import msgspec
import opensearchpy
import orjson
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from pymilvus import MilvusClient
from typer.testing import CliRunner, Result

from headrace import wiring
from headrace.cli import app
from headrace.cli.flow import Flow
from headrace.stores import TextRow, VectorRow
from headrace.stores.milvus import collection_name
from schemas import Attributes, Key
from schemas.revision import chunk_id, revision_id
from tests.conftest import Deployment
from topics.settings import KafkaSettings

DOCUMENTS = 6


@pytest.fixture
def tenant() -> str:
    return new_tenant()


@pytest.fixture(scope="module")
def published(pipeline: Deployment) -> str:
    """A tenant with some documents, among them one in several chunks, one urgent, one unchanged since its first
    version, one deleted, one poison. Whoever breaks it mends it."""
    tenant = new_tenant()
    words = " ".join(f"word{place}" for place in range(400))
    lines = [{"id": f"d{place}", "text": f"The turbine number {place} turns."} for place in range(DOCUMENTS - 1)]
    publish(pipeline, tenant, [*lines, {"id": "long", "text": words}, {"id": "gone", "text": "To be deleted."}])
    publish(pipeline, tenant, [lines[0], {"id": "gone", "op": "delete"}])
    publish(pipeline, tenant, [{"id": "d1", "text": "The turbine number 1 is urgent."}], "--urgent")
    producer = Producer({**pipeline.settings.kafka.confluent(), "partitioner": "murmur2_random"})
    producer.produce(pipeline.topic("documents.raw"), b"{", f"{tenant}/poison".encode())
    producer.flush()
    return tenant


def new_tenant() -> str:
    return f"v-{uuid4().hex[:8]}"


def run(pipeline: Deployment, *arguments: str, stdin: bytes = b"") -> Result:
    """In this process: to start one takes seconds."""
    done = CliRunner().invoke(app, arguments, input=stdin, env=pipeline.environment)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def publish(pipeline: Deployment, tenant: str, lines: list[dict[str, Any]], *options: str) -> None:
    stdin = b"\n".join(orjson.dumps(line) for line in lines)
    done = run(pipeline, "publish", "-", "-t", tenant, "--wait", "--timeout", "120", *options, stdin=stdin)
    assert done.exit_code == 0, done.output


def verify(pipeline: Deployment, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = run(pipeline, "verify", "--json", *arguments)
    assert done.exit_code in (0, 1), done.output
    return done.exit_code, orjson.loads(done.stdout)


def finds_nothing(pipeline: Deployment, tenant: str) -> dict[str, Any]:
    code, report = verify(pipeline, "-t", tenant)
    assert (code, report["found"], report["at_work"], report["changing"]) == (0, [], 0, 0), report
    return report


def kinds(report: dict[str, Any]) -> set[tuple[str, str | None]]:
    return {(found["kind"], found["store"]) for found in report["found"]}


def drop_collection(pipeline: Deployment, tenant: str) -> None:
    stores = pipeline.settings.stores
    client = MilvusClient(stores.milvus.uri, timeout=10, dedicated=True)
    client.drop_collection(collection_name(stores.prefix, tenant))
    client.close()


def drop_index(pipeline: Deployment, tenant: str, kind: str) -> None:
    stores = pipeline.settings.stores
    with opensearchpy.OpenSearch(stores.opensearch.url) as client:
        client.indices.delete(index=f"{stores.prefix}{tenant}_{kind}")


def live_rows(pipeline: Deployment, tenant: str, doc_id: str) -> list[str]:
    key = Key(tenant, doc_id)
    live = wiring.build_manifests(pipeline.settings).read([key])[key].manifest.live
    assert live is not None
    return [chunk_id(revision_id(key, live.revision), ordinal) for ordinal in range(live.chunks)]


def test_a_healthy_system_has_no_differences(pipeline: Deployment, published: str) -> None:
    report = finds_nothing(pipeline, published)
    assert report["poison"] == 1
    assert report["manifests"] == DOCUMENTS + 1
    assert report["rows"]["milvus"] == report["rows"]["opensearch"] > DOCUMENTS
    assert run(pipeline, "verify", "-t", published).stdout.strip().endswith("no differences")


@pytest.mark.parametrize(
    "wipe",
    [
        pytest.param([("milvus", "")], id="Milvus"),
        pytest.param([("opensearch", "docs")], id="OpenSearch's rows"),
        pytest.param([("opensearch", "docs"), ("opensearch", "manifest")], id="OpenSearch"),
        pytest.param([("opensearch", "manifest")], id="manifests"),
        pytest.param([("milvus", ""), ("opensearch", "docs"), ("opensearch", "manifest")], id="everything"),
    ],
)
def test_a_store_wiped_by_accident_is_rebuilt_from_kafka_alone(
    pipeline: Deployment, published: str, wipe: list[tuple[str, str]]
) -> None:
    for store, kind in wipe:
        if store == "milvus":
            drop_collection(pipeline, published)
        else:
            drop_index(pipeline, published, kind)
    code, report = verify(pipeline, "-t", published)
    assert code == 1
    manifests_gone = ("opensearch", "manifest") in wipe
    expected = {("not_admitted", None)} if manifests_gone else set()
    expected |= {("rows_missing", store) for store, _ in wipe} if not manifests_gone else set()
    if manifests_gone:
        kept = {"milvus", "opensearch"} - {store for store, kind in wipe if kind != "manifest"}
        expected |= {("rows_without_manifest", store) for store in kept}
    assert kinds(report) == expected
    code, report = verify(pipeline, "-t", published, "--repair", "--yes")
    assert (code, report["found"]) == (0, []), report
    assert report["repair"]["redelivered"] >= DOCUMENTS
    assert "number 1 is urgent" in run(pipeline, "ask", "--search", "urgent turbine", "-t", published).stdout
    assert wiring.build_vectors(pipeline.settings).count(published).documents == DOCUMENTS


def test_a_repair_that_is_killed_is_finished_by_the_next(pipeline: Deployment, published: str) -> None:
    drop_index(pipeline, published, "docs")
    slow = pipeline.command("verify", "-t", published, "--repair", "--yes", "--rate", "0.2")
    with subprocess.Popen(slow, env=pipeline.environment, stdout=subprocess.DEVNULL) as killed:
        wait_until(lambda: wiring.build_texts(pipeline.settings).count(published).chunks > 0)
        killed.kill()
    assert killed.returncode == -signal.SIGKILL
    code, report = verify(pipeline, "-t", published)
    assert (code, kinds(report)) == (1, {("rows_missing", "opensearch")})
    assert 0 < report["differences"]["rows_missing"] < DOCUMENTS
    code, report = verify(pipeline, "-t", published, "--repair", "--yes")
    assert (code, report["found"]) == (0, [])


def test_the_mark_of_a_transaction_is_no_message_at_work(fresh_kafka: KafkaSettings) -> None:
    kafka = fresh_kafka
    topic = kafka.names.topic("documents.raw")
    producer = Producer({**kafka.confluent(), "transactional.id": topic})
    producer.init_transactions()
    producer.begin_transaction()
    producer.produce(topic, b"{}", b"default/a", partition=0)
    producer.commit_transaction()
    flow = Flow(kafka)
    before = flow.quiet(2)
    assert before.behind["chunk"][topic, 0] >= 1
    assert not flow.passed(idle_s=1)
    group = Consumer({**kafka.confluent(), "group.id": kafka.names.group("chunk")})
    group.commit(offsets=[TopicPartition(topic, 0, before.ends[topic, 0] - 1)], asynchronous=False)
    group.close()
    assert flow.quiet(2).behind["chunk"].get((topic, 0), 0) == 0
    assert flow.passed(idle_s=5)


def test_rows_broken_by_hand_are_found_one_by_one_and_mended(pipeline: Deployment, published: str) -> None:
    vectors, texts = wiring.build_vectors(pipeline.settings), wiring.build_texts(pipeline.settings)
    long = live_rows(pipeline, published, "long")
    vectors.delete(published, [long[0]])
    texts.delete(published, live_rows(pipeline, published, "d0"))
    [changed] = live_rows(pipeline, published, "d2")
    attributes = Attributes(created_at=datetime.now(UTC))
    row = TextRow(
        id=changed, doc_id="d2", version=1, ordinal=0, content_hash="x", attributes=attributes, text="x", start=0, end=1
    )
    texts.upsert(published, [row])
    orphan = msgspec.structs.replace(row, id=f"{'0' * 32}-0", doc_id="d3")
    texts.upsert(published, [orphan])
    unknown = msgspec.structs.replace(row, id=f"{'1' * 32}-0", doc_id='no "such" document')
    vectors.upsert(published, [_vector(pipeline, unknown), _vector(pipeline, orphan)])
    code, report = verify(pipeline, "-t", published)
    assert code == 1
    assert {(found["kind"], found["store"], found["doc_id"]) for found in report["found"]} == {
        ("rows_missing", "milvus", "long"),
        ("rows_missing", "opensearch", "d0"),
        ("rows_differ", None, "d2"),
        ("rows_orphaned", "opensearch", "d3"),
        ("rows_orphaned", "milvus", "d3"),
        ("rows_without_manifest", "milvus", 'no "such" document'),
    }
    dry = run(pipeline, "verify", "-t", published, "--repair", "--dry-run")
    assert (dry.exit_code, "redeliver 3 documents, sweep 3 rows" in dry.stderr) == (1, True)
    unasked = run(pipeline, "verify", "-t", published, "--repair")
    assert (unasked.exit_code, "--yes" in unasked.stderr) == (1, True)
    assert verify(pipeline, "-t", published)[1]["found"] == report["found"]
    code, report = verify(pipeline, "-t", published, "--repair", "--yes")
    assert (code, report["found"]) == (0, []), report
    assert (report["repair"]["redelivered"], report["repair"]["swept"]) == (3, 3)


def test_a_live_document_that_kafka_no_longer_has_is_a_note(pipeline: Deployment, tenant: str) -> None:
    """Its manifest and rows are written by hand: to Kafka it never was."""
    publish(pipeline, tenant, [{"id": "d2", "text": "The turbine turns."}])
    keys = {name: Key(tenant, name) for name in ("d2", "stray")}
    manifests = wiring.build_manifests(pipeline.settings)
    stored = manifests.read([keys["d2"]])[keys["d2"]]
    manifest = msgspec.structs.replace(stored.manifest, doc_id="stray")
    assert manifest.live is not None
    manifests.write({keys["stray"]: msgspec.structs.replace(stored, manifest=manifest, seq_no=None, primary_term=None)})
    row = TextRow(
        id=chunk_id(revision_id(keys["stray"], manifest.live.revision), 0),
        doc_id="stray",
        version=manifest.live.revision.version,
        ordinal=0,
        content_hash="x",
        attributes=Attributes(created_at=datetime.now(UTC)),
        text="x",
        start=0,
        end=1,
    )
    wiring.build_texts(pipeline.settings).upsert(tenant, [row])
    wiring.build_vectors(pipeline.settings).upsert(tenant, [_vector(pipeline, row)])
    code, report = verify(pipeline, "-t", tenant)
    assert (code, kinds(report)) == (0, {("no_document", None)})
    wiring.build_texts(pipeline.settings).delete(tenant, [row.id])
    code, report = verify(pipeline, "-t", tenant, "--repair", "--yes")
    assert (code, kinds(report)) == (1, {("no_document", None), ("rows_missing", "opensearch")})


def test_a_live_pipeline_gives_no_false_alarm(pipeline: Deployment, tenant: str) -> None:
    stop = threading.Event()
    producer = Producer({**pipeline.settings.kafka.confluent(), "partitioner": "murmur2_random"})

    def load() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            value = None if number % 7 == 0 else orjson.dumps({"text": f"Version {number} of it."})
            producer.produce(pipeline.topic("documents.raw"), value, f"{tenant}/d{number % 100}".encode())
            producer.poll(0)
            stop.wait(0.1)

    producing = threading.Thread(target=load)
    producing.start()
    try:
        wait_until(lambda: wiring.build_texts(pipeline.settings).count(tenant).chunks > 10)
        for _ in range(2):
            code, report = verify(pipeline, "-t", tenant, "--settle-s", "60")
            assert (code, report["found"]) == (0, []), report
            assert report["records"] > 10
    finally:
        stop.set()
        producing.join()
        producer.flush()
    finds_nothing(pipeline, tenant)


def test_a_tenant_deleted_as_a_whole_leaves_nothing(pipeline: Deployment, tenant: str) -> None:
    ahead = int(time.time() * 1000) + 10**9
    lines = [{"id": "a/b", "text": "The turbine turns."}, {"id": "numbered", "text": "It turns.", "version": ahead}]
    publish(pipeline, tenant, [*lines, {"id": "gone", "text": "x"}])
    publish(pipeline, tenant, [{"id": "gone", "op": "delete"}])
    publish(pipeline, tenant, [{"id": "a/b", "text": "The urgent turbine turns."}], "--urgent")
    other = f"{tenant}x"
    publish(pipeline, other, [{"id": "a/b", "text": "The turbine of somebody else."}])
    unasked = run(pipeline, "delete", "--all", "-t", tenant)
    assert (unasked.exit_code, "would delete 2 documents" in unasked.stderr) == (2, True)
    done = run(pipeline, "delete", "--all", "-t", tenant, "--yes", "--wait", "--timeout", "120")
    assert (done.exit_code, "3 sent" in done.stdout) == (0, True), done.output
    report = finds_nothing(pipeline, tenant)
    assert report["rows"] == {"milvus": 0, "opensearch": 0}
    assert orjson.loads(run(pipeline, "ask", "--search", "turbine", "-t", tenant, "--json").stdout)["hits"] == []
    assert wiring.build_manifests(pipeline.settings).count(tenant).documents == 0
    assert "0 sent" in run(pipeline, "delete", "--all", "-t", tenant).stdout
    assert finds_nothing(pipeline, other)["rows"]["milvus"] == 1


def wait_until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.2)


def _vector(pipeline: Deployment, row: TextRow) -> VectorRow:
    import numpy as np

    from headrace.encoders import encoder_identity

    dimension = encoder_identity(pipeline.settings.encoder).dimension
    shared = {name: getattr(row, name) for name in ("id", "doc_id", "version", "ordinal", "content_hash", "attributes")}
    return VectorRow(**shared, vector=np.full(dimension, 0.1, dtype=np.float32))
