"""`headrace top` beside real workers, and in a terminal."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import orjson
import pytest

from headrace.config import Settings
from tests.conftest import Deployment, deploy
from topics import GROUPS

WITHIN_S = 60.0
DOCUMENTS = 40
TEXT = "The sluice of pump %d opens at six and is closed again before the night. " * 40


@pytest.fixture(scope="module")
def works(servers: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """All six workers, with the encoder that needs the least."""
    made = deploy(servers, tmp_path_factory.mktemp("top"), HEADRACE_ENCODER__BACKEND="static")
    try:
        made.start_all()
        yield made
    finally:
        made.drop()


def documents(prefix: str) -> bytes:
    return b"\n".join(
        orjson.dumps({"doc_id": f"{prefix}-{number}", "text": TEXT % ((number,) * 40)}) for number in range(DOCUMENTS)
    )


def once(deployment: Deployment, *arguments: str, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        deployment.command("top", "--once", "--json", "--every", "1", *arguments),
        env=deployment.environment | environment,
        capture_output=True,
        timeout=WITHIN_S,
        check=True,
    )
    found: dict[str, Any] = orjson.loads(done.stdout)
    return found


def row(view: dict[str, Any], stage: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in view["stages"] if one["stage"] == stage)
    return found


def test_what_flows_while_it_watches_is_counted_once_and_whole(works: Deployment) -> None:
    watching = subprocess.Popen(
        works.command("top", "--json", "--every", "0.5"), env=works.environment, stdout=subprocess.PIPE
    )
    try:
        assert watching.stdout is not None
        views = [orjson.loads(watching.stdout.readline())]
        published = works.run("publish", "-", "--wait", stdin=documents("flow"))
        assert published.returncode == 0, published.stderr
        assert works.run("ask", "--search", "When does the sluice open?").returncode == 0

        def done(stage: str, rate: str) -> float:
            return sum(row(view, stage)[rate] * view["over_s"] for view in views)

        deadline = time.monotonic() + WITHIN_S
        while done("commit", "messages_per_s") < 2 * DOCUMENTS or done("query", "messages_per_s") < 1:
            assert time.monotonic() < deadline, views[-1]
            views.append(orjson.loads(watching.stdout.readline()))
        assert round(done("chunk", "messages_per_s")) == DOCUMENTS
        chunks = round(done("chunk", "chunks_per_s"))
        assert chunks > DOCUMENTS
        assert {round(done(stage, "chunks_per_s")) for stage in ("embed", "upsert-milvus", "upsert-opensearch")} == {
            chunks
        }
        assert round(done("commit", "messages_per_s")) == 2 * DOCUMENTS  # a receipt of each store
        assert round(done("query", "messages_per_s")) == 1
        latency = views[-1]["questions"]
        assert 0 < latency["p50_ms"] <= latency["p99_ms"]
        [bulk] = views[-1]["freshness"]
        assert (bulk["source"], bulk["lane"]) == ("metrics", "bulk")
        assert 0 < bulk["documents"] <= DOCUMENTS
        assert 0 < bulk["p50_s"] <= bulk["p99_s"]
        assert views[-1]["unknown"] == []
    finally:
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=30) == 0


def test_one_reading_tells_of_every_stage(works: Deployment) -> None:
    view = once(works)
    assert [one["stage"] for one in view["stages"]] == list(GROUPS)
    for one in view["stages"]:
        assert (one["workers"], one["answering"], one["in_hand"], one["errors_per_s"]) == (1, 1, 0, 0), one
        assert one["waits_for"] == []
        assert set(one["lag"].values()) == {0}
    assert view["unknown"] == []
    assert view["dead_letters_per_s"] == 0


def test_without_any_metrics_kafka_alone_tells_lag_workers_and_freshness(works: Deployment) -> None:
    published = works.run("publish", "-", "--wait", stdin=documents("alone"))
    assert published.returncode == 0, published.stderr
    view = once(works, HEADRACE_WORKER__PORT="0")
    assert {one["workers"] for one in view["stages"]} == {1}
    assert {one["answering"] for one in view["stages"]} == {0}
    assert row(view, "chunk")["chunks_per_s"] is None
    [fresh] = view["freshness"]
    assert (fresh["source"], fresh["lane"]) == ("events", None)
    assert fresh["documents"] >= DOCUMENTS
    [unknown] = view["unknown"]
    assert "chunks/s" in unknown["columns"]
    assert "--metrics" in unknown["why"]


def test_a_worker_that_is_named_is_asked(works: Deployment) -> None:
    view = once(works, "--metrics", works.url("embed", ""), HEADRACE_WORKER__PORT="0")
    assert row(view, "embed")["in_hand"] == 0
    assert row(view, "chunk")["in_hand"] is None
    assert [one["stages"] for one in view["unknown"]] == [[stage for stage in GROUPS if stage != "embed"]]


def test_the_lag_of_a_stage_without_workers_has_an_age(deployment: Deployment) -> None:
    assert deployment.run("publish", "-", stdin=documents("waiting")).returncode == 0
    view = once(deployment)
    chunk = row(view, "chunk")
    assert (chunk["workers"], chunk["lag"]) == (0, {"urgent": 0, "bulk": DOCUMENTS})
    assert chunk["oldest_s"]["bulk"] > 0
    assert chunk["oldest_s"]["urgent"] == 0


def test_without_kafka_it_ends_with_one_line(works: Deployment) -> None:
    done = subprocess.run(
        works.command("top", "--once"),
        env=works.environment | {"HEADRACE_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"},
        capture_output=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (4, b"", 1)


class Terminal:
    """A pseudo terminal that runs a command."""

    def __init__(self, command: list[str], environment: dict[str, str], columns: int) -> None:
        self.screen = b""
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.execve(command[0], command, environment)
        self.before = termios.tcgetattr(self.file)
        self.resize(columns)

    def resize(self, columns: int) -> None:
        self.screen = b""
        fcntl.ioctl(self.file, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))

    def wait_for(self, *shown: bytes) -> None:
        deadline = time.monotonic() + WITHIN_S
        while not all(text in self.screen for text in shown):
            assert time.monotonic() < deadline, self.screen[-3000:]
            self._read()

    def end(self, key: bytes) -> int:
        """Press a key; the exit code."""
        os.write(self.file, key)
        deadline = time.monotonic() + WITHIN_S
        while time.monotonic() < deadline:
            self._read()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._read()
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError(f"it goes on: {self.screen[-3000:]!r}")

    def _read(self) -> None:
        ready, _, _ = select.select([self.file], [], [], 0.2)
        with suppress(OSError):  # Linux says so when the other side is closed.
            if ready:
                self.screen += os.read(self.file, 65_536)


@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_a_terminal_shows_the_stages_at_any_width_and_gets_its_screen_back(works: Deployment, key: bytes) -> None:
    environment = {name: value for name, value in works.environment.items() if name not in ("COLUMNS", "LINES")}
    terminal = Terminal(works.command("top", "--every", "0.5"), environment | {"TERM": "xterm"}, columns=80)
    try:
        terminal.wait_for(b"\x1b[?1049h", b"upsert-opensearch", b"workers", b"freshness", b"q quits")
        assert b"waits for" not in terminal.screen
        terminal.resize(110)
        terminal.wait_for(b"waits for", b"upsert-opensearch")
        assert terminal.end(key) == 0
        assert b"\x1b[?1049l" in terminal.screen
        assert b"Traceback" not in terminal.screen
        assert termios.tcgetattr(terminal.file) == terminal.before
    finally:
        os.close(terminal.file)
