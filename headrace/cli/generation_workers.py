"""The document workers of one generation on this machine, under a supervisor of their own.

The supervisor is a process apart: it outlives the command that began it, however that ends, starts a worker again that
ends, and is found again by the next command.
"""

import os
import xmlrpc.client
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from headrace.cli.worker import KILL_GRACE_S, command
from headrace.config import ENV_PREFIX
from headrace.errors import Misconfigured
from headrace.localstack.supervision import Program, Supervisor
from topics.table import DOCUMENT_STAGES

TRIES, SETTLED_S = 3, 60.0
"""One that has begun so often, and was up for so long never in between, will not come up."""
FAILED = frozenset({"FATAL", "EXITED", "STOPPED"})
_FOLDER = "generation-"
ANY_PORT = "0"
"""Those of the settings are taken by the other generation's workers."""


class GenerationWorkers:
    """`folder` is where all generations' workers keep what is theirs; nothing is started by making this."""

    def __init__(self, folder: Path, generation: str) -> None:
        self.name = generation or "1"
        self.root = folder / f"{_FOLDER}{self.name}"
        self._supervisor = Supervisor(self.root)
        self._begun: dict[str, set[int]] = {}

    def running(self) -> bool:
        try:
            return self.root.is_dir() and self._supervisor.running()
        except xmlrpc.client.Fault:  # It is about to end.
            return False

    def stages(self) -> set[str]:
        """Whose workers are kept running."""
        return {process.name for process in self._supervisor.processes()} if self.running() else set()

    def start(
        self, stages: Sequence[str], environment: dict[str, str], *, drain_s: float, say: Callable[[str], None]
    ) -> None:
        """Start what doesn't run of these stages; what runs with other settings is started again.

        Raises Misconfigured where the package that keeps them running is not installed.
        """
        if find_spec("supervisor") is None:
            raise Misconfigured(
                "the package supervisor, which would keep the new workers running, is not installed: install "
                "headrace[local], or run the workers yourself and say --no-workers"
            )
        if not self._supervisor.running():
            self.root.mkdir(parents=True, exist_ok=True)
            # What a setting was when the supervisor began must not come back later.
            bare = {name: value for name, value in os.environ.items() if not name.upper().startswith(ENV_PREFIX)}
            self._supervisor.start(bare)
        programs = [
            Program(
                name=stage,
                address="",
                command=command(stage),
                environment=environment
                | {
                    "HEADRACE_WORKER__PORT": ANY_PORT,
                    "HEADRACE_WORKER__DATA_DIR": str(self.root / "data"),
                },
                stop_wait_s=round(drain_s + KILL_GRACE_S),
            )
            for stage in stages
        ]
        if started := self._supervisor.apply("workers", programs):
            say(f"started its workers: {', '.join(started)} (logs in {self.root / 'logs'})")

    def failed(self) -> str | None:
        """Of the first worker that ended again and again: its name and its last words. Ask often."""
        for process in sorted(self._supervisor.processes(), key=lambda one: DOCUMENT_STAGES.index(one.name)):
            begun = self._begun.setdefault(process.name, set())
            if process.uptime_s > SETTLED_S:
                begun.clear()
            if process.pid is not None:
                begun.add(process.pid)
            if process.state in FAILED or len(begun) > TRIES:
                return f"{process.name} doesn't come up: {self._supervisor.last_words(process.name)}"
        return None

    def stop(self) -> None:
        """All of them, as SIGTERM does, and their supervisor."""
        if self.running():
            self._supervisor.stop(DOCUMENT_STAGES)
            self._supervisor.shutdown()


def all_of(folder: Path) -> list[GenerationWorkers]:
    """Of every generation that ever had workers here."""
    names = sorted(found.name.removeprefix(_FOLDER) for found in folder.glob(f"{_FOLDER}*"))
    return [GenerationWorkers(folder, name) for name in names]
