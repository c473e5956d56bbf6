"""An old and a new worker of each stage run together, on the way to a new release and back, while documents flow."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from opensearchpy import OpenSearch
from opensearchpy.helpers import scan

from headrace.config import Settings
from tests.chaos.audit import audit, lags, read_topics
from tests.chaos.reader import Reader, faults_of
from tests.chaos.releases import RELEASE_HEADER, ROOT, Rollout, next_release
from tests.chaos.run import Publisher
from tests.chaos.test_chaos import untold, unverified
from tests.chaos.workload import SHORT, TENANTS, Expectation, Plan, draw
from tests.conftest import Deployment, deploy

AGAINST_THE_STREAM = ("query", "commit", "upsert-opensearch", "upsert-milvus", "embed", "chunk")
"""Readers first, as docs/operations.md has it."""
FLOW = replace(SHORT, documents=900, sending_s=300.0)
"""More than is sent: the flow ends when both ways are done."""
DRAIN_WITHIN_S = 120.0


@pytest.fixture
def cheap_deployment(servers: Settings, tmp_path: Path) -> Iterator[Deployment]:
    made = deploy(
        servers,
        tmp_path,
        HEADRACE_ENCODER__BACKEND="static",
        HEADRACE_WORKER__SESSION_TIMEOUT_S="6",
    )
    try:
        yield made
    finally:
        made.drop()


class Flow:
    """Documents, updates and deletions in a thread of its own, as the plan has them."""

    def __init__(self, plan: Plan, publisher: Publisher) -> None:
        self.sends = [send for send in plan.sends if send.kind != "poison"]
        self.publisher = publisher
        self.broken: Exception | None = None
        self._going = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flow", daemon=True)

    def start(self) -> None:
        self._going.set()
        self._thread.start()

    def stop(self) -> None:
        self._going.clear()
        self._thread.join(60)

    def _run(self) -> None:
        try:
            started = time.monotonic()
            for send in self.sends:
                while self._going.is_set() and time.monotonic() - started < send.at:
                    self.publisher.producer.poll(0.02)
                if not self._going.is_set():
                    break
                self.publisher.send(send)
            self.publisher.producer.flush(30)
        except Exception as exc:  # noqa: BLE001  # the test's thread is the one to fail
            self.broken = exc


@contextmanager
def flowing(deployment: Deployment, plan: Plan, reader: Reader, expectation: Expectation) -> Iterator[Flow]:
    flow = Flow(plan, Publisher(deployment, expectation))
    reader.start()
    flow.start()
    try:
        yield flow
    finally:
        flow.stop()
        reader.stop_asking()


def drain(deployment: Deployment, reader: Reader) -> None:
    deadline, quiet = time.monotonic() + DRAIN_WITHIN_S, 0
    while quiet < 2:
        behind = {stage: lag for stage, lag in lags(deployment.settings).items() if lag}
        quiet = 0 if behind or reader.unanswered() else quiet + 1
        assert time.monotonic() < deadline, f"lags {behind}, unanswered {reader.unanswered()}"
        time.sleep(0.5)


def manifests(settings: Settings) -> Iterator[dict[str, Any]]:
    """As they are stored, what this release doesn't know included."""
    with OpenSearch(settings.stores.opensearch.url) as client:
        for tenant in TENANTS:
            index = f"{settings.stores.prefix}{tenant}_manifest"
            client.indices.refresh(index=index)
            yield from (hit["_source"] for hit in scan(client, index=index))


def test_old_and_new_workers_of_every_stage_work_together_on_the_way_there_and_back(
    cheap_deployment: Deployment, seed: int, tmp_path: Path
) -> None:
    settings, expectation = cheap_deployment.settings, Expectation()
    plan = draw(seed, FLOW)
    reader = Reader(settings.kafka.bootstrap_servers, settings.kafka.topic_prefix, seed)
    rollout = Rollout(cheap_deployment, {"this": ROOT, "next": next_release(tmp_path / "next")})
    try:
        rollout.start_all("this")
        with flowing(cheap_deployment, plan, reader, expectation) as flow:
            rollout.replace_all(AGAINST_THE_STREAM, "next")
            # Back in the same order: readers that don't know what writers send, which is the harder way.
            rollout.replace_all(AGAINST_THE_STREAM, "this")
        assert flow.broken is None
        assert flow.publisher.failures == []
        drain(cheap_deployment, reader)
        rollout.say("nothing is at work any more")
        assert unverified(cheap_deployment) == []
        rollout.say("verified")
    finally:
        reader.stop()
        print("\n".join(rollout.log))
    assert reader.broken is None
    assert list(audit(settings, expectation).lines()) == []
    assert untold(reader, expectation) == []
    assert [fault for asked in reader.asked.values() for fault in faults_of(asked, expectation)] == []
    assert {asked.answer["error"] for asked in reader.asked.values() if asked.answer} == {None}
    assert list(read_topics(settings, ["documents.dead"])) == []

    # Both releases sent, on every hop, and each read what the other one had sent.
    for topic in ("documents.chunks", "documents.embeddings", "documents.stored", "documents.events", "replies"):
        senders = {dict(message.headers() or []).get(RELEASE_HEADER) for message in read_topics(settings, [topic])}
        assert senders == {None, b"next"}, topic
    told = {orjson.loads(message.value()).get("language") for message in read_topics(settings, ["documents.stored"])}
    assert told == {None, "en"}
    stored = list(manifests(settings))
    assert any(one["live"] and one["live"].get("language") == "en" for one in stored)
    # What the next release's `chunk` noted outlived the manifest's rewriting by this release's `commit`.
    assert any(one["live"] and "language" not in one["live"] and one["intake"].get("language") for one in stored)
