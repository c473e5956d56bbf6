"""The worker processes of a chaos run and the small supervisor that brings back whoever ended."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.chaos.workload import Fault, Scale
from tests.conftest import Deployment, free_ports
from topics import GROUPS

ROOT = Path(__file__).parents[2]
READY_WITHIN_S = 420.0
"""Twelve workers start at once on perhaps two cores, and four of them load the model."""
_ENVIRONMENT = {
    # Short, so that a run of minutes can outlast them.
    "HEADRACE_WORKER__SESSION_TIMEOUT_S": "6",
    "HEADRACE_STORES__MILVUS__TIMEOUT_S": "10",
    "HEADRACE_STORES__OPENSEARCH__TIMEOUT_S": "10",
    # Many processes share two cores here.
    "OMP_NUM_THREADS": "1",
}


@dataclass
class Worker:
    name: str
    stage: str
    port: int
    process: subprocess.Popen[bytes]
    started_at: float
    ready_at: float | None = None
    stopped_at: float | None = None
    """Since when it is held by SIGSTOP."""

    @property
    def ready(self) -> bool:
        return self.ready_at is not None and self.stopped_at is None and self.process.poll() is None


@dataclass(frozen=True)
class End:
    """How a process ended. `blow` is the signal that it was sent, or the narrow place that it died at; None if it ended
    by itself.
    """

    at: float
    worker: str
    code: int
    blow: str | None


@dataclass
class Supervisor:
    """Starts every worker again that ends. Times are monotonic."""

    deployment: Deployment
    scale: Scale
    workers: dict[str, Worker] = field(default_factory=dict)
    ends: list[End] = field(default_factory=list)
    struck: list[Fault] = field(default_factory=list)
    recoveries: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """Seconds from a blow to ready again, by stage and blow."""
    _blows: dict[str, tuple[str, float]] = field(default_factory=dict)
    _armed: dict[str, Fault] = field(default_factory=dict)

    @property
    def faults(self) -> Path:
        """The folder in which the workers look for what is to strike them."""
        return self.deployment.logs.parent / "faults"

    def start_all(self) -> None:
        self.faults.mkdir()
        names = [(stage, number) for stage in GROUPS for number in range(self.scale.workers[stage])]
        first = free_ports(len(names))
        for port, (stage, number) in enumerate(names, start=first):
            self._start(f"{stage}-{number}", stage, port)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Until each stage has a worker that works."""
        deadline = time.monotonic() + READY_WITHIN_S
        while not self.complete():
            self.bring_back()
            missing = [worker.name for worker in self.workers.values() if not worker.ready]
            assert time.monotonic() < deadline, f"not ready: {missing}\n{self.log_tails()}"
            time.sleep(0.1)

    def bring_back(self) -> None:
        """Start again whoever has ended. Call it often."""
        self._note_strikes()
        for worker in list(self.workers.values()):
            code = worker.process.poll()
            if code is None:
                continue
            blow, _ = self._blows.get(worker.name, (None, 0.0))
            self.ends.append(End(time.monotonic(), worker.name, code, blow))
            self._start(worker.name, worker.stage, worker.port)

    def arm(self, fault: Fault, key: str = "") -> bool:
        """Whether the fault waits for its worker now: a place holds one at a time."""
        if fault.point in self._armed:
            return False
        self._armed[fault.point] = fault
        planned = self.faults / fault.point
        partial = planned.with_suffix(".partial")
        partial.write_text(f"{fault.action} {key}".strip())
        partial.rename(planned)
        return True

    def disarm(self) -> None:
        for point in list(self._armed):
            (self.faults / point).unlink(missing_ok=True)

    def _note_strikes(self) -> None:
        for found in self.faults.glob("*.struck.*"):
            point, _, pid = found.name.split(".")
            found.unlink()
            fault = self._armed.pop(point)
            self.struck.append(fault)
            [worker] = [worker for worker in self.workers.values() if worker.process.pid == int(pid)]
            if fault.action == "SIGSTOP":
                worker.stopped_at = time.monotonic()
            else:
                self._blows[worker.name] = (f"{fault.action} at {point}", time.monotonic())
                worker.ready_at = None

    def strike(self, name: str, action: str) -> None:
        worker = self.workers[name]
        if action == "SIGSTOP":
            worker.stopped_at = time.monotonic()
        else:
            self._blows[name] = (action, time.monotonic())
            worker.ready_at = None
        worker.process.send_signal(signal.Signals[action])

    def wake(self, *, asleep_s: float) -> None:
        """Let those go on who were held for so long."""
        for worker in self.workers.values():
            if worker.stopped_at is not None and time.monotonic() - worker.stopped_at >= asleep_s:
                worker.stopped_at = None
                worker.process.send_signal(signal.SIGCONT)

    def of(self, stage: str) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.stage == stage]

    def complete(self) -> bool:
        """Whether every stage has a worker that works."""
        return all(any(worker.ready for worker in self.of(stage)) for stage in GROUPS)

    def stop(self) -> dict[str, int]:
        """SIGTERM to all; their exit codes, -9 for one that had to be killed."""
        self.wake(asleep_s=0)
        for worker in self.workers.values():
            worker.process.send_signal(signal.SIGTERM)
        codes = {}
        for worker in self.workers.values():
            try:
                codes[worker.name] = worker.process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                codes[worker.name] = worker.process.wait()
        return codes

    def log_tails(self, characters: int = 2500) -> str:
        tails = [
            f"--- {name}.log\n{(self.deployment.logs / f'{name}.log').read_text(errors='replace')[-characters:]}"
            for name in self.workers
        ]
        return "\n".join(tails)

    def _start(self, name: str, stage: str, port: int) -> None:
        environment: Mapping[str, str] = _ENVIRONMENT | {
            # The setting is the first stage's port.
            "HEADRACE_WORKER__PORT": str(port - GROUPS.index(stage)),
            "HEADRACE_WORKER__DATA_DIR": str(self.deployment.logs.parent / "data" / name),
        }
        with (self.deployment.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.faulty_worker", stage],
                cwd=ROOT,
                env=self.deployment.environment | environment | {"CHAOS_FAULTS": str(self.faults)},
                stdout=log,
                stderr=log,
            )
        self.deployment.workers.append(process)
        worker = self.workers[name] = Worker(name, stage, port, process, time.monotonic())
        threading.Thread(target=self._await_ready, args=(worker,), daemon=True).start()

    def _await_ready(self, worker: Worker) -> None:
        while worker.process.poll() is None:
            with suppress(URLError, OSError), urlopen(f"http://127.0.0.1:{worker.port}/readyz", timeout=2):
                worker.ready_at = time.monotonic()
                blow, struck_at = self._blows.pop(worker.name, ("", 0.0))
                if blow:
                    self.recoveries.setdefault((worker.stage, blow), []).append(worker.ready_at - struck_at)
                return
            time.sleep(0.2)
