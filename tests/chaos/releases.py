"""Two releases of headrace side by side: this one, and a copy with the changes that a next one may make."""

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from headrace.cli.metrics_page import Page, read_page
from tests.conftest import Deployment, free_ports
from topics import GROUPS

ROOT = Path(__file__).parents[2]
PACKAGES = ("agents", "headrace", "schemas", "topics")
READY_WITHIN_S = 120.0
WORKS_WITHIN_S = 60.0
RELEASE_HEADER = "headrace.release"

_LANGUAGE = "    language: str | None = None\n"
_CHANGES = (
    # An optional field that `chunk` finds out, and that every message and manifest on the document's way carries on.
    ("schemas/batches.py", "    deleted: bool = False\n", "    deleted: bool = False\n" + _LANGUAGE, 2),
    ("schemas/manifest.py", "    at: datetime\n    deleted: bool = False\n", f"    at: datetime\n    deleted: bool = False\n{_LANGUAGE}", 2),
    ("schemas/manifest.py", "    opensearch: list[Span] = []\n    deleted: bool = False\n", f"    opensearch: list[Span] = []\n    deleted: bool = False\n{_LANGUAGE}", 1),
    ("schemas/manifest.py", "    pending: list[Pending] = []\n", '    pending: list[Pending] = []\n    region: str = "eu"\n', 1),
    ("agents/chunk.py", "            replaces=cut.replaces if group else None,\n", '            replaces=cut.replaces if group else None,\n            language="en",\n', 1),
    ("agents/embed.py", "            deleted=batch.deleted,\n", "            deleted=batch.deleted,\n            language=batch.language,\n", 1),
    ("agents/upserts.py", "        deleted=batch.deleted,\n", "        deleted=batch.deleted,\n        language=batch.language,\n", 1),
    ("headrace/versions.py", "chunks=chunks(), at=at, deleted=deleted", 'chunks=chunks(), at=at, deleted=deleted, language="en"', 1),
    ("headrace/versions.py", "deleted=receipt.deleted", "deleted=receipt.deleted, language=receipt.language", 1),
    ("headrace/versions.py", "deleted=winner.deleted", "deleted=winner.deleted, language=winner.language", 1),
    # A field more in the rows of the text store.
    ("headrace/stores/opensearch.py", "    metadata_terms: list[str] = []\n", '    metadata_terms: list[str] = []\n    release: str = "next"\n', 1),
    # A header on everything that is sent.
    ("agents/worker.py", "list(record.headers),", f'[*record.headers, ("{RELEASE_HEADER}", b"next")],', 1),
)  # fmt: skip


def next_release(folder: Path) -> Path:
    """A copy of the source with the next release's changes, to be run from that folder."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, here, then, times in _CHANGES:
        file = folder / name
        text = file.read_text()
        assert text.count(here) == times, f"{name} has changed: the next release can't be made of it ({here!r})"
        file.write_text(text.replace(here, then))
    return folder


@dataclass
class Worker:
    stage: str
    release: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def ready(self) -> bool:
        assert self.process.poll() is None, self.tail()
        with suppress(URLError, OSError), urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2):
            return True
        return False

    def done(self) -> float:
        """Messages that it took and acked."""
        with urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            page: Page = read_page(answer.read().decode(), {"headrace_messages_total"})
        return page.total("headrace_messages_total", stage=self.stage, direction="in")

    def tail(self) -> str:
        return f"--- {self.log.name}\n{self.log.read_text(errors='replace')[-3000:]}"


@dataclass
class Rollout:
    """The workers of a deployment, each from the source of its release."""

    deployment: Deployment
    sources: dict[str, Path]
    workers: dict[str, Worker] = field(default_factory=dict)
    """The one worker of each stage that is there between two steps."""
    log: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    _first_port: int = field(init=False)

    def __post_init__(self) -> None:
        self._first_port = free_ports(len(GROUPS) * len(self.sources))

    def start_all(self, release: str) -> None:
        for stage in GROUPS:
            self.workers[stage] = self.start(stage, release)
        for worker in self.workers.values():
            self._wait_ready(worker)
        self.say(f"all of {release} are ready")

    def start(self, stage: str, release: str) -> Worker:
        first, folder = self._port(release), self.deployment.logs.parent / "data" / release
        environment = {"HEADRACE_WORKER__PORT": str(first), "HEADRACE_WORKER__DATA_DIR": str(folder)}
        path = self.deployment.logs / f"{stage}-{release}.log"
        with path.open("ab") as log:
            process = subprocess.Popen(
                # Of a module that is run with -m, the working folder comes first on the path.
                [sys.executable, "-m", "headrace.cli", "worker", stage],
                cwd=self.sources[release],
                env=self.deployment.environment | environment,
                stdout=log,
                stderr=log,
            )
        self.deployment.workers.append(process)
        return Worker(stage, release, first + GROUPS.index(stage), process, path)

    def replace_all(self, stages: Sequence[str], release: str) -> None:
        """In this order, two stages at a time."""
        with ThreadPoolExecutor(2) as hands:
            list(hands.map(lambda stage: self.replace(stage, release), stages))

    def replace(self, stage: str, release: str) -> None:
        """Start the stage's worker of this release beside the one that is there, see both work, and stop that one."""
        before, after = self.workers[stage], self.start(stage, release)
        self._wait_ready(after)
        self._see_both_work(before, after)
        before.process.terminate()
        assert before.process.wait(timeout=40) == 0, before.tail()
        self.workers[stage] = after
        self.say(f"{stage} is {release}")

    def say(self, line: str) -> None:
        self.log.append(f"{time.monotonic() - self.started:6.1f} {line}")

    def _port(self, release: str) -> int:
        """Where the release's first stage listens."""
        return self._first_port + len(GROUPS) * list(self.sources).index(release)

    def _wait_ready(self, worker: Worker) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while not worker.ready():
            assert time.monotonic() < deadline, f"not ready: {worker.tail()}"
            time.sleep(0.1)

    def _see_both_work(self, *workers: Worker) -> None:
        """While both are in the group, each does something."""
        done = [worker.done() for worker in workers]
        deadline = time.monotonic() + WORKS_WITHIN_S
        while any(worker.done() <= before for worker, before in zip(workers, done, strict=True)):
            assert time.monotonic() < deadline, "\n".join(["idle beside each other:", *(w.tail() for w in workers)])
            time.sleep(0.1)
