"""Another encoder under load: documents come, change and go, an app asks all the while, and nobody sees a seam."""

import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from headrace.cli.flow import Flow
from headrace.config import Settings
from schemas import Generations
from tests.chaos.audit import audit, dead_letter_faults
from tests.chaos.reader import Reader, faults_of
from tests.chaos.run import Publisher
from tests.chaos.test_chaos import untold
from tests.chaos.workload import SHORT, Expectation, Send, draw
from tests.conftest import Deployment, deploy
from topics.generations import read_generations

LOAD = replace(SHORT, documents=400, sending_s=300.0)
"""More than the test takes: what isn't sent by then stays unsent."""
BEGUN = 20
WITHIN_S = 480.0
"""The encoder is loaded twice, beside all else that goes on here."""
PATIENT = ("--yes", "--catch-up", "300")
ANSWERS_AT_LEAST = 100
OF_A_BUSY_MACHINE = {"deadline_exceeded", "unavailable"}
MODEL = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass
class Load:
    """Sends what is drawn, in a thread of its own, until it is stopped."""

    publisher: Publisher
    sends: tuple[Send, ...]
    sent: list[Send] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(30)
            self._thread = None

    def _run(self) -> None:
        started = time.monotonic()
        for send in self.sends:
            while time.monotonic() - started < send.at:
                self.publisher.producer.poll(0.01)
                if self._stopped.is_set():
                    break
            if self._stopped.is_set():
                break
            self.publisher.send(send)
            self.sent.append(send)
        self.publisher.producer.flush(30)


@pytest.fixture
def static(servers: Settings, tmp_path: Path) -> Iterator[Deployment]:
    """A pipeline that a static encoder serves."""
    made = deploy(servers, tmp_path, HEADRACE_ENCODER__BACKEND="static", OMP_NUM_THREADS="1")
    try:
        made.start_all()
        yield made
    finally:
        made.run("reindex", "--stop-workers")
        made.drop()


def test_an_encoder_is_changed_under_load_killed_half_way_and_changed_back(static: Deployment, seed: int) -> None:
    random_, expectation = random.Random(seed), Expectation()
    settings = static.settings
    load = Load(Publisher(static, expectation), draw(seed, LOAD).sends)
    reader = Reader(settings.kafka.bootstrap_servers, settings.kafka.topic_prefix, seed)
    reader.start()
    load.start()
    try:
        until(lambda: len(load.sent) > BEGUN)
        phase = random_.choice(["filling", "near", "closing", "flipped", "telling"])
        killed_at(static, phase, "reindex", "--encoder", MODEL, *PATIENT)
        done = static.run("reindex", *PATIENT, timeout=WITHIN_S)
        assert done.returncode == 0, told(done)
        there = record(settings)
        assert (there.live, there.telling, there.held, there.phase) == ("2", "2", [], "done"), told(done)

        # From here on the first one catches up with what comes, as before.
        back = static.run("reindex", "--rollback", *PATIENT, timeout=WITHIN_S)
        assert back.returncode == 0, told(back)
        assert (record(settings).live, record(settings).previous) == ("", "2"), told(back)
        load.stop()
        second = settings.of_generation("2", there.known["2"].encoder)
        for generation in (settings, second):
            quiet(generation)
        reader.stop_asking()
        until(lambda: reader.unanswered() == 0)
        verify(static)
        verify(static, HEADRACE_GENERATION__NAME="2", HEADRACE_ENCODER__BACKEND="torch", HEADRACE_ENCODER__MODEL=MODEL)
    finally:
        load.stop()
        reader.stop()

    faults = [fault for asked in reader.asked.values() for fault in faults_of(asked, expectation, by_content=True)]
    errors = Counter(asked.answer["error"]["code"] for asked in reader.asked.values() if (asked.answer or {})["error"])
    with_hits = sum(bool(asked.answer and asked.answer["hits"]) for asked in reader.asked.values())
    print(
        f"killed at {phase}; {len(load.sent)} records of {len(expectation.keys)} documents, "
        f"{len(reader.asked)} questions, {with_hits} answers with hits, {errors.total()} with an error, "
        f"{len(reader.events)} events"
    )
    assert not reader.broken, reader.broken
    assert not load.publisher.failures, load.publisher.failures
    assert faults == [], f"killed at {phase}"
    assert errors.keys() <= OF_A_BUSY_MACHINE, errors
    assert untold(reader, expectation) == [], f"killed at {phase}"
    assert dead_letter_faults(settings, [send for send in load.sent if send.mark is not None]) == []
    assert list(audit(settings, expectation).lines()) == [], f"killed at {phase}"
    assert with_hits > ANSWERS_AT_LEAST


def killed_at(deployment: Deployment, phase: str, *arguments: str) -> None:
    """Run a command until the record is in this phase, and end it as kill -9 does."""
    command = subprocess.Popen(
        deployment.command(*arguments), env=deployment.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        until(lambda: record(deployment.settings).phase == phase or command.poll() is not None)
        assert command.poll() is None, command.communicate()[0].decode()
    finally:
        command.kill()
        command.communicate()


def record(settings: Settings) -> Generations:
    return read_generations(settings.kafka)


def quiet(settings: Settings) -> None:
    look = Flow(settings.kafka).quiet(WITHIN_S)
    assert look.messages == 0, look.behind


def verify(deployment: Deployment, **environment: str) -> None:
    """All that Kafka has is in this generation, and nothing else."""
    found = subprocess.run(
        deployment.command("verify"),
        env=deployment.environment | environment,
        capture_output=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert found.returncode == 0, told(found)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def told(command: "subprocess.CompletedProcess[bytes]") -> str:
    return (command.stdout + command.stderr).decode()
