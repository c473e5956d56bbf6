"""What the run left behind: in both stores and the manifests, on the topics, in the consumer groups."""

import json
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, Message, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from opensearchpy import OpenSearch
from pymilvus import MilvusClient

from headrace.cli.kafka import Positions
from headrace.config import Settings
from headrace.stores.manifests import OpenSearchManifestStore
from headrace.stores.milvus import collection_name
from schemas import Key, Live, chunk_id, revision_id
from tests.chaos.reader import assign_from_the_start, covered
from tests.chaos.workload import TENANTS, Expectation, Send
from topics import GROUPS, LANES

HOPS = (
    "documents.chunks",
    "documents.chunks.urgent",
    "documents.embeddings",
    "documents.embeddings.urgent",
    "documents.stored",
)
_ROWS = 10_000


@dataclass
class Findings:
    """Each a list of sentences; all empty when all is well."""

    lost: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        for name, found in vars(self).items():
            yield from (f"{name}: {sentence}" for sentence in found)


def lags(settings: Settings) -> dict[str, int]:
    """Messages that each group has not acked, of all its topics."""
    names = settings.kafka.names
    admin = AdminClient(settings.kafka.confluent())
    known = admin.list_topics(timeout=10).topics
    read = {stage: [topic for lane in LANES for topic in names.read_by(stage, lane)] for stage in GROUPS}
    partitions = [TopicPartition(t, p) for topics in read.values() for t in topics for p in known[t].partitions]
    ends = {
        (tp.topic, tp.partition): future.result().offset
        for tp, future in admin.list_offsets({tp: OffsetSpec.latest() for tp in partitions}).items()
    }
    found: dict[str, int] = {}
    with Positions(settings.kafka.confluent()) as positions:
        for stage, topics in read.items():
            committed = positions.committed(names.group(stage), [place for place in ends if place[0] in topics])
            found[stage] = sum(end - committed.get(place, 0) for place, end in ends.items() if place[0] in topics)
    return found


def read_topics(settings: Settings, topics: Iterable[str]) -> Iterator[Message]:
    """Everything on these topics, by their names in the table."""
    consumer = Consumer({"bootstrap.servers": settings.kafka.bootstrap_servers, "group.id": uuid.uuid4().hex})
    assign_from_the_start(consumer, [settings.kafka.names.topic(topic) for topic in topics])
    remaining = {}
    for place in consumer.assignment():
        end = consumer.get_watermark_offsets(place, timeout=10)[1]
        if end:
            remaining[place.topic, place.partition] = end
    while remaining:
        message = consumer.poll(10)
        assert message is not None, f"nothing came any more, and these were not at their ends: {remaining}"
        assert not message.error(), message.error()
        yield message
        place = (message.topic(), message.partition())
        if message.offset() + 1 >= remaining.get(place, 0):
            remaining.pop(place, None)
    consumer.close()


def work_done_twice(settings: Settings) -> dict[str, str]:
    """By topic: messages, and how many of them say again what another one said."""
    said: dict[str, Counter[str]] = defaultdict(Counter)
    for message in read_topics(settings, HOPS):
        content = json.loads(message.value())
        what = [content[name] for name in ("tenant", "doc_id", "revision", "first")]
        said[message.topic()][json.dumps([*what, content.get("store")], sort_keys=True)] += 1
    return {
        topic.removeprefix(settings.kafka.topic_prefix): f"{count.total()} ({count.total() - len(count)} again)"
        for topic, count in sorted(said.items())
    }


def dead_letter_faults(settings: Settings, poison: Sequence[Send]) -> list[str]:
    """The dead letters are exactly the poison, byte for byte. One may come twice, like anything."""
    expected = {send.mark: (send.key.encode(), send.value) for send in poison}
    found: dict[bytes | None, set[tuple[bytes, bytes | None]]] = defaultdict(set)
    for message in read_topics(settings, ["documents.dead"]):
        found[dict(message.headers() or []).get("mark")].add((message.key(), message.value()))
    faults = [f"poison without a dead letter: {mark!r}" for mark in expected.keys() - found.keys()]
    for mark, records in found.items():
        if records != {expected.get(mark)}:
            faults.append(f"a dead letter that is not the poison that was sent: {mark!r} {records}")
    return faults


def audit(settings: Settings, expectation: Expectation) -> Findings:
    """What was sent, against the manifests and the rows of both stores. Nothing may be at work any more."""
    findings = Findings()
    live = _live(settings, expectation)
    texts = {tenant: _opensearch_rows(settings, tenant) for tenant in TENANTS}
    vectors = {tenant: _milvus_rows(settings, tenant) for tenant in TENANTS}
    belongs: dict[str, set[str]] = {tenant: set() for tenant in TENANTS}
    for key in expectation.keys:
        winner, manifest = expectation.winner(key), live[key]
        tenant, _, doc_id = key.partition("/")
        if manifest is None:
            findings.lost.append(f"{key}: nothing was ever live, {winner.version} was sent")
            continue
        version = manifest.revision.version
        if manifest.deleted != (winner.text is None) or version not in expectation.may_be_live(key):
            findings.stale.append(f"{key}: {version} (deleted: {manifest.deleted}) is live, {winner.version} was sent")
        ids = [
            chunk_id(revision_id(Key(tenant, doc_id), manifest.revision), ordinal) for ordinal in range(manifest.chunks)
        ]
        belongs[tenant].update(ids)
        for store, rows in (("OpenSearch", texts[tenant]), ("Milvus", vectors[tenant])):
            missing = [row for row in ids if row not in rows]
            if missing:
                findings.lost.append(f"{key}: {store} has no {missing} of the live {version}")
        rows_here = [texts[tenant][row] for row in ids if row in texts[tenant]]
        text = (expectation.text(key, version) if version in expectation.versions(key) else None) or ""
        if any(
            row["version"] != version or row["doc_id"] != doc_id or row["text"] != text[row["start"] : row["end"]]
            for row in rows_here
        ):
            findings.mixed.append(f"{key}: the rows of {version} are not of its text")
        elif not covered(text, [(row["start"], row["end"]) for row in rows_here]):
            findings.lost.append(f"{key}: the rows of {version} are not its whole text")
        for row in ids:
            if row in texts[tenant] and row in vectors[tenant] and not _same(texts[tenant][row], vectors[tenant][row]):
                findings.mixed.append(f"{key}: the stores differ in {row}")
    for tenant in TENANTS:
        for store, rows in (("OpenSearch", texts[tenant]), ("Milvus", vectors[tenant])):
            for row in rows.keys() - belongs[tenant]:
                of = rows[row]
                findings.orphans.append(f"{store}: {tenant}/{of['doc_id']} version {of['version']}, row {row}")
    return findings


def _live(settings: Settings, expectation: Expectation) -> dict[str, Live | None]:
    keys = {Key(*key.split("/", 1)): key for key in expectation.keys}
    stored = OpenSearchManifestStore(settings.stores).read(keys)
    return {name: stored[key].manifest.live for key, name in keys.items()}


def _same(text: dict[str, Any], vector: dict[str, Any]) -> bool:
    return all(text[name] == vector[name] for name in ("doc_id", "version", "ordinal", "content_hash"))


def _opensearch_rows(settings: Settings, tenant: str) -> dict[str, dict[str, Any]]:
    client, index = _opensearch(settings), f"{settings.stores.prefix}{tenant}_docs"
    client.indices.refresh(index=index)
    hits = client.search(index=index, body={"query": {"match_all": {}}}, size=_ROWS)["hits"]["hits"]
    assert len(hits) < _ROWS
    return {hit["_id"]: hit["_source"] for hit in hits}


def _milvus_rows(settings: Settings, tenant: str) -> dict[str, dict[str, Any]]:
    client = _milvus(settings)
    rows = client.query(
        collection_name(settings.stores.prefix, tenant),
        filter='id != ""',
        output_fields=["id", "doc_id", "version", "ordinal", "content_hash"],
        consistency_level="Strong",
        limit=_ROWS,
    )
    client.close()
    assert len(rows) < _ROWS
    assert len({row["id"] for row in rows}) == len(rows), "Milvus holds an id twice"
    return {row["id"]: row for row in rows}


def _opensearch(settings: Settings) -> OpenSearch:
    return OpenSearch(hosts=[settings.stores.opensearch.url])


def _milvus(settings: Settings) -> MilvusClient:
    return MilvusClient(uri=settings.stores.milvus.uri, dedicated=True)
