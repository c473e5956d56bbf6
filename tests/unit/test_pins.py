"""`agents/transport.py` stands on private seams of two pinned libraries; before a pin moves, look at each of these again."""

import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiokafka
import faust
import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer import fetcher
from aiokafka.producer.message_accumulator import MessageAccumulator
from faust.transport.drivers import aiokafka as driver

from agents import transport

PINS = {"faust-streaming": "0.15.3", "aiokafka": "0.14.0"}
ROOT = Path(__file__).parents[2]

OVERRIDDEN = [
    (driver.Consumer, "_new_consumer_thread", "self"),
    (driver.Consumer, "_to_message", "self tp record"),
    (driver.Consumer, "ack", "self message"),
    (driver.Consumer, "_filter_tps_with_pending_acks", "self topics"),
    (driver.Consumer, "_new_offset", "self tp"),
    (driver.Consumer, "_add_gap", "self tp offset_from offset_to"),
    (driver.Consumer, "perform_seek", "self"),
    (driver.Consumer, "stop_flow", "self"),
    (driver.Consumer, "commit_and_end_transactions", "self"),
    (driver.Consumer, "on_partitions_revoked", "self revoked"),
    (driver.Consumer, "wait_empty", "self"),
    (driver.Consumer, "_getmany", "self active_partitions timeout"),
    (driver.Consumer, "wait_first", "self coros timeout"),
    (driver.AIOKafkaConsumerThread, "_create_worker_consumer", "self transport"),
    (driver.AIOKafkaConsumerThread, "_fetch_records", "self consumer active_partitions timeout max_records"),
    (driver.Producer, "_settings_extra", "self"),
    (driver.Producer, "_new_producer", "self transactional_id"),
    (faust.App, "_new_transport", "self"),
    (faust.App, "_new_producer_transport", "self"),
]
CALLED = [
    (driver.Consumer, "maybe_wait_for_commit_to_finish", "self"),
    (driver.Consumer, "assignment", "self"),
    (driver.Consumer, "highwater", "self tp"),
    (driver.AIOKafkaConsumerThread, "_ensure_consumer", "self"),
    (driver.AIOKafkaConsumerThread, "call_thread", "self fun args kwargs"),
    (driver.Producer, "send", "self topic key value partition timestamp headers transactional_id"),
]
OURS = {
    driver.Consumer: transport.Consumer,
    driver.AIOKafkaConsumerThread: transport.ConsumerThread,
    driver.Producer: transport.Producer,
    faust.App: transport.App,
}


@pytest.mark.parametrize(("name", "pinned"), PINS.items())
def test_what_is_installed_is_what_is_pinned(name: str, pinned: str) -> None:
    assert version(name) == pinned
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"{name}=={pinned}" in project["dependencies"]


def test_the_lock_has_the_same_pins() -> None:
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    for name, pinned in PINS.items():
        assert any(line.startswith(f"{name}=={pinned} ") for line in lock)


@pytest.mark.parametrize(("owner", "name", "parameters"), [*OVERRIDDEN, *CALLED], ids=lambda value: str(value))
def test_a_private_seam_is_as_it_was(owner: type[Any], name: str, parameters: str) -> None:
    assert " ".join(inspect.signature(getattr(owner, name)).parameters) == parameters


@pytest.mark.parametrize(("owner", "name", "parameters"), OVERRIDDEN, ids=lambda value: str(value))
def test_an_override_has_the_signature_of_what_it_replaces(owner: type[Any], name: str, parameters: str) -> None:
    ours, theirs = vars(OURS[owner])[name], getattr(owner, name)
    assert " ".join(inspect.signature(ours).parameters) == parameters
    assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs)


def test_every_override_is_looked_at_here() -> None:
    looked_at = {(owner, name) for owner, name, _ in OVERRIDDEN}
    found = {
        (owner, name)
        for owner, ours in OURS.items()
        for name, member in vars(ours).items()
        if inspect.isfunction(member) and not name.startswith("__") and hasattr(owner, name)
    }
    assert found == looked_at


def test_faust_drops_what_comes_before_its_place_and_commits_nothing_before_it() -> None:
    assert "if r_offset is None or offset >= r_offset:" in inspect.getsource(driver.Consumer._drain_messages)
    committing = inspect.getsource(driver.Consumer._should_commit)
    assert "return committed is None or bool(offset) and offset > committed" in committing


def test_aiokafkas_own_seams_are_there() -> None:
    consumer = inspect.getsource(aiokafka.AIOKafkaConsumer)
    assert "self._fetch_max_bytes = fetch_max_bytes" in consumer
    assert "self._coordinator = GroupCoordinator(" in consumer
    from aiokafka.consumer.group_coordinator import GroupCoordinator

    assert "self.generation = " in inspect.getsource(GroupCoordinator.__init__)
    producer = inspect.getsource(aiokafka.AIOKafkaProducer)
    assert "self._request_timeout_ms / 1000,\n            timestamp_ms=timestamp_ms" in producer
    assert "self._batch_ttl = batch_ttl" in inspect.getsource(MessageAccumulator)
    assert [*inspect.signature(AIOKafkaClient._metadata_update).parameters] == ["self", "cluster_metadata", "topics"]
    assert [*inspect.signature(GroupCoordinator.fetch_committed_offsets).parameters] == ["self", "partitions"]


def test_the_decoding_of_batches_is_as_it_was() -> None:
    """`agents/batches.py` stands in for two names of this module, and runs the original once for each batch."""
    fetching = inspect.getsource(fetcher.Fetcher._proc_fetch_request)
    assert "records = MemoryRecords(part_data[-1])" in fetching
    assert "partition_records = PartitionRecords(" in fetching
    assert [*inspect.signature(fetcher.PartitionRecords).parameters] == [
        "tp",
        "records",
        "aborted_transactions",
        "fetch_offset",
        "key_deserializer",
        "value_deserializer",
        "check_crcs",
        "isolation_level",
    ]
    decoding = inspect.getsource(fetcher.PartitionRecords._unpack_records)
    assert "records = self._records\n        while records.has_next():\n" in decoding
    assert "self.next_fetch_offset = record.offset + 1\n                yield consumer_record" in decoding
