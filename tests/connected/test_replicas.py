"""A reading of each ScaledObject against the running Kafka gives the pods that docs/capacity.md says."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from bench import overlays
from bench.keda import scaled_objects
from bench.overlays import K8S
from bench.replicas import Broker, Reading
from headrace.config import Settings
from headrace.errors import HeadraceError, Misconfigured
from tests.conftest import Deployment
from tests.tables import pods_of_lags
from topics import GROUPS
from topics.provisioning import create_topics

PARTITIONS = 12
"""As k8s/ has them."""
BACKLOGS = {
    "chunk": {"bulk": 100_000, "urgent": 1_000},
    "embed": {"bulk": 1_000, "urgent": 1},
    "upsert-milvus": {"bulk": 100_000, "urgent": 10_000},
    "upsert-opensearch": {"bulk": 100_000, "urgent": 10_000},
    "commit": {"lag": 10_000},
    "query": {"lag": 1_000},
}
"""Of the lags that docs/capacity.md tells of; the two upserts read the same topics."""


@pytest.fixture
def deployment(servers: Settings, tmp_path: Path) -> Iterator[Deployment]:
    if overlays.kustomize() is None:
        pytest.skip("no kustomize, kubectl or Go here")
    unique = f"t{uuid4().hex[:8]}"
    prefixes = {"topic_prefix": f"{unique}.", "group_prefix": f"{unique}-", "partitions": PARTITIONS}
    settings = servers.model_copy(update={"kafka": servers.kafka.model_copy(update=prefixes)})
    deployed = Deployment({}, tmp_path, settings)
    kafka = settings.kafka
    create_topics(kafka.confluent(), kafka.names, partitions=PARTITIONS, replication=1)
    known = retry_if_exception_type(HeadraceError)
    for attempt in Retrying(retry=known, wait=wait_fixed(0.1), stop=stop_after_delay(30), reraise=True):
        with attempt:
            readings(deployed)  # Until the broker knows of the new topics and that it leads them.
    yield deployed
    deployed.drop_topics()


def fill(deployment: Deployment, topic: str, count: int) -> None:
    refused = []
    config = deployment.settings.kafka.confluent() | {"linger.ms": 20, "queue.buffering.max.messages": 200_000}
    producer = Producer(config | {"delivery.report.only.error": True})
    for number in range(count):
        producer.produce(
            topic, b"x", b"k", partition=number % PARTITIONS, on_delivery=lambda *told: refused.append(told)
        )
    assert producer.flush(60) == 0
    assert refused == []


def commit_to_the_end(deployment: Deployment, stage: str, topic: str) -> None:
    kafka = deployment.settings.kafka
    consumer = Consumer(kafka.confluent() | {"group.id": kafka.names.group(stage), "enable.auto.commit": False})
    places = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    ends = [consumer.get_watermark_offsets(place)[1] for place in places]
    consumer.commit(offsets=[TopicPartition(topic, n, end) for n, end in enumerate(ends)], asynchronous=False)
    consumer.close()


def readings(deployment: Deployment) -> dict[str, Reading]:
    objects, _ = overlays.built(K8S / "base")
    broker = Broker(deployment.settings.kafka)
    return {one.stage: one for one in map(broker.reading, scaled_objects(objects))}


def test_known_backlogs_get_the_pods_that_capacity_says_and_none_of_them_when_they_are_done(
    deployment: Deployment,
) -> None:
    names, told = deployment.settings.kafka.names, pods_of_lags()
    idle = readings(deployment)
    assert {stage: one.wanted for stage, one in idle.items()} == {stage: int(stage == "query") for stage in GROUPS}

    topics = {trigger.topic: (stage, trigger.name) for stage, one in idle.items() for trigger in one.scaled.triggers}
    for topic, (stage, lane) in topics.items():
        fill(deployment, names.topic(topic), BACKLOGS[stage][lane])
    busy = readings(deployment)
    for stage, one in busy.items():
        lags = dict(zip([trigger.name for trigger in one.scaled.triggers], [r.lag for r in one.told], strict=True))
        assert lags == BACKLOGS[stage]
        assert one.wanted == max(told[f"{stage}, {lane}"][1][lag] for lane, lag in lags.items())
    assert len({one.wanted for one in busy.values()}) > 2, "they would not tell a formula from a constant"

    for stage, one in busy.items():
        for trigger in one.scaled.triggers:
            commit_to_the_end(deployment, stage, names.topic(trigger.topic))
    done = readings(deployment)
    assert {stage: one.wanted for stage, one in done.items()} == {stage: one.wanted for stage, one in idle.items()}


def test_the_command_tells_the_same_of_an_overlay(deployment: Deployment) -> None:
    kafka = deployment.settings.kafka
    fill(deployment, kafka.names.topic("documents.chunks"), 1_000)
    environment = {
        "HEADRACE_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "HEADRACE_KAFKA__TOPIC_PREFIX": kafka.topic_prefix,
        "HEADRACE_KAFKA__GROUP_PREFIX": kafka.group_prefix,
    }
    command = [sys.executable, "-m", "bench.replicas", "--json", str(K8S / "overlays" / "dev")]
    done = subprocess.run(command, capture_output=True, env=os.environ | environment, cwd=overlays.ROOT, check=False)
    assert done.returncode == 0, done.stderr
    wanted = {one["scaled"]["target"]: one["wanted"] for one in json.loads(done.stdout)}
    assert wanted["headrace-embed"] == pods_of_lags()["embed, bulk"][1][1_000] == 2
    assert wanted["headrace-chunk"] == 0


def test_a_topic_that_is_not_there_is_said(servers: Settings, tmp_path: Path) -> None:
    kafka = servers.kafka.model_copy(update={"topic_prefix": f"t{uuid4().hex[:8]}."})
    with pytest.raises(Misconfigured, match="missing topic"):
        readings(Deployment({}, tmp_path, servers.model_copy(update={"kafka": kafka})))
