"""Two generations over one stream, with real workers: each has its own rows, one tells, one answers, and both change by
one record.
"""

import json
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import msgspec
import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient
from headrace_client import Client, Query

from headrace import wiring
from headrace.cli.kafka import oldest_first, raw_key
from headrace.config import Settings
from headrace.errors import HeadraceError, Misconfigured, Transient
from schemas import DocumentEvent, GenerationInfo, Generations, decode, parse_key
from schemas.generations import LEASE_S
from tests.conftest import PARTITIONS, Deployment, deploy, free_ports
from tests.connected.stores.proxy import Proxy
from topics import GROUPS
from topics.generations import TOPIC, Change, GenerationWatch, Overtaken, changing_generations, read_generations
from topics.provisioning import create_topics, create_untold, existing_topics
from topics.table import DOCUMENT_STAGES

WITHIN_S = 60.0
TENANT = "default"
OLD, NEW = "", "2"
TEXT = "Open the sluice at six. Close it at night."


class Generation:
    """One generation of a deployment, and what it has said and stored."""

    def __init__(self, deployment: Deployment, name: str) -> None:
        self.deployment = deployment
        self.name = name
        self.settings = deployment.settings
        self.kafka = deployment.settings.kafka

    def told(self, topic: str) -> dict[str, list[str]]:
        """The status of each event in a topic, by doc_id."""
        told: dict[str, list[str]] = {}
        with closing(oldest_first(self.kafka.confluent(), topic)) as messages:
            for message in messages:
                event = decode(message.value() or b"", DocumentEvent)
                told.setdefault(parse_key(raw_key(message)).doc_id, []).append(event.status)
        return told

    def to_everybody(self) -> dict[str, list[str]]:
        return self.told(self.kafka.names.topic("documents.events"))

    def to_itself(self) -> dict[str, list[str]]:
        return self.told(self.kafka.names.untold("documents.events"))

    def dead(self, topic: str) -> list[bytes | None]:
        with closing(oldest_first(self.kafka.confluent(), topic)) as messages:
            return [message.value() for message in messages]

    def ids(self) -> set[str]:
        """Of all its rows."""
        texts = wiring.build_texts(self.settings)
        try:
            texts.make_searchable(TENANT)
            return {row.id for page in texts.rows(TENANT) for row in page}
        finally:
            texts.close()

    def readiness(self, stage: str) -> str:
        try:
            with urllib.request.urlopen(self.deployment.url(stage, "/readyz"), timeout=5) as answer:
                said: bytes = answer.read()
        except HTTPError as exc:
            said = exc.read()
        return said.decode()


def until(done: Callable[[], Any], what: str) -> None:
    give_up = time.monotonic() + WITHIN_S
    while not done():
        assert time.monotonic() < give_up, what
        time.sleep(0.2)


@pytest.fixture(scope="module")
def generations(servers: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Generation, Generation]]:
    """All workers of the first generation, and the document workers of the second."""
    folder = tmp_path_factory.mktemp("generations")
    first = deploy(servers, folder, HEADRACE_ENCODER__BACKEND="static")
    second: Deployment | None = None
    try:
        kafka = first.settings.kafka
        create_untold(kafka.confluent(), kafka.names, partitions=PARTITIONS, replication=1)
        first.start_all()
        own = {
            "HEADRACE_GENERATION__NAME": NEW,
            "HEADRACE_ENCODER__CONTEXT": "none",
            "HEADRACE_WORKER__PORT": str(free_ports(len(GROUPS))),
        }
        settings = first.settings.of_generation(NEW, first.settings.encoder.vectors() | {"context": "none"})
        worker = settings.worker.model_copy(update={"port": int(own["HEADRACE_WORKER__PORT"])})
        (folder / "second").mkdir()
        second = Deployment(first.environment | own, folder / "second", settings.model_copy(update={"worker": worker}))
        assert b"documents.chunks.g2" in second.run("topics", "create").stdout
        second.start_all(DOCUMENT_STAGES)
        yield Generation(first, OLD), Generation(second, NEW)
    finally:
        if second is not None:
            second.stop()
        first.drop()


@pytest.fixture
def watch(deployment: Deployment) -> Iterator[GenerationWatch]:
    kafka = deployment.settings.kafka
    made = GenerationWatch(kafka, group=kafka.names.group("commit"))
    yield made
    made.stop()


@pytest.fixture
def app(generations: tuple[Generation, Generation]) -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """Asks, and gives the hits."""
    kafka = generations[0].kafka
    with Client(kafka.bootstrap_servers, topic_prefix=kafka.topic_prefix) as client:

        def hits(question: str) -> list[dict[str, Any]]:
            answer = client.ask(Query(query=question, mode="search", top_k=20), timeout_s=WITHIN_S).result()
            return [msgspec.to_builtins(hit) for hit in answer.hits]

        yield hits


def test_one_generation_tells_and_answers_until_the_record_says_another(
    generations: tuple[Generation, Generation], app: Any
) -> None:
    old, new = generations
    producer = Producer(old.kafka.confluent())

    def publish(doc_id: str, value: bytes | None = None) -> None:
        document = value if value is not None else json.dumps({"text": f"{TEXT} {doc_id}", "title": doc_id}).encode()
        producer.produce(old.kafka.names.topic("documents.raw"), document, f"{TENANT}/{doc_id}".encode())
        assert producer.flush(30) == 0

    # Both work, one tells.
    publish("a")
    publish("broken", b"{")
    until(lambda: "a" in old.to_everybody() and "broken" in old.to_everybody(), "nobody tells of them")
    until(lambda: "a" in new.to_itself() and "broken" in new.to_itself(), "the second one doesn't tell itself")
    assert old.to_everybody() == new.to_itself() == {"a": ["indexed"], "broken": ["failed"]}
    assert old.dead(old.kafka.names.topic("documents.dead")) == [b"{"]
    assert new.dead(new.kafka.names.untold("documents.dead")) == [b"{"]
    assert {hit["chunk_id"] for hit in app("sluice")} == old.ids()
    assert not old.ids() & new.ids(), "different vectors are different rows"

    with changing_generations(old.kafka) as change:
        # Held: the first one begins nothing more, the second one goes on for itself.
        since = datetime.now(UTC)
        known = {
            each.name: GenerationInfo(encoder=each.settings.encoder.vectors(), since=since) for each in generations
        }
        written(change, known=known, lease_s=LEASE_S, phase="closing", held=[OLD])
        publish("b")
        until(lambda: "b" in new.to_itself(), "the second one doesn't go on")
        until(lambda: "headrace reindex" in old.readiness("commit"), "nobody says what commit waits for")
        assert "b" not in old.to_everybody() | old.to_itself()

        # Flipped: questions are answered from the second one alone.
        written(change, live=NEW, telling=None, previous=OLD)
        until(lambda: {hit["chunk_id"] for hit in app("sluice")} == new.ids(), "it isn't answered from")
        assert {hit["doc_id"] for hit in app("sluice")} == {"a", "b"}

        # Told by the second one; what the first one has to say is its own.
        written(change, telling=NEW, held=[], phase="done")
    publish("c")
    until(lambda: old.to_everybody().get("c") == ["indexed"], "the second one doesn't tell everybody")
    until(lambda: {"b", "c"} <= old.to_itself().keys(), "the first one doesn't go on")
    assert old.to_itself() == {"b": ["indexed"], "c": ["indexed"]}
    assert old.to_everybody() == {"a": ["indexed"], "broken": ["failed"], "c": ["indexed"]}
    assert {hit["doc_id"] for hit in app("sluice")} == {"a", "b", "c"}

    # A query worker that begins now, with the first one's settings still, answers from the second one.
    [query] = [worker for worker in old.deployment.workers if worker.args[-1] == "query"]  # type: ignore[index]
    query.terminate()
    assert query.wait(60) == 0
    old.deployment.wait_ready("query", old.deployment.start("query"))
    assert {hit["chunk_id"] for hit in app("sluice")} == new.ids()


def written(change: Change, **said: Any) -> None:
    change.write(msgspec.structs.replace(change.record, **said))
    change.wait_until_known()


def test_who_begins_to_change_the_record_ends_who_did_before(deployment: Deployment) -> None:
    kafka = deployment.settings.kafka
    with changing_generations(kafka) as first:
        first.write(Generations(phase="building"))
        with changing_generations(kafka) as second:
            assert second.record.phase == "building"
            with pytest.raises(HeadraceError, match="another run"):
                first.write(Generations(phase="mine"))
            second.write(Generations(phase="done"))
    assert read_generations(kafka) == Generations(phase="done")


def _interrupted(_: Producer) -> None:
    raise KeyboardInterrupt


def _written_and_interrupted(producer: Producer) -> None:
    Producer.commit_transaction(producer, WITHIN_S)
    raise KeyboardInterrupt


def _written_and_unconfirmed(producer: Producer) -> None:
    Producer.commit_transaction(producer, WITHIN_S)
    raise KafkaException(KafkaError(KafkaError._TIMED_OUT))


def _unconfirmed(_: Producer) -> None:
    raise KafkaException(KafkaError(KafkaError._TIMED_OUT))


def _given_up(producer: Producer) -> None:
    producer.abort_transaction(WITHIN_S)
    raise KafkaException(KafkaError(KafkaError._TIMED_OUT))


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Producer], None]], None]:
    """Says what becomes of the next commit."""
    next_commit: list[Callable[[Producer], None]] = []

    class CutOff(Producer):
        def commit_transaction(self, *args: Any) -> None:
            if next_commit:
                next_commit.pop()(self)
            else:
                super().commit_transaction(*args)

    monkeypatch.setattr("topics.generations.Producer", CutOff)
    return next_commit.append


@pytest.mark.parametrize(
    ("by", "raises", "phase"),
    [
        (_interrupted, KeyboardInterrupt, "flipped"),
        (_written_and_interrupted, KeyboardInterrupt, "flipped"),
        (_written_and_unconfirmed, Transient, "flipped"),
        (_unconfirmed, Transient, "flipped"),
        (_given_up, Transient, "closing"),
    ],
)
def test_after_a_write_that_was_cut_off_the_record_is_what_everybody_reads(
    deployment: Deployment, cut_off: Any, by: Callable[[Producer], None], raises: type[BaseException], phase: str
) -> None:
    kafka = deployment.settings.kafka
    with changing_generations(kafka) as change:
        change.write(Generations(phase="closing"))
        cut_off(by)
        with pytest.raises(raises):
            change.write(Generations(phase="flipped"))
        assert change.settle() == change.record == read_generations(kafka) == Generations(phase=phase)
        change.write(Generations(phase="done"))
    assert read_generations(kafka) == Generations(phase="done")


class KafkaProxy(Proxy):
    """A broker says in its answers where it is: here that it is at the proxy, so nobody goes past that."""

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        host, port = self._target
        itself, proxy = (host.encode() + number.to_bytes(4) for number in (port, self.port))
        with suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                sink.sendall(data.replace(itself, proxy))


@pytest.fixture
def proxy(servers: Settings) -> Iterator[KafkaProxy]:
    made = KafkaProxy(f"kafka://{servers.kafka.bootstrap_servers}")
    yield made
    made.cut()


def test_a_write_during_which_kafka_is_frozen_is_settled_when_it_is_back(
    deployment: Deployment, proxy: KafkaProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("topics.generations.TRANSACTION_S", 3.0)
    at_proxy = {"bootstrap_servers": f"127.0.0.1:{proxy.port}"}
    with changing_generations(deployment.settings.kafka.model_copy(update=at_proxy)) as change:
        change.write(Generations(phase="closing"))
        proxy.freeze()
        for ask in (partial(change.write, Generations(phase="flipped")), change.settle, change.settle):
            with pytest.raises(Transient):
                ask()
        proxy.up()
        assert change.settle() == read_generations(deployment.settings.kafka) == Generations(phase="closing")
        change.write(Generations(phase="done"))
    assert read_generations(deployment.settings.kafka) == Generations(phase="done")


def test_a_write_that_nobody_confirmed_may_be_done_again(deployment: Deployment, cut_off: Any) -> None:
    kafka = deployment.settings.kafka
    with changing_generations(kafka) as change:
        cut_off(_unconfirmed)
        with pytest.raises(Transient):
            change.write(Generations(phase="closing"))
        change.write(Generations(phase="closing"))
    assert read_generations(kafka) == Generations(phase="closing")


def test_a_write_that_was_cut_off_is_not_finished_where_another_run_has_begun(
    deployment: Deployment, cut_off: Any
) -> None:
    kafka = deployment.settings.kafka
    with changing_generations(kafka) as first:
        first.write(Generations(phase="closing"))
        cut_off(_interrupted)
        with pytest.raises(KeyboardInterrupt):
            first.write(Generations(phase="flipped"))
        with changing_generations(kafka) as second:
            assert second.record.phase == "closing"
            with pytest.raises(Overtaken):
                first.settle()
    assert read_generations(kafka) == Generations(phase="closing")


def test_a_watch_tells_of_each_record_and_what_it_knows_grows_old(
    deployment: Deployment, watch: GenerationWatch
) -> None:
    kafka = deployment.settings.kafka
    heard: list[str] = []
    watch.follow(lambda record: heard.append(record.phase))
    watch.start()
    assert watch.fresh() == Generations()
    with changing_generations(kafka) as change:
        for phase in ("building", "closing"):
            change.write(Generations(phase=phase, lease_s=LEASE_S))
            until(partial(heard.__contains__, phase), f"nobody hears of {phase}")
    assert heard == ["done", "building", "closing"]
    late: list[str] = []
    watch.follow(lambda record: late.append(record.phase))
    assert late == ["closing"]
    reading = watch.reading
    assert reading is not None
    assert reading.holds(reading.asked + LEASE_S)
    assert not reading.holds(reading.asked + LEASE_S + 0.1)


def test_a_watch_whose_topic_is_away_says_so_and_goes_on_when_it_is_back(
    deployment: Deployment, watch: GenerationWatch
) -> None:
    kafka = deployment.settings.kafka
    watch.start()
    assert watch.away is None
    admin = AdminClient(kafka.confluent())  # It has to outlive its futures.
    [deleted] = admin.delete_topics([kafka.names.topic(TOPIC)]).values()
    deleted.result(30)
    until(lambda: watch.away, "nobody says that the topic is away")
    before = watch.reading
    create_topics(kafka.confluent(), kafka.names, partitions=PARTITIONS, replication=1)
    with changing_generations(kafka) as change:
        change.write(Generations(phase="again"))
    until(lambda: watch.away is None and watch.fresh() == Generations(phase="again"), "it is not read again")
    assert before is not None
    assert watch.reading is not None
    assert watch.reading.asked > before.asked


def test_without_the_topic_there_is_one_generation_until_somebody_makes_it(
    deployment: Deployment, watch: GenerationWatch
) -> None:
    kafka = deployment.settings.kafka
    admin = AdminClient(kafka.confluent())  # It has to outlive its futures.
    [deleted] = admin.delete_topics([kafka.names.topic(TOPIC)]).values()
    deleted.result(30)
    until(lambda: kafka.names.topic(TOPIC) not in existing_topics(kafka.confluent()), "it is still there")
    assert watch.start() == Generations()
    create_topics(kafka.confluent(), kafka.names, partitions=PARTITIONS, replication=1)
    with changing_generations(kafka) as change:
        change.write(Generations(phase="closing"))
    until(lambda: watch.fresh() == Generations(phase="closing"), "it is not read")


def test_a_command_without_the_topic_is_told_to_make_it(servers: Settings, tmp_path: Path) -> None:
    kafka = servers.kafka.model_copy(update={"topic_prefix": "nobody-has-made-these."})
    with pytest.raises(Misconfigured, match="headrace topics create"):
        read_generations(kafka)
