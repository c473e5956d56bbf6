"""Other people's clients against a running pipeline, and what they must get: what a plain Kafka client gets."""

import json
import os
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from headrace.localstack.jars import jars
from headrace.localstack.java import find_java
from tests.conftest import PARTITIONS, Deployment

HERE = Path(__file__).parent
TENANT = f"interop-{uuid.uuid4().hex[:8]}"
TEXTS = {
    "sluice": "The sluice of the upper mill opens at six in the morning and closes at ten at night.",
    "turbine": "A turbine turns when water from the headrace falls on its blades.",
    "eel": "Eels climb the fish ladder beside the weir on warm nights in May.",
    "umlaut": "Der Müller zahlt für das Wasser — 水 und 🐟 inbegriffen.",
}
QUESTIONS: list[dict[str, Any]] = [
    {"query": "When does the sluice open?", "tenant": TENANT, "mode": "answer", "request_id": "one"},
    {"query": "What turns a turbine?", "tenant": TENANT, "request_id": "two"},
    {"query": "Wasser für Fische 🐟", "tenant": TENANT, "top_k": 2, "request_id": "three"},
    {"query": "eels", "tenant": TENANT, "filters": {"tags": {"any": ["fish"]}}, "request_id": "four"},
    {"query": "eels", "tenant": TENANT, "filters": {"colour": "red"}, "request_id": "refused"},
]
REFUSED = 4
"""The place of the question that gets an error."""
CLIENT_WITHIN_S = 180


@dataclass(frozen=True)
class Reply:
    partition: int
    error: str | None
    answer: dict[str, Any]

    @property
    def said(self) -> dict[str, Any]:
        """All but the time it took, and the scores: their last digits depend on what was embedded together."""
        hits = [
            {name: value for name, value in hit.items() if name not in ("score", "scores")}
            for hit in self.answer["hits"]
        ]
        return {name: value for name, value in self.answer.items() if name != "timings_ms"} | {"hits": hits}


@pytest.fixture(scope="session")
def asked(pipeline: Deployment) -> Deployment:
    """The pipeline, with a few documents in it."""
    lines = [
        {"id": name, "text": text, "title": name.title(), "tags": ["fish"] if name == "eel" else []}
        for name, text in TEXTS.items()
    ]
    stdin = "\n".join(map(json.dumps, lines)).encode()
    done = pipeline.run("publish", "-", "--tenant", TENANT, "--wait", stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return pipeline


@pytest.fixture(scope="session")
def plain(asked: Deployment) -> list[Reply]:
    """What a client that sets each header by hand gets."""
    kafka, replies = {"bootstrap.servers": asked.settings.kafka.bootstrap_servers}, asked.topic("replies")
    consumer = Consumer(kafka | {"group.id": uuid.uuid4().hex, "enable.auto.commit": False})
    partitions = [TopicPartition(replies, number) for number in range(PARTITIONS)]
    consumer.assign(
        [TopicPartition(replies, one.partition, consumer.get_watermark_offsets(one)[1]) for one in partitions]
    )
    producer, found = Producer(kafka), {}
    for number, question in enumerate(QUESTIONS):
        headers = [("kafka_correlationId", f"plain-{number}".encode()), ("kafka_replyTopic", replies.encode())]
        producer.produce(asked.topic("queries"), json.dumps(question), f"plain-{number}", headers=headers)
    assert producer.flush(30) == 0
    while len(found) < len(QUESTIONS):
        message = consumer.poll(60)
        assert message is not None, f"{len(found)} of {len(QUESTIONS)} replies came"
        headers = dict(message.headers() or [])
        if headers.get("kafka_correlationId", b"").startswith(b"plain-"):
            error = headers.get("headrace.error")
            found[headers["kafka_correlationId"]] = Reply(
                message.partition(), error.decode() if error else None, json.loads(message.value())
            )
    consumer.close()
    return [found[f"plain-{number}".encode()] for number in range(len(QUESTIONS))]


@dataclass(frozen=True)
class JavaClient:
    """A client of ours for somebody's library: `<name>/Asker.java`, and the library's jars, which Maven fetches once."""

    name: str
    jars: Path
    classes: Path

    def ask(self, asked: Deployment, questions: Sequence[dict[str, Any]], partition: int | None = None) -> list[Reply]:
        """All at once; replies in the questions' order, on one partition or wherever they fall."""
        command = [
            str(find_java(17, needed_by=self.name).executable),
            "-cp",
            f"{self.classes}{os.pathsep}{self.jars}/*",
            "Asker",
            asked.settings.kafka.bootstrap_servers,
            asked.topic("queries"),
            asked.topic("replies"),
            str(-1 if partition is None else partition),
        ]
        stdin = "\n".join(json.dumps(question, ensure_ascii=False) for question in questions)
        done = subprocess.run(
            command,
            input=stdin.encode(),
            capture_output=True,
            timeout=CLIENT_WITHIN_S,
            check=False,
            # What Java takes for text where no locale is set.
            env=os.environ | {"JAVA_TOOL_OPTIONS": "-Dstdout.encoding=UTF-8 -Dfile.encoding=UTF-8"},
        )
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        replies = [line.split(" ", 2) for line in done.stdout.decode().splitlines()]
        return [
            Reply(int(number), None if error == "-" else error, json.loads(value)) for number, error, value in replies
        ]


def java_client(name: str, pipeline: Deployment, classes: Path) -> JavaClient:
    """Compiled against the library's jars. Raises Misconfigured without Java or Maven."""
    library = jars("client", pipeline.settings.local.root / "jars" / name, print, poms=HERE / name)
    java = find_java(17, needed_by=name).executable
    compiler = java.resolve().parent / "javac"
    assert compiler.is_file(), f"{java} is a runtime alone: these tests need a JDK, such as openjdk-21-jdk-headless"
    command = [str(compiler), "-proc:none", "-encoding", "UTF-8", "-cp", f"{library}/*", "-d", str(classes)]
    subprocess.run(
        [*command, str(HERE / name / "Asker.java")], check=True, capture_output=True, timeout=CLIENT_WITHIN_S
    )
    return JavaClient(name, library, classes)
