"""`headrace reindex` on a small deployment: from a static encoder to a model, and the old generation taken away."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from opensearchpy import OpenSearch
from pymilvus import MilvusClient

from headrace.cli.choosing import sides
from headrace.cli.flipping import closing, near
from headrace.cli.generation_workers import GenerationWorkers
from headrace.cli.kafka import watermarks
from headrace.cli.local import refuse_other_generation
from headrace.config import Settings
from headrace.errors import Misconfigured
from schemas import Generations
from tests.conftest import Deployment, deploy
from topics.generations import changing_generations, read_generations
from topics.table import DOCUMENT_STAGES

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DOCUMENTS = 8


@pytest.fixture
def static(servers: Settings, tmp_path: Path) -> Iterator[Deployment]:
    made = deploy(servers, tmp_path, HEADRACE_ENCODER__BACKEND="static", OMP_NUM_THREADS="1")
    try:
        yield made
    finally:
        made.run("reindex", "--stop-workers")
        made.drop()


def told(command: "subprocess.CompletedProcess[bytes]") -> str:
    return command.stderr.decode() + command.stdout.decode()


def publish(deployment: Deployment, folder: Path, first: int, count: int, *waiting: str) -> None:
    folder.mkdir()
    for number in range(first, first + count):
        (folder / f"pump{number}.txt").write_text(f"Pump {number} stands at lock {number}. It runs at night.")
    published = deployment.run("publish", *waiting, str(folder))
    assert published.returncode == 0, told(published)


def found(deployment: Deployment, question: str) -> list[str]:
    asked = deployment.run("ask", "--search", "--json", question)
    assert asked.returncode == 0, told(asked)
    return [hit["doc_id"] for hit in json.loads(asked.stdout)["hits"]]


def test_a_generation_is_made_measured_gone_over_to_and_the_old_one_taken_away(
    static: Deployment, tmp_path: Path
) -> None:
    workers = static.start_all()
    publish(static, tmp_path / "before", 0, DOCUMENTS, "--wait")
    judged = tmp_path / "judged.jsonl"
    judged.write_text('{"query": "where is pump 3", "doc_ids": ["pump3.txt"]}\n')

    made = static.run(
        "reindex", "--encoder", MODEL, "--yes", "--judgements", str(judged), "--tenant", "default", timeout=300
    )
    assert made.returncode == 0, told(made)
    said = made.stdout.decode()
    assert f"{MODEL}+title, 1 questions" in " ".join(said.split())
    assert 'name = "2"' in said
    assert f'model = "{MODEL}"' in said
    status = json.loads(static.run("reindex", "--status", "--json").stdout)
    assert status["phase"] == "done"
    assert {one["name"]: (one["live"], one["waiting"]) for one in status["generations"]} == {
        "1": (False, 0),
        "2": (True, 0),
    }
    assert len(found(static, "Where does pump 3 stand?")) == DOCUMENTS
    problems = json.loads(static.run("status", "--json").stdout)["problems"]
    assert any('these settings are of generation 1; set generation.name = "2"' in one for one in problems), problems
    refuse_other_generation(static.settings)  # The workers that the command started go on.

    again = static.run("reindex", "--encoder", MODEL, "--yes")
    assert again.returncode == 1
    assert "generation 2, which is live, has just these vectors" in told(again)

    live = static.run("reindex", "--drop", "2", "--yes")
    assert (live.returncode, "generation 2 is live" in told(live)) == (1, True)
    working = static.run("reindex", "--drop", "1", "--yes")
    assert (working.returncode, "workers of generation 1 still run (chunk" in told(working)) == (1, True)
    for stage in DOCUMENT_STAGES:
        workers[stage].send_signal(signal.SIGTERM)
    for stage in DOCUMENT_STAGES:
        workers[stage].wait(30)
    dropped = static.run("reindex", "--drop", "1", "--yes")
    assert dropped.returncode == 0, told(dropped)
    with pytest.raises(Misconfigured, match="questions are answered from generation 2"):
        refuse_other_generation(static.settings)

    # What comes now is worked on by those that the command started, and that go on.
    publish(static, tmp_path / "after", DOCUMENTS, 2)
    assert len(found(static, "Where does pump 3 stand?")) == DOCUMENTS + 2
    only_generation(static, "2")
    no_way_back = static.run("reindex", "--rollback", "--yes")
    assert (no_way_back.returncode, "no generation to go back to" in told(no_way_back)) == (1, True)


def only_generation(deployment: Deployment, generation: str) -> None:
    """Nothing is left of any other."""
    settings = deployment.settings
    admin = AdminClient(settings.kafka.confluent())
    topics = {name for name in admin.list_topics(timeout=10).topics if name.startswith(settings.kafka.topic_prefix)}
    names, first = settings.kafka.of_generation(generation).names, settings.kafka.names
    assert names.topic("documents.chunks") in topics
    assert not topics & {
        first.topic("documents.chunks"),
        first.topic("documents.stored"),
        first.untold("documents.dead"),
    }
    groups = {one.group_id for one in admin.list_consumer_groups().result().valid}
    assert not groups & {first.group(stage) for stage in DOCUMENT_STAGES}
    opensearch = OpenSearch(settings.stores.opensearch.url)
    indexes = list(opensearch.indices.get(index=f"{settings.stores.prefix}*"))
    opensearch.close()
    assert indexes
    assert all(name.startswith(f"{settings.stores.prefix}g{generation}.") for name in indexes), indexes
    milvus = MilvusClient(settings.stores.milvus.uri)
    collections = [name for name in milvus.list_collections() if name.startswith(settings.stores.prefix)]
    milvus.close()
    assert [name.startswith(f"{settings.stores.prefix}G{generation}_") for name in collections] == [True]


def test_a_worker_that_does_not_come_up_ends_the_command_with_its_last_words_and_nothing_is_left_running(
    static: Deployment, tmp_path: Path
) -> None:
    publish(static, tmp_path / "some", 0, 1)
    file = tmp_path / "encoder.toml"
    file.write_text('[encoder]\nbackend = "torch"\ndevice = "cuda:99"\n')
    ended = static.run("reindex", "--encoder-settings", str(file), "--yes", timeout=300)
    assert ended.returncode == 1, told(ended)
    assert "embed doesn't come up" in told(ended)
    assert "cuda:99" in told(ended)
    assert not GenerationWorkers(static.settings.worker.data_dir, "2").running()
    assert read_generations(static.settings.kafka).live == ""


def test_without_workers_the_command_says_who_is_missing_and_can_be_run_again(
    static: Deployment, tmp_path: Path
) -> None:
    publish(static, tmp_path / "some", 0, 2)
    alone = static.run("reindex", "--encoder", MODEL, "--yes", "--no-workers", "--timeout", "15")
    assert alone.returncode == 4, told(alone)
    assert "nobody works for chunk, embed, upsert-milvus, upsert-opensearch, commit" in told(alone)
    record = read_generations(static.settings.kafka)
    assert (record.live, record.held, record.phase, set(record.known)) == ("", [], "filling", {"", "2"})
    other = static.run("reindex", *other_encoder(tmp_path), "--yes")
    assert (other.returncode, f"generation 2 is being made, of {MODEL}" in told(other)) == (1, True)


def other_encoder(folder: Path) -> list[str]:
    """One that is loaded at once."""
    file = folder / "context.toml"
    file.write_text('[encoder]\ncontext = "none"\n')
    return ["--backend", "static", "--encoder-settings", str(file)]


def test_a_run_ends_when_another_one_begins(static: Deployment, tmp_path: Path) -> None:
    publish(static, tmp_path / "some", 0, 1)
    first = subprocess.Popen(
        static.command("reindex", "--encoder", MODEL, "--yes", "--no-workers"),
        env=static.environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    try:
        assert first.stderr is not None
        while b"is made, of" not in (line := first.stderr.readline()):
            assert line, "it ended"
        with changing_generations(static.settings.kafka):
            _, errors = first.communicate(timeout=120)
    finally:
        first.kill()
    assert (first.returncode, b"another run has begun" in errors) == (1, True), errors


def test_what_was_deleted_is_not_back_though_kafka_has_forgotten_the_deletion(
    static: Deployment, tmp_path: Path
) -> None:
    static.start_all()
    publish(static, tmp_path / "some", 0, 3, "--wait")
    deleted = static.run("delete", "--urgent", "--wait", "pump1.txt")
    assert deleted.returncode == 0, told(deleted)
    forget(static.settings, "documents.urgent")
    made = static.run("reindex", *other_encoder(tmp_path), "--yes", timeout=300)
    assert made.returncode == 0, told(made)
    assert read_generations(static.settings.kafka).live == "2"
    assert sorted(found(static, "Where does pump 1 stand?")) == ["pump0.txt", "pump2.txt"]
    assert "deletions published again that Kafka no longer had: 1" in told(made)


def forget(settings: Settings, name: str) -> None:
    """All that a compacted topic holds goes, as its null values do after a day."""
    topic, admin = settings.kafka.names.topic(name), AdminClient(settings.kafka.confluent())
    bounds = watermarks(settings.kafka.confluent(), topic)
    clean_up(admin, topic, "compact,delete")
    while True:
        asked = admin.delete_records([TopicPartition(topic, number, end) for number, (_, end) in bounds.items()])
        try:
            for gone in asked.values():
                gone.result()
            break
        except KafkaException as refused:  # The broker has yet to hear of it.
            if refused.args[0].code() != KafkaError.POLICY_VIOLATION:
                raise
    clean_up(admin, topic, "compact")


def clean_up(admin: AdminClient, topic: str, policy: str) -> None:
    entry = ConfigEntry("cleanup.policy", policy, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    for altered in admin.incremental_alter_configs([resource]).values():
        altered.result()


def being_made(settings: Settings) -> Generations:
    return sides(settings, Generations(), {"backend": "static", "context": "none"}, rollback=False)[2]


def test_a_command_that_refuses_ends_nobodys_run(static: Deployment) -> None:
    refusals = {
        ("--drop", "1"): "generation 1 is live",
        ("--drop", "7"): "there is no generation 7",
        ("--encoder", MODEL): "generation 2 is being made",
        ("--rollback",): "generation 2 is being made: take it away first",
    }
    with changing_generations(static.settings.kafka) as change:
        change.write(being_made(static.settings))
        for arguments, why in refusals.items():
            refused = static.run("reindex", *arguments, "--yes")
            assert (refused.returncode, why in told(refused)) == (1, True), told(refused)
        change.write(change.record)


@pytest.mark.parametrize("arguments", [("--no-flip",), ("--rollback", "--yes")])
def test_a_flip_that_was_killed_before_it_was_done_is_undone_by_who_does_not_want_it(
    static: Deployment, arguments: tuple[str, ...]
) -> None:
    with changing_generations(static.settings.kafka) as change:
        change.write(closing(near(being_made(static.settings), "2"), {}))
    undone = static.run("reindex", *arguments)
    assert undone.returncode == 0, told(undone)
    assert "Generation 2 is there, and generation 1 goes on. `headrace reindex` goes over to it." in told(undone)
    record = read_generations(static.settings.kafka)
    assert (record.live, record.held, record.phase, record.target) == ("", [], "filling", "2")


def test_what_has_just_ended_is_in_nobodys_way(static: Deployment, tmp_path: Path) -> None:
    static.start_all(DOCUMENT_STAGES)
    publish(static, tmp_path / "some", 0, 2, "--wait")
    encoder = other_encoder(tmp_path)
    made = static.run("reindex", *encoder, "--no-flip", timeout=300)
    assert made.returncode == 0, told(made)
    again = static.run("reindex", *encoder, "--no-flip", timeout=300)
    assert again.returncode == 0, told(again)
    assert "started its workers: chunk, embed, upsert-milvus, upsert-opensearch, commit" in told(again)
    dropped = static.run("reindex", "--drop", "2", "--yes")
    assert dropped.returncode == 0, told(dropped)
    record = read_generations(static.settings.kafka)
    assert (record.live, set(record.known), record.highest) == ("", {""}, 2)


def test_whoever_begins_while_a_generation_is_taken_away_finds_it_as_it_was(static: Deployment) -> None:
    made = static.run("reindex", "--encoder", MODEL, "--no-flip", "--no-workers")
    assert made.returncode == 0, told(made)
    kafka = static.settings.kafka
    dropping = subprocess.Popen(
        static.command("reindex", "--drop", "2", "--yes"), env=static.environment, stderr=subprocess.PIPE
    )
    try:
        while "2" in read_generations(kafka).known:
            assert dropping.poll() is None
        with changing_generations(kafka):
            _, errors = dropping.communicate(timeout=120)
    finally:
        dropping.kill()
    assert (dropping.returncode, b"another run has begun" in errors) == (1, True), errors
    assert (
        kafka.of_generation("2").names.topic("documents.chunks") in AdminClient(kafka.confluent()).list_topics().topics
    )


def test_a_run_whose_terminal_is_gone_ends_as_by_ctrl_c(static: Deployment) -> None:
    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` would have it ignored.
    try:
        run = subprocess.Popen(
            static.command("reindex", "--encoder", MODEL, "--yes"), env=static.environment, stderr=subprocess.PIPE
        )
    finally:
        signal.signal(signal.SIGHUP, inherited)
    try:
        assert run.stderr is not None
        while b"started its workers" not in (line := run.stderr.readline()):
            assert line, "it ended"
        run.send_signal(signal.SIGHUP)
        run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode > 0
    assert not GenerationWorkers(static.settings.worker.data_dir, "2").running()
