"""The hardened transport on a real broker, under real kills: `copy_worker.py` copies `documents.stored` to `documents.events`."""

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from tests.conftest import Deployment

ROOT = Path(__file__).parents[2]
WITHIN_S = 90.0


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

    def send(self, values: list[bytes], **config: object) -> None:
        producer = Producer(self.kafka | config)
        for number, value in enumerate(values):
            producer.produce(self.source, value, key=f"default/{number % 97}")
            producer.poll(0)
        assert producer.flush(30) == 0

    def read(self, topic: str, enough: Callable[[Counter[bytes]], bool]) -> Iterator[Counter[bytes]]:
        """What has come so far, again and again until it is enough."""
        reader = Consumer(self.kafka | {"group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest"})
        reader.subscribe([self.deployment.topic(topic)])
        seen: Counter[bytes] = Counter()
        deadline = time.monotonic() + WITHIN_S
        while not enough(seen):
            assert time.monotonic() < deadline, (
                f"{len(seen)} came; log: {(self.deployment.logs / 'copy.log').read_text()[-2000:]}"
            )
            for message in reader.consume(500, timeout=0.2):
                if message.error() is None:
                    seen[message.value()] += 1
            yield seen
        reader.close()

    def read_all(self, topic: str, count: int) -> Counter[bytes]:
        *_, seen = self.read(topic, lambda seen: len(seen) >= count)
        return seen

    def lag(self) -> int:
        """Messages that the group has not committed, of the partitions it has touched."""
        consumer = Consumer(self.kafka | {"group.id": self.deployment.settings.kafka.names.group("commit")})
        partitions = [TopicPartition(self.source, number) for number in range(4)]
        committed = consumer.committed(partitions, timeout=10)
        ends = [consumer.get_watermark_offsets(partition, timeout=10)[1] for partition in partitions]
        consumer.close()
        return sum(end - max(0, position.offset) for end, position in zip(ends, committed, strict=True))

    def wait_for_no_lag(self) -> None:
        deadline = time.monotonic() + WITHIN_S
        while self.lag():
            assert time.monotonic() < deadline, f"a lag of {self.lag()} stays"
            time.sleep(0.2)


@pytest.fixture
def copying(deployment: Deployment) -> Copying:
    return Copying(deployment)


def test_nothing_is_lost_while_workers_are_killed_and_started(copying: Copying) -> None:
    seed = int(os.environ.get("HEADRACE_CHAOS_SEED", "0")) or random.randrange(2**32)
    print(f"HEADRACE_CHAOS_SEED={seed}")
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


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_every_codec_is_readable(copying: Copying, codec: str) -> None:
    values = [b"%d %s" % (number, b"x" * 200) for number in range(200)]
    copying.send(values, **{"compression.type": codec, "linger.ms": 50})
    copying.start()
    assert copying.read_all("documents.events", len(values)) == Counter(values)


def test_a_frozen_worker_comes_back_without_losing_anything(copying: Copying) -> None:
    values = [str(number).encode() for number in range(6000)]
    workers = [copying.start(SLOW_S="0.3") for _ in range(2)]
    copying.send(values)
    copying.read_all("documents.events", 300)
    workers[0].send_signal(signal.SIGSTOP)
    time.sleep(9)  # past its session of 6 s: the other one has its partitions by now
    workers[0].send_signal(signal.SIGCONT)
    seen = copying.read_all("documents.events", len(values))
    copying.wait_for_no_lag()
    assert set(seen) == set(values)


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
