"""Comparing the compacted topics, the manifests and both stores."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from hashlib import blake2b
from typing import Protocol

import msgspec
from confluent_kafka import Message

from agents.app import build_chunker
from agents.chunk import Chunker
from agents.stage import Record
from headrace import wiring
from headrace.cli.deadletters import read_dead_letter
from headrace.cli.flow import Flow
from headrace.cli.kafka import headers_of, oldest_first, raw_key, raw_value
from headrace.cli.worktable import Suspect, WorkTable
from headrace.config import Settings
from headrace.errors import Poison
from headrace.stores import ManifestStore, StoredRow, TextStore, VectorStore
from headrace.verification import NOTES, Evidence, Fact, Held, Kind, Known, Refused, Sent, differences
from schemas import Key, Manifest, Store, parse_key
from schemas.batches import STORES
from schemas.key import check_doc_id

COMPACTED = ("documents.raw", "documents.urgent")
LOOK_DOCUMENTS = 200
"""So many are looked at together a second time."""
_SHOW_EVERY = 500


class Steps(Protocol):
    """Whoever shows how it goes."""

    def show(self, what: str, done: int, total: int | None = None) -> None: ...


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was compared, and how many differences of each kind there are (`notes` are none).

    `poison` are records that are dead letters and no documents; `at_work` are messages that the stages have yet to
    finish; `changing` are documents that were touched each time they were looked at, and so not judged.
    """

    records: int
    poison: int
    manifests: int
    rows: dict[Store, int]
    documents: int
    differences: dict[Kind, int]
    notes: dict[Kind, int]
    at_work: int
    changing: int
    seconds: float

    @property
    def fine(self) -> bool:
        return not self.differences


class Verifier:
    """Reads what one tenant, or all, have in Kafka and in the stores. Writes nothing."""

    def __init__(self, settings: Settings, tenant: str | None, steps: Steps) -> None:
        self.settings = settings
        self.tenant = tenant
        self.steps = steps
        self.chunker: Chunker = build_chunker(settings)
        self.manifests: ManifestStore = wiring.build_manifests(settings)
        self.vectors: VectorStore = wiring.build_vectors(settings)
        self.texts: TextStore = wiring.build_texts(settings)
        self.flow = Flow(settings.kafka)

    def verify(self, table: WorkTable, settle_s: float) -> Report:
        """Note all differences in an empty table.

        Nothing of a document on its way counts: where anything was at work meanwhile, what looked different is looked
        at again when all that was at work has passed, for up to `settle_s` seconds.
        """
        started = time.monotonic()
        self._wait_for_what_is_at_work(settle_s)
        before = self.flow.quiet(0)
        read = self._read(table)
        documents = self._compare(table, read)
        after = self.flow.quiet(0)
        changing = 0
        if before.messages or after.messages or before.ends != after.ends:
            changing = self._confirm(table, settle_s)
            after = self.flow.quiet(0)
        counts = table.counts()
        return Report(
            records=read["records"],
            poison=read["poison"],
            manifests=read["manifests"],
            rows={store: read[store] for store in STORES},
            documents=documents,
            differences={kind: count for kind, count in counts.items() if kind not in NOTES},
            notes={kind: count for kind, count in counts.items() if kind in NOTES},
            at_work=after.messages,
            changing=changing,
            seconds=time.monotonic() - started,
        )

    def records(self) -> Iterator[Message]:
        """What the compacted topics hold, less what other tenants have."""
        prefix = None if self.tenant is None else f"{self.tenant}/".encode()
        kafka = self.settings.kafka
        for topic in COMPACTED:
            with closing(oldest_first(kafka.confluent(), kafka.names.topic(topic))) as messages:
                for message in messages:
                    if prefix is None or (raw_key(message) or b"").startswith(prefix):
                        yield message

    def record(self, message: Message) -> Record:
        """As `chunk` gets it; what comes again is never urgent."""
        return Record(
            topic=message.topic() or "",
            partition=message.partition() or 0,
            offset=message.offset() or 0,
            timestamp=message.timestamp()[1],
            key=raw_key(message),
            value=raw_value(message),
            headers=headers_of(message),
            lane="bulk",
        )

    def _read(self, table: WorkTable) -> Counter[str]:
        """Kafka last: whatever a manifest knows of had been sent by then."""
        read = Counter[str]()
        for tenant in self._tenants(self.manifests.tenants()):
            for manifests in self.manifests.scan(tenant):
                table.add((manifest.key, Known(manifest=manifest)) for manifest in manifests)
                self._count(read, "manifests", len(manifests))
        for store, holder in self._stores().items():
            for tenant in self._tenants(holder.tenants()):
                for page in holder.rows(tenant):
                    table.add((Key(tenant, row.doc_id), Held(store=store, row=row)) for row in page)
                    self._count(read, store, len(page))
        table.add(self._sent(read))
        table.add(self._refused(read))
        return read

    def _sent(self, read: "Counter[str]") -> Iterator[tuple[Key, Fact]]:
        topics = {self.settings.kafka.names.topic(topic): topic for topic in COMPACTED}
        for message in self.records():
            self._count(read, "records", 1)
            record = self.record(message)
            try:
                incoming = self.chunker.decode(record)
            except Poison:
                read["poison"] += 1
                continue
            sent = Sent(
                topic=topics[record.topic],
                partition=record.partition,
                offset=record.offset,
                revision=incoming.revision,
            )
            yield incoming.key, sent

    def _refused(self, read: "Counter[str]") -> Iterator[tuple[Key, Fact]]:
        kafka = self.settings.kafka
        topics = {kafka.names.topic(topic): topic for topic in COMPACTED}
        with closing(oldest_first(kafka.confluent(), kafka.names.topic("documents.dead"))) as messages:
            for message in messages:
                self._count(read, "dead letters", 1)
                letter = read_dead_letter(message)
                with suppress(ValueError):  # a letter of another program, or of no document
                    place = (int(letter.partition), int(letter.offset))
                    refused = Refused(topic=topics.get(letter.topic, ""), partition=place[0], offset=place[1])
                    key = parse_key(raw_key(message))
                    if self.tenant in (None, key.tenant):
                        yield key, refused

    def _compare(self, table: WorkTable, read: "Counter[str]") -> int:
        documents = 0
        for evidence in table.documents():
            documents += 1
            read["poison"] += evidence.refused
            if documents % _SHOW_EVERY == 0:
                self.steps.show("comparing documents", documents)
            if found := differences(evidence):
                state = _state(evidence.manifest)
                table.note(Suspect(key=evidence.key, newest=evidence.newest, state=state, differences=found))
        return documents

    def _confirm(self, table: WorkTable, settle_s: float) -> int:
        """Look again at what looked different, until none of it was touched since; how many always were."""
        give_up = time.monotonic() + settle_s
        while True:
            passed = self._wait_for_what_is_at_work(max(0.0, give_up - time.monotonic()))
            touched = self._look_again(table, passed)
            if not touched or not passed or time.monotonic() > give_up:
                # What stands still is listed, as far as it is known; what always moves can't be judged.
                return table.forget_unconfirmed() if passed else 0

    def _wait_for_what_is_at_work(self, within_s: float) -> bool:
        return self.flow.passed(
            idle_s=within_s,
            within_s=within_s,
            show=lambda messages: self.steps.show("waiting for messages at work", messages),
        )

    def _look_again(self, table: WorkTable, passed: bool) -> int:
        touched = 0
        last: Key | None = None
        while suspects := table.unconfirmed(last, LOOK_DOCUMENTS):
            last = suspects[-1].key
            first, second = self._evidence(suspects), self._stored([suspect.key for suspect in suspects])
            for suspect, evidence in zip(suspects, first, strict=True):
                found = differences(evidence)
                state = _state(second[suspect.key])
                still = state == _state(evidence.manifest) == suspect.state and found == suspect.differences
                touched += bool(found) and not still
                table.note(
                    Suspect(
                        key=suspect.key,
                        newest=suspect.newest,
                        state=state,
                        differences=found,
                        confirmed=still and passed,
                    )
                )
        return touched

    def _evidence(self, suspects: list[Suspect]) -> list[Evidence]:
        """What the stores say now of these documents."""
        manifests = self._stored([suspect.key for suspect in suspects])
        rows: dict[Key, dict[Store, list[StoredRow]]] = {
            suspect.key: {store: [] for store in STORES} for suspect in suspects
        }
        for tenant in {suspect.key.tenant for suspect in suspects}:
            doc_ids = {suspect.key.doc_id for suspect in suspects if suspect.key.tenant == tenant}
            for store, holder in self._stores().items():
                for page in holder.rows(tenant, doc_ids):
                    for row in page:
                        rows[Key(tenant, row.doc_id)][store].append(row)
        return [
            Evidence(key=suspect.key, newest=suspect.newest, manifest=manifests[suspect.key], rows=rows[suspect.key])
            for suspect in suspects
        ]

    def _stored(self, keys: list[Key]) -> dict[Key, Manifest | None]:
        return read_manifests(self.manifests, keys)

    def _stores(self) -> dict[Store, VectorStore | TextStore]:
        return {"milvus": self.vectors, "opensearch": self.texts}

    def _tenants(self, known: list[str]) -> list[str]:
        return [tenant for tenant in known if self.tenant in (None, tenant)]

    def _count(self, read: "Counter[str]", what: str, more: int) -> None:
        before = read[what]
        read[what] += more
        if before // _SHOW_EVERY != read[what] // _SHOW_EVERY:
            self.steps.show(f"reading {_READ.get(what, what)}", read[what])


_READ = {"milvus": "rows of Milvus", "opensearch": "rows of OpenSearch"}


def read_manifests(manifests: ManifestStore, keys: list[Key]) -> dict[Key, Manifest | None]:
    """None for a document without one. A row may name a doc_id that no document can have."""
    stored = manifests.read(key for key in keys if _is_key(key))
    return {key: stored[key].manifest if key in stored and stored[key].seq_no is not None else None for key in keys}


def _is_key(key: Key) -> bool:
    try:
        check_doc_id(key.doc_id)
    except ValueError:
        return False
    return True


def _state(manifest: Manifest | None) -> bytes:
    return blake2b(msgspec.msgpack.encode(manifest), digest_size=16).digest()
