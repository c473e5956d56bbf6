"""A store or a broker that is away, silent or full: what needs it waits and says so, the rest goes on, nothing is lost."""

import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from headrace import wiring
from headrace.cli.asking import Asker
from headrace.cli.condition import group_lag
from headrace.errors import Transient
from headrace.stores import TextRow
from schemas import Answer, Attributes, Query
from tests.chaos.servers import OwnServers, ServerName
from tests.conftest import PARTITIONS, Deployment, deploy
from topics import GROUPS

SESSION_S = 6
AWAY_S = 1.5 * SESSION_S
"""Past the session time-out, and three time-outs of a store. (Milvus gives itself up when it was frozen for longer.)"""
GOES_ON_WITHIN_S = 120.0
"""A store that starts anew and loads its collections, and the longest wait between two tries, 16 s."""
BUFFER_BYTES = 4_000_000
BACKLOG_BYTES = 120_000_000
SETTINGS = {
    "HEADRACE_STORES__MILVUS__TIMEOUT_S": "3",
    "HEADRACE_STORES__MILVUS__SEARCH_TIMEOUT_S": "2",
    "HEADRACE_STORES__OPENSEARCH__TIMEOUT_S": "7",
    "HEADRACE_STORES__OPENSEARCH__SEARCH_TIMEOUT_S": "2",
    "HEADRACE_WORKER__SESSION_TIMEOUT_S": str(SESSION_S),
    "HEADRACE_WORKER__BUFFER_BYTES": str(BUFFER_BYTES),
}


@dataclass
class Pipeline:
    """Six workers, and what a test asks of them and of the servers."""

    deployment: Deployment
    workers: dict[str, subprocess.Popen[bytes]]

    def send(self, tenant: str, count: int, *, text: str = "The sluice opens at six.", **fields: object) -> None:
        producer = self._producer()
        for number in range(count):
            value = json.dumps({"text": f"{text} Document {number}.", **fields}).encode()
            producer.produce(self.deployment.topic("documents.raw"), value, f"{tenant}/d{number}")
        assert producer.flush(60) == 0

    def send_backlog(self, tenant: str, size: int) -> None:
        """Versions of 1 MB that are older than what is there: nothing follows from them but the word `superseded`."""
        producer = self._producer()
        for number in range(size // 1_000_000):
            value = json.dumps({"text": "sluice " * 143_000, "version": number}).encode()
            producer.produce(self.deployment.topic("documents.raw"), value, f"{tenant}/d{number % 8}")
            producer.poll(0.05)
        assert producer.flush(60) == 0

    def _producer(self) -> Producer:
        return Producer(
            self.deployment.settings.kafka.confluent()
            | {"partitioner": "murmur2_random", "message.max.bytes": 10**7, "acks": "all"}
        )

    def says(self, stage: str, path: str = "/readyz") -> str:
        """`ok`, or what is wrong."""
        try:
            with urllib.request.urlopen(self.deployment.url(stage, path), timeout=5) as answer:
                return str(answer.read().decode().strip())
        except HTTPError as exc:
            return str(exc.read().decode().strip())
        except URLError as exc:
            return f"no answer: {exc}"

    def metric(self, stage: str, name: str, **labels: str) -> float:
        for line in self.deployment.metrics(stage).splitlines():
            if line.startswith(name + "{") and all(f'{label}="{value}"' in line for label, value in labels.items()):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def events(self, stage: str, event: str) -> list[dict[str, object]]:
        lines = (self.deployment.logs / f"{stage}.log").read_text().splitlines()
        entries = [json.loads(line) for line in lines if line.startswith("{")]
        return [entry for entry in entries if entry.get("event") == event]

    def ask(self, tenant: str) -> Answer:
        with Asker(self.deployment.settings.kafka) as asker:
            return asker.ask(Query(query="When does the sluice open?", tenant=tenant, mode="search"), timeout_s=30)

    def members(self) -> dict[str, set[tuple[str, tuple[tuple[str, int], ...]]]]:
        """Who is in each group, and what it was given."""
        admin = AdminClient(self.deployment.settings.kafka.confluent())
        names = self.deployment.settings.kafka.names
        asked = admin.describe_consumer_groups([names.group(stage) for stage in GROUPS], request_timeout=20)
        return {
            group: {
                (member.member_id, tuple(sorted((place.topic, place.partition) for place in given.topic_partitions)))
                for member in future.result(30).members
                if (given := member.assignment) is not None
            }
            for group, future in asked.items()
        }

    def wait_indexed(self, tenant: str, documents: int) -> None:
        """All are live, and the manifests, the rows of both stores and the dead letters are as they should be."""
        stores = self.deployment.settings
        manifests = wiring.build_manifests(stores)
        until(
            lambda: manifests.count(tenant).documents == documents and not self.lag(),
            GOES_ON_WITHIN_S,
            f"{documents} documents live and nothing left to do",
        )
        chunks = manifests.count(tenant).chunks
        assert chunks >= documents
        for store in (wiring.build_texts(stores), wiring.build_vectors(stores)):
            held = store.count(tenant)
            assert (held.documents, held.chunks) == (documents, chunks)
        assert self.end_of("documents.dead") == 0

    def lag(self) -> int:
        return sum(entry.messages for entry in group_lag(self.deployment.settings.kafka))

    def end_of(self, topic: str) -> int:
        """Records that were ever written to it."""
        consumer = Consumer(self.deployment.settings.kafka.confluent() | {"group.id": "test"})
        name = self.deployment.topic(topic)
        partitions = consumer.list_topics(name, timeout=10).topics[name].partitions
        ends = [consumer.get_watermark_offsets(TopicPartition(name, place), timeout=10)[1] for place in partitions]
        consumer.close()
        return sum(ends)

    def healthy(self, stages: Sequence[str] = GROUPS) -> bool:
        return all(self.workers[stage].poll() is None and self.says(stage, "/healthz") == "ok" for stage in stages)


@pytest.fixture(scope="module")
def pipeline(own_servers: OwnServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    deployment = deploy(own_servers.settings, tmp_path_factory.mktemp("backpressure"), **SETTINGS)
    try:
        running = Pipeline(deployment, deployment.start_all())
        for tenant in ("stopped", "frozen", "blocked"):
            running.send(tenant, 1, version=1000)
        for tenant in ("stopped", "frozen", "blocked"):
            running.wait_indexed(tenant, 1)
        yield running
    finally:
        deployment.stop()  # whatever has become of the servers
        own_servers.up()
        deployment.drop()


def test_a_stopped_milvus_holds_what_writes_to_it_and_nothing_else(own_servers: OwnServers, pipeline: Pipeline) -> None:
    milvus_is_away(own_servers, pipeline, "stopped", frozen=False)


def test_a_frozen_milvus_holds_what_writes_to_it_and_nothing_else(own_servers: OwnServers, pipeline: Pipeline) -> None:
    milvus_is_away(own_servers, pipeline, "frozen", frozen=True)


def milvus_is_away(own_servers: OwnServers, pipeline: Pipeline, tenant: str, *, frozen: bool) -> None:
    with keeps_its_place(own_servers, pipeline, "milvus", "upsert-milvus", frozen=frozen):
        pipeline.send(tenant, 12, version=2000)
        texts = wiring.build_texts(pipeline.deployment.settings)
        until(lambda: texts.count(tenant).documents == 12, 20, "all texts stored")
        answer = pipeline.ask(tenant)
        assert answer.degraded == ["milvus"]
        assert answer.hits
    pipeline.wait_indexed(tenant, 12)
    until(lambda: pipeline.ask(tenant).degraded == [], GOES_ON_WITHIN_S, "answers with both stores")


@pytest.mark.parametrize("frozen", [False, True], ids=["stopped", "frozen"])
def test_an_opensearch_that_is_away_holds_the_chunk_stage_in_bounded_memory(
    own_servers: OwnServers, pipeline: Pipeline, frozen: bool
) -> None:
    tenant = "frozen" if frozen else "stopped"
    finished = pipeline.metric("chunk", "headrace_messages_total", direction="in", lane="bulk")

    def buffered() -> float:
        return pipeline.metric("chunk", "headrace_buffered_bytes", lane="bulk")

    before = resident_bytes(pipeline.workers["chunk"].pid)
    with keeps_its_place(own_servers, pipeline, "opensearch", "chunk", frozen=frozen):
        pipeline.send(tenant, 3, version=3000)
        pipeline.send_backlog(tenant, BACKLOG_BYTES)
        answer = pipeline.ask(tenant)
        assert answer.hits == []
        assert answer.error is not None
        assert answer.error.code == "unavailable"
        assert answer.error.retry_after_ms
        until(lambda: buffered() >= 1_000_000, GOES_ON_WITHIN_S, "the backlog at the worker")
        time.sleep(2)  # It takes what it has room for, and says so once a second.
        held = buffered()
        grown = resident_bytes(pipeline.workers["chunk"].pid) - before
    until(
        lambda: (
            pipeline.metric("chunk", "headrace_messages_total", direction="in", lane="bulk")
            >= finished + 3 + BACKLOG_BYTES // 1_000_000
        ),
        GOES_ON_WITHIN_S,
        "the backlog done",
    )
    assert held < BUFFER_BYTES + PARTITIONS * 1024**2
    assert grown < BACKLOG_BYTES / 2
    print(f"{grown / 1e6:.0f} MB more with {BACKLOG_BYTES / 1e6:.0f} MB waiting, {held / 1e6:.1f} MB buffered")
    assert pipeline.end_of("documents.dead") == 0
    until(lambda: bool(pipeline.ask(tenant).hits), GOES_ON_WITHIN_S, "answers")


def test_an_opensearch_that_refuses_writes_holds_each_stage_that_writes_to_it(pipeline: Pipeline) -> None:
    stores, members = pipeline.deployment.settings.stores, pipeline.members()
    texts, manifests = f"{stores.prefix}blocked_docs", f"{stores.prefix}blocked_manifest"
    block_writes(pipeline, texts, True)
    pipeline.send("blocked", 5, version=2000)
    waits_for(pipeline, "upsert-opensearch", "opensearch")
    vectors = wiring.build_vectors(pipeline.deployment.settings)
    until(lambda: vectors.count("blocked").documents == 5, 20, "all vectors stored")
    block_writes(pipeline, manifests, True)
    pipeline.send("blocked", 1, text="The sluice opens at seven.", version=3000)
    waits_for(pipeline, "chunk", "opensearch")
    block_writes(pipeline, texts, False)
    waits_for(pipeline, "commit", "opensearch")
    assert pipeline.says("embed") == pipeline.says("upsert-milvus") == "ok"
    assert pipeline.healthy()
    block_writes(pipeline, manifests, False)
    pipeline.wait_indexed("blocked", 5)
    until(lambda: all(pipeline.says(stage) == "ok" for stage in GROUPS), GOES_ON_WITHIN_S, "all ready")
    assert pipeline.members() == members


def test_an_opensearch_with_full_queues_is_overloaded_and_nothing_else(pipeline: Pipeline) -> None:
    """Bulk requests beyond a tenth of its heap are refused by it with 429, some of them in the middle."""
    store, writers = wiring.build_texts(pipeline.deployment.settings), 24
    attributes = Attributes(created_at=datetime.now(UTC), metadata={"load": "x" * 1_000_000})
    batches = [
        [
            TextRow(
                id=f"{writer}-{number}",
                doc_id=f"d{writer}",
                version=1,
                ordinal=number,
                content_hash="",
                attributes=attributes,
                text="sluice",
                start=0,
                end=6,
            )
            for number in range(7)
        ]
        for writer in range(writers)
    ]

    def refusal(rows: list[TextRow]) -> Transient | None:
        try:
            store.upsert("full", rows)
        except Transient as exc:
            return exc
        return None

    def overloaded() -> bool:
        with ThreadPoolExecutor(writers) as threads:
            return any("rejected_execution" in str(refused) for refused in threads.map(refusal, batches))

    until(overloaded, GOES_ON_WITHIN_S, "OpenSearch refuses some of it")
    for rows in batches:
        until(lambda rows=rows: refusal(rows) is None, GOES_ON_WITHIN_S, "written after all")  # type: ignore[misc]
    assert store.count("full").chunks == 7 * writers
    store.close()


@pytest.mark.parametrize("frozen", [False, True], ids=["stopped", "frozen"])
def test_workers_outlive_their_broker(own_servers: OwnServers, pipeline: Pipeline, frozen: bool) -> None:
    tenant = f"kafka-{'frozen' if frozen else 'stopped'}"
    with own_servers.away("kafka", frozen=frozen):
        begun = time.monotonic()
        commands = [["status"], ["ask", "--timeout", "5", "why?"], ["publish", "--doc-id", "x", "-"]]
        asked = [
            subprocess.Popen(
                pipeline.deployment.command(*command),
                env=pipeline.deployment.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for command in commands
        ]
        for command, process in zip(commands, asked, strict=True):
            said = process.communicate(timeout=60)[1].decode().strip()
            assert process.returncode in ({1} if command[0] == "status" else {4}), (command, said)
            assert re.search(r"kafka: .*(answer|took|take)", said), (command, said)
            assert "Traceback" not in said
        waits_for(pipeline, "commit", "kafka")
        time.sleep(max(0.0, AWAY_S - (time.monotonic() - begun)))
        assert pipeline.healthy()
    until(lambda: all(pipeline.says(stage) == "ok" for stage in GROUPS), GOES_ON_WITHIN_S, "all ready")
    pipeline.send(tenant, 3)
    pipeline.wait_indexed(tenant, 3)
    assert pipeline.healthy()


@contextmanager
def keeps_its_place(
    own_servers: OwnServers, pipeline: Pipeline, server: ServerName, held: str, *, frozen: bool
) -> Iterator[None]:
    """Within the block the server is away, for longer than a session's time-out, and `held` has work.

    It says for what it waits, tries again ever more seldom, and stays in its group like all others, which are ready.
    """
    members, waited = pipeline.members(), len(pipeline.events(held, "waiting_ended"))
    retries = pipeline.metric(held, "headrace_retries_total", service=server)
    with own_servers.away(server, frozen=frozen):
        begun = time.monotonic()
        yield
        waits_for(pipeline, held, server)
        time.sleep(max(0.0, AWAY_S - (time.monotonic() - begun)))
        assert pipeline.says(held).startswith(f"waiting for {server}")
        assert pipeline.metric(held, "headrace_waiting", service=server) == 1
        assert {stage: pipeline.says(stage) for stage in GROUPS if stage != held} == dict.fromkeys(
            [stage for stage in GROUPS if stage != held], "ok"
        )
        assert pipeline.healthy()
        assert pipeline.members() == members
    until(lambda: pipeline.says(held) == "ok", GOES_ON_WITHIN_S, f"{held} ready")
    tried = pipeline.metric(held, "headrace_retries_total", service=server) - retries
    print(f"{held} was without {server} for {time.monotonic() - begun:.0f} s and tried {tried:.0f} times again")
    assert 1 <= tried <= 20
    assert pipeline.metric(held, "headrace_waiting", service=server) == 0
    last = pipeline.events(held, "waiting_for_service")[-1]
    assert last["server"] == server
    assert len(pipeline.events(held, "waiting_ended")) > waited
    assert pipeline.members() == members


def waits_for(pipeline: Pipeline, stage: str, service: str) -> None:
    """Soon: also where the server is silent and its time-out is far."""
    give_up = time.monotonic() + 30
    while not (says := pipeline.says(stage)).startswith(f"waiting for {service}"):
        assert time.monotonic() < give_up, f"{stage} does not wait for {service}: {says}"
        time.sleep(0.2)


def resident_bytes(pid: int) -> int:
    return 1024 * int(re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0])


def block_writes(pipeline: Pipeline, index: str, blocked: bool) -> None:
    """The block that a full disk brings would be lifted by OpenSearch itself, twice a minute; this one stays."""
    url = f"{pipeline.deployment.settings.stores.opensearch.url}/{index}/_settings"
    body = json.dumps({"index.blocks.write": True if blocked else None}).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"}, method="PUT")
    urllib.request.urlopen(request, timeout=30).close()


def until(holds: Callable[[], bool], within_s: float, what: str) -> None:
    give_up = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < give_up, f"not so within {within_s:g} s: {what}"
        time.sleep(0.2)
