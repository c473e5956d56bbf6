"""The hardened transport on a real broker, under real kills: `copy_worker.py` copies `documents.stored` to `documents.events`."""

import asyncio
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from agents.liveness import STUCK_EXIT_CODE
from tests.conftest import PARTITIONS, Deployment
from tests.fakes.batches import GZIP, batch, send_raw, with_foreign_header
from topics.table import RAW_MAX_BYTES

ROOT = Path(__file__).parents[2]
WITHIN_S = 90.0
STOP_BOUND_S = 15
"""On top of the time to drain, as docs/operations.md has it."""


class Copying:
    """Copy workers on a deployment of their own."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.kafka = deployment.settings.kafka.confluent()
        self.source = deployment.topic("documents.stored")

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        own = {"HEADRACE_WORKER__PORT": "0", "HEADRACE_WORKER__SESSION_TIMEOUT_S": "6"} | environment
        with (self.deployment.logs / "copy.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "tests.stages.copy_worker"],
                cwd=ROOT,
                env=self.deployment.environment | own,
                stdout=log,
                stderr=log,
            )
        self.deployment.workers.append(worker)
        return worker

    def configure(self, config: dict[str, str]) -> None:
        """Set the source topic's own configuration, and return when the broker has it."""
        entries = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in config.items()
        ]
        wanted = ConfigResource(ConfigResource.Type.TOPIC, self.source, incremental_configs=entries)
        admin = AdminClient(self.kafka)  # It has to outlive its futures.
        deadline = time.monotonic() + WITHIN_S
        while time.monotonic() < deadline:
            with suppress(KafkaException):  # The topic was made just now: the broker may not know it yet.
                [altered] = admin.incremental_alter_configs([wanted]).values()
                altered.result(30)
                [described] = admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, self.source)]).values()
                if all(described.result(30)[name].value == value for name, value in config.items()):
                    return
            time.sleep(0.1)
        raise AssertionError(f"{self.source} doesn't take {config}")

    def send(self, values: list[bytes], **config: object) -> None:
        producer = Producer(self.kafka | config)
        refused: list[object] = []
        for number, value in enumerate(values):
            producer.produce(
                self.source,
                value,
                key=f"default/{number % 97}",
                on_delivery=lambda error, _: refused.append(error) if error else None,
            )
            producer.poll(0)
        assert producer.flush(30) == 0
        assert not refused

    def log(self) -> str:
        return (self.deployment.logs / "copy.log").read_text()

    def wait_for_log(self, words: str) -> None:
        deadline = time.monotonic() + WITHIN_S
        while words not in self.log():
            assert time.monotonic() < deadline, f"it never said {words!r}: {self.log()[-2000:]}"
            time.sleep(0.1)

    def read(self, topic: str, enough: Callable[[Counter[bytes]], bool]) -> Iterator[Counter[bytes]]:
        """What has come so far, again and again until it is enough."""
        reader = Consumer(self.kafka | {"group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest"})
        reader.subscribe([self.deployment.topic(topic)])
        seen: Counter[bytes] = Counter()
        deadline = time.monotonic() + WITHIN_S
        while not enough(seen):
            assert time.monotonic() < deadline, f"{len(seen)} came; log: {self.log()[-2000:]}"
            for message in reader.consume(500, timeout=0.2):
                if message.error() is None:
                    seen[message.value()] += 1
            yield seen
        reader.close()

    def read_all(self, topic: str, count: int) -> Counter[bytes]:
        *_, seen = self.read(topic, lambda seen: len(seen) >= count)
        return seen

    def letters(self, count: int) -> list[tuple[dict[str, bytes], bytes]]:
        """The headers and values of the first dead letters."""
        reader = Consumer(self.kafka | {"group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest"})
        reader.subscribe([self.deployment.topic("documents.dead")])
        deadline = time.monotonic() + WITHIN_S
        found: list[tuple[dict[str, bytes], bytes]] = []
        while len(found) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} letters came"
            found += [(dict(letter.headers()), letter.value()) for letter in reader.consume(count, timeout=0.5)]
        reader.close()
        return sorted(found, key=lambda letter: int(letter[0]["__connect.errors.offset"]))

    def stored(self) -> list[bytes]:
        """What the source topic holds now."""
        reader = Consumer(self.kafka | {"group.id": uuid.uuid4().hex, "enable.partition.eof": True})
        reader.assign([TopicPartition(self.source, number, OFFSET_BEGINNING) for number in range(PARTITIONS)])
        values, ended = [], 0
        while ended < PARTITIONS:
            for message in reader.consume(500, timeout=1):
                ended += message.error() is not None
                values += [message.value()] if message.error() is None else []
        reader.close()
        return values

    def lag(self) -> int:
        """Messages that the group has not committed, of the partitions it has touched."""
        consumer = Consumer(self.kafka | {"group.id": self.deployment.settings.kafka.names.group("commit")})
        partitions = [TopicPartition(self.source, number) for number in range(PARTITIONS)]
        committed = consumer.committed(partitions, timeout=10)
        ends = [consumer.get_watermark_offsets(partition, timeout=10)[1] for partition in partitions]
        consumer.close()
        return sum(end - max(0, position.offset) for end, position in zip(ends, committed, strict=True))

    def commit(self, offset: int) -> None:
        """As the group's place in every partition, whatever is there."""
        consumer = Consumer(self.kafka | {"group.id": self.deployment.settings.kafka.names.group("commit")})
        places = [TopicPartition(self.source, number, offset) for number in range(PARTITIONS)]
        consumer.commit(offsets=places, asynchronous=False)
        consumer.close()

    def wait_for_no_lag(self) -> None:
        deadline = time.monotonic() + WITHIN_S
        while self.lag():
            assert time.monotonic() < deadline, f"a lag of {self.lag()} stays"
            time.sleep(0.2)


@pytest.fixture
def copying(deployment: Deployment) -> Copying:
    return Copying(deployment)


def test_nothing_is_lost_while_workers_are_killed_and_started(copying: Copying, seed: int) -> None:
    dice = random.Random(seed)
    values = [str(number).encode() for number in range(12_000)]
    workers = [copying.start(SLOW_S="0.2") for _ in range(3)]
    copying.send(values)
    kills = 0
    next_kill = time.monotonic() + 6
    for _ in copying.read("documents.events", lambda seen: len(seen) == len(values)):
        if kills < 6 and time.monotonic() > next_kill:
            victim = dice.choice([worker for worker in workers if worker.poll() is None])
            victim.send_signal(dice.choice([signal.SIGKILL, signal.SIGTERM]))
            workers.append(copying.start(SLOW_S="0.2"))
            kills += 1
            next_kill = time.monotonic() + 3
    copying.wait_for_no_lag()
    seen = copying.read_all("documents.events", len(values))
    print(f"{kills} kills, {sum(seen.values()) - len(values)} of {len(values)} doubled")
    assert set(seen) == set(values)
    assert kills > 0


def test_a_clean_stop_doubles_nothing(copying: Copying) -> None:
    values = [str(number).encode() for number in range(3000)]
    copying.send(values)
    worker = copying.start(SLOW_S="0.3")
    copying.read_all("documents.events", 500)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=30) == 0
    copying.start()
    seen = copying.read_all("documents.events", len(values))
    copying.wait_for_no_lag()
    assert seen == Counter(values)


def test_workers_that_come_and_go_do_nothing_twice(copying: Copying) -> None:
    """Each of them drains and commits before its partitions are others'."""
    values = [str(number).encode() for number in range(9_000)]
    workers = [copying.start(SLOW_S="0.1")]
    copying.send(values)
    reached = 0
    for seen in copying.read("documents.events", lambda seen: len(seen) == len(values)):
        if len(seen) < reached:
            continue
        reached = len(seen) + 400
        if len(workers) < 3:
            workers.append(copying.start(SLOW_S="0.1"))
        else:
            workers.pop(0).send_signal(signal.SIGTERM)
    copying.wait_for_no_lag()
    assert copying.read_all("documents.events", len(values)) == Counter(values)


@pytest.mark.parametrize(
    ("situation", "environment", "says"),
    [
        ("no broker answers", {"HEADRACE_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}, "waiting_for_service"),
        ("it is joining its group", {}, "worker_started"),
        ("its store is away", {"AWAY": "1"}, "waiting_for_service"),
        ("its batch takes longer than it may", {"SLOW_S": "3600"}, "worker_started"),
        ("its event loop hangs", {"FAULT": "its event loop hangs"}, "quiet from now on"),
    ],
)
def test_a_worker_that_is_told_to_stop_does_so_in_time_and_well_whatever_it_waits_for(
    copying: Copying, situation: str, environment: dict[str, str], says: str
) -> None:
    drain_s = 3
    copying.send([b"1"])
    worker = copying.start(HEADRACE_WORKER__DRAIN_TIMEOUT_S=str(drain_s), **environment)
    copying.wait_for_log(says)
    if situation == "its batch takes longer than it may":
        time.sleep(3)  # It has joined and taken it.
    asked = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=60) == 0, copying.log()[-2000:]
    print(f"{situation}: {time.monotonic() - asked:.1f} s")
    assert time.monotonic() - asked < drain_s + STOP_BOUND_S
    copying.start()
    copying.read_all("documents.events", 1)


def test_a_record_that_breaks_the_worker_three_times_is_dead_and_the_rest_goes_on(copying: Copying) -> None:
    values = [str(number).encode() for number in range(500)]
    copying.send(values)
    for _ in range(2):
        assert copying.start(CRASH_ON="250").wait(timeout=60) == 1
    copying.start(CRASH_ON="250")
    seen = copying.read_all("documents.events", 500)  # 499 copies and the event of the dead one
    assert copying.read_all("documents.dead", 1) == Counter([b"250"])
    assert set(seen) >= set(values) - {b"250"}
    assert b"250" not in seen
    copying.wait_for_no_lag()


def test_what_a_producer_aborted_was_never_sent_and_its_markers_hold_nothing_up(copying: Copying) -> None:
    producer = Producer(copying.kafka | {"transactional.id": uuid.uuid4().hex})
    producer.init_transactions(30)
    for round_ in range(20):
        producer.begin_transaction()
        for number in range(5):
            word = b"kept" if round_ % 2 else b"aborted"
            producer.produce(copying.source, b"%s-%d-%d" % (word, round_, number), key=f"default/{number}")
        producer.flush(30)
        if round_ % 2:
            producer.commit_transaction(30)
        else:
            producer.abort_transaction(30)
    copying.start()
    seen = copying.read_all("documents.events", 50)
    assert all(value.startswith(b"kept") for value in seen)
    assert len(seen) == 50
    copying.wait_for_no_lag()


def test_what_compaction_took_away_holds_nothing_up(copying: Copying) -> None:
    copying.configure(
        {
            "cleanup.policy": "compact",
            "segment.ms": "100",
            "min.cleanable.dirty.ratio": "0.01",
            "delete.retention.ms": "0",
        }
    )
    producer = Producer(copying.kafka)
    for round_ in range(20):
        for number in range(50):
            key = f"default/{number % 5}"
            producer.produce(copying.source, b"%d-%d" % (round_, number), key=key, partition=number % 2)
        assert producer.flush(30) == 0
        time.sleep(0.15)  # past segment.ms: the next round begins segments, and those before may be compacted
    deadline = time.monotonic() + WITHIN_S
    while (left := len(copying.stored())) > 400:
        assert time.monotonic() < deadline, f"the cleaner has left {left} of 1000"
        time.sleep(0.5)
    copying.configure({"cleanup.policy": "delete"})  # As a worker wants it.
    copying.start()
    copying.wait_for_no_lag()
    left_now = set(copying.stored())
    assert left_now
    *_, seen = copying.read("documents.events", lambda seen: set(seen) >= left_now)
    print(f"{left} of 1000 records were left, {len(seen)} copied")


def test_a_log_that_ends_before_the_groups_place_is_read_from_its_beginning(copying: Copying) -> None:
    values = [str(number).encode() for number in range(300)]
    copying.send(values)
    copying.commit(1_000_000)
    copying.start()
    assert set(copying.read_all("documents.events", len(values))) == set(values)
    copying.wait_for_no_lag()


def test_a_record_larger_than_what_is_fetched_at_once_is_read(copying: Copying) -> None:
    """Ten times what is asked for of a partition; its dead letter shows that all of it came."""
    copying.configure({"max.message.bytes": str(RAW_MAX_BYTES)})
    large = b"poison" + bytes(RAW_MAX_BYTES - 1000)
    copying.send([b"before"])
    copying.send([large], **{"message.max.bytes": RAW_MAX_BYTES})
    copying.send([b"after"])
    copying.start()
    assert [value for _, value in copying.letters(1)] == [large]
    copying.wait_for_no_lag()
    assert {b"before", b"after"} <= set(copying.read_all("documents.events", 3))


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_every_codec_is_readable(copying: Copying, codec: str) -> None:
    values = [b"%d %s" % (number, b"x" * 200) for number in range(200)]
    copying.send(values, **{"compression.type": codec, "linger.ms": 50})
    copying.start()
    assert copying.read_all("documents.events", len(values)) == Counter(values)


def test_a_batch_that_cant_be_decoded_is_dead_and_what_is_around_it_is_not(copying: Copying) -> None:
    servers = copying.deployment.settings.kafka.bootstrap_servers
    offsets = [
        asyncio.run(send_raw(servers, copying.source, 1, data))
        for data in (
            batch([b"before"]),
            with_foreign_header([b"first", b"second", b"third"], spoilt=1),
            batch([b"between"], codec=GZIP),
            with_foreign_header([b"last"], spoilt=0),
        )
    ]
    copying.start()
    seen = copying.read_all("documents.events", 3)
    assert seen == Counter([b"before", b"first", b"between"])
    letters = copying.letters(2)
    assert [(h["headrace.error.code"], h["__connect.errors.partition"]) for h, _ in letters] == [
        (b"unreadable_batch", b"1")
    ] * 2
    places = [(int(h["__connect.errors.offset"]), int(h["headrace.error.last_offset"])) for h, _ in letters]
    assert places == [(offsets[1] + 1, offsets[1] + 2), (offsets[3], offsets[3])]
    assert all(end in value for (_, value), end in zip(letters, [b"third", b"last"], strict=True))
    asyncio.run(send_raw(servers, copying.source, 1, batch([b"after"])))
    assert b"after" in copying.read_all("documents.events", 4)
    copying.wait_for_no_lag()
    assert all(worker.poll() is None for worker in copying.deployment.workers)


@pytest.mark.parametrize(
    "fault",
    [
        "its partitions stay paused",
        "its fetcher has died",
        "its consumer's thread hangs",
        "its event loop hangs",
        "it is out of its group",
    ],
)
def test_a_worker_that_goes_quiet_ends_itself_and_its_successor_goes_on(copying: Copying, fault: str) -> None:
    environment = {"HEADRACE_WORKER__STUCK_AFTER_S": "5", "HEADRACE_WORKER__INSTANCE_ID": "copier"}
    before = [str(number).encode() for number in range(500)]
    copying.send(before)
    worker = copying.start(FAULT=fault, **environment)
    copying.wait_for_log("quiet from now on")
    after = [str(number).encode() for number in range(500, 1000)]
    copying.send(after)
    assert worker.wait(timeout=WITHIN_S) == STUCK_EXIT_CODE
    assert "worker_stuck" in copying.log()
    assert "Thread 0x" in copying.log()
    copying.start(**environment)
    copying.wait_for_no_lag()
    assert set(copying.read_all("documents.events", 1000)) == {*before, *after}


def test_a_frozen_worker_comes_back_without_losing_anything(copying: Copying) -> None:
    values = [str(number).encode() for number in range(6000)]
    # It has been longer than that when it goes on, but it did not stand still: it was held.
    workers = [copying.start(SLOW_S="0.3", HEADRACE_WORKER__STUCK_AFTER_S="7") for _ in range(2)]
    copying.send(values)
    copying.read_all("documents.events", 300)
    workers[0].send_signal(signal.SIGSTOP)
    time.sleep(9)  # past its session of 6 s: the other one has its partitions by now
    workers[0].send_signal(signal.SIGCONT)
    seen = copying.read_all("documents.events", len(values))
    copying.wait_for_no_lag()
    assert set(seen) == set(values)
    assert all(worker.poll() is None for worker in workers)


def test_a_workers_memory_does_not_follow_its_backlog(deployment: Deployment) -> None:
    """500 MB wait before the chunk worker starts; what it takes stays within its buffer, one fetch and the batch at work."""
    kafka = deployment.settings.kafka
    producer = Producer(kafka.confluent() | {"message.max.bytes": 10_485_760, "queue.buffering.max.kbytes": 200_000})
    text = ("A worker holds a bounded number of bytes, whatever waits for it on the broker. " * 70_000)[
        : 5 * 1024 * 1024 - 200
    ]
    for number in range(100):
        producer.produce(deployment.topic("documents.raw"), b'{"text": "%s"}' % text.encode(), key=f"default/{number}")
        producer.poll(0.2 if number % 20 == 0 else 0)
        if number % 20 == 19:
            producer.flush(60)
    assert producer.flush(60) == 0
    worker = deployment.start("chunk")
    deployment.wait_ready("chunk", worker)
    at_start = _memory(worker.pid, "VmRSS")
    deadline = time.monotonic() + WITHIN_S
    while (
        _counter(deployment.metrics("chunk"), 'headrace_messages_total{direction="in",lane="bulk",stage="chunk"}') < 4
    ):
        assert time.monotonic() < deadline
        assert worker.poll() is None
        time.sleep(0.5)
    buffered = _counter(deployment.metrics("chunk"), 'headrace_buffered_bytes{lane="bulk",stage="chunk"}')
    grown = _memory(worker.pid, "VmHWM") - at_start
    print(f"{grown // 1_000_000} MB more than at its start, {buffered / 1e6:.0f} MB buffered, with 500 MB waiting")
    assert buffered <= deployment.settings.worker.buffer_bytes + 3 * 16_000_000
    assert grown < 400_000_000


def _memory(pid: int, field: str) -> int:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


def _counter(metrics: str, name: str) -> float:
    return next((float(line.split()[-1]) for line in metrics.splitlines() if line.startswith(name)), 0.0)
