"""Mending what a verification found: records worked on again as redeliveries are, and rows of nothing swept."""

import time
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby

import msgspec
from confluent_kafka import KafkaError, Message, Producer

from agents.stage import Outgoing
from headrace.cli.kafka import read_places, translated
from headrace.cli.publishing import producer_config
from headrace.cli.verifying import COMPACTED, LOOK_DOCUMENTS, Steps, Verifier, read_manifests
from headrace.cli.worktable import WorkTable
from headrace.errors import Poison, Transient
from headrace.verification import Difference, spared
from schemas import Key, Manifest, parse_key

CONFIRM_DOCUMENTS = 100
"""So many go out before the broker's word is waited for."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a repair would do. Rows may turn out to belong to something once the records are worked on."""

    redeliver: int
    sweep: int
    hopeless: int

    @property
    def nothing(self) -> bool:
        return not (self.redeliver or self.sweep)


def plan(table: WorkTable) -> Plan:
    return Plan(
        redeliver=table.redeliveries(),
        sweep=sum(len(difference.rows) for difference in table.sweeps()),
        hopeless=table.without_remedy(),
    )


class Mended(msgspec.Struct, frozen=True, kw_only=True):
    """What was done. `recut` names documents that are cut into other chunks than when they went live."""

    redelivered: int
    recut: list[str]
    passed: bool


class Repair:
    """Everything is done so that it may end at any point and begin anew: the next run sees what is still different."""

    def __init__(self, verifier: Verifier, steps: Steps) -> None:
        self._verifier = verifier
        self._steps = steps
        self._kafka = verifier.settings.kafka

    def redeliver(self, table: WorkTable, *, rate: float, idle_s: float) -> Mended:
        """Work on each record again as `chunk` would if it came again, and wait until all stages have done theirs.

        Its chunks go out on the bulk lane under the ids that the rows of that version have. Nothing is deleted, and no
        version goes live that would not have.
        """
        total, done = table.redeliveries(), 0
        recut: list[str] = []
        config = self._kafka.confluent()
        with translated(config):
            producer = Producer(producer_config(config))
        failures: list[KafkaError] = []
        pace = _Pace(rate)
        for topic in COMPACTED:
            with closing(read_places(config, self._kafka.names.topic(topic), table.places(topic))) as messages:
                for message in messages:
                    pace.wait()
                    if not self._send(producer, message, failures):
                        recut.append(str(parse_key(self._verifier.record(message).key)))
                    done += 1
                    self._steps.show("redelivering documents", done, total)
                    if done % CONFIRM_DOCUMENTS == 0:
                        _confirm(producer, failures)
        _confirm(producer, failures)
        passed = self._verifier.flow.passed(
            idle_s=idle_s, show=lambda messages: self._steps.show("messages at work", messages)
        )
        return Mended(redelivered=done - len(recut), recut=recut, passed=passed)

    def sweep(self, table: WorkTable) -> int:
        """Delete the rows that belong to nothing by their ids. Each document's manifest is read right before: what is
        live, on its way or let in by then stays.
        """
        swept = 0
        for page in _pages(table.sweeps()):
            manifests = read_manifests(self._verifier.manifests, [Key(one.tenant, one.doc_id) for one in page])
            for (store, tenant), group in groupby(page, key=lambda one: (one.store, one.tenant)):
                ids = [row for difference in group for row in _unclaimed(difference, manifests)]
                if store == "milvus":
                    self._verifier.vectors.delete(tenant, ids)
                else:
                    self._verifier.texts.delete(tenant, ids)
                swept += len(ids)
            self._steps.show("sweeping rows", swept)
        return swept

    def _send(self, producer: Producer, message: Message, failures: list[KafkaError]) -> bool:
        """False for a document that is cut otherwise than when it went live."""
        record = self._verifier.record(message)
        try:
            key = parse_key(record.key)
            intake = self._verifier.manifests.read([key])[key].manifest.intake
            outgoing = self._verifier.chunker.redelivered(record, intake)
        except Poison:
            return True  # `chunk` will say so, or has: it is a dead letter, and no document
        for one in outgoing or ():
            _produce(producer, self._kafka.names.topic(one.topic), one, failures)
        return outgoing is not None


class _Pace:
    """At most so many a second, on average from the start."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._started = time.monotonic()
        self._count = 0

    def wait(self) -> None:
        time.sleep(max(0.0, self._started + self._count / self._rate - time.monotonic()))
        self._count += 1


def _produce(producer: Producer, topic: str, outgoing: Outgoing, failures: list[KafkaError]) -> None:
    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failures.append(error)

    while True:
        try:
            producer.produce(topic, outgoing.value, outgoing.key, on_delivery=delivered)
            break
        except BufferError:
            producer.poll(0.1)
    producer.poll(0)


def _confirm(producer: Producer, failures: list[KafkaError]) -> None:
    while len(producer):
        producer.poll(0.1)
    if failures:
        raise Transient("kafka", f"{len(failures)} records were not taken: {failures[0].str()}")


def _pages(found: Iterator[Difference]) -> Iterator[list[Difference]]:
    """By store and tenant within a page, so that a page takes few requests."""
    page: list[Difference] = []
    for difference in found:
        page.append(difference)
        if len(page) == LOOK_DOCUMENTS:
            yield sorted(page, key=lambda one: (one.store or "", one.tenant))
            page = []
    yield sorted(page, key=lambda one: (one.store or "", one.tenant))


def _unclaimed(difference: Difference, manifests: dict[Key, Manifest | None]) -> list[str]:
    key = Key(difference.tenant, difference.doc_id)
    kept = spared(manifests[key], key, difference.rows)
    return [row for row in difference.rows if row not in kept]
