"""`headrace worker`: one stage in this process, or several as one process each."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from types import FrameType
from typing import Annotated, Any

import typer

from headrace.cli.console import err

ALL = "all"
POLL_S = 0.2
KILL_GRACE_S = 15.0
"""On top of the time that a worker itself takes to drain."""


def worker(
    stages: Annotated[
        list[str],
        typer.Argument(
            metavar="STAGE",
            help="chunk, embed, upsert-milvus, upsert-opensearch, commit, query; or all.",
            show_default=False,
        ),
    ],
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="Where this one stage's /metrics, /healthz and /readyz listen."),
    ] = None,
    instance_id: Annotated[
        str | None,
        typer.Option(
            "--instance-id", help="Its name in its consumer group; of several stages, each adds its own name."
        ),
    ] = None,
) -> None:
    """Run a stage until it is told to stop; several stages run as one process each.

    SIGTERM and SIGINT let it finish what it has in hand. Of several, the first one that ends stops the others, and its
    exit code is this command's.
    """
    wanted = _stages(stages)
    if len(wanted) == 1:
        raise typer.Exit(_run(wanted[0], port, instance_id))
    if port is not None:
        raise typer.BadParameter("is for one stage; of several, each listens at its own", param_hint="--port")
    raise typer.Exit(_run_several(wanted, instance_id))


def _stages(named: Sequence[str]) -> list[str]:
    from topics import GROUPS

    unknown = [stage for stage in named if stage not in (*GROUPS, ALL)]
    if unknown:
        raise typer.BadParameter(
            f"there is no stage {', '.join(unknown)}; there are {', '.join(GROUPS)} and {ALL}", param_hint="STAGE"
        )
    return list(GROUPS) if ALL in named else [stage for stage in GROUPS if stage in named]


def _run(stage: str, port: int | None, instance_id: str | None) -> int:
    from agents import app
    from headrace.config import load_settings
    from topics import GROUPS

    overrides: dict[str, Any] = {}
    if port is not None:
        # The setting is the first stage's port.
        overrides["port"] = port if port == 0 else port - GROUPS.index(stage)
    if instance_id is not None:
        overrides["instance_id"] = instance_id
    return app.run(stage, load_settings(worker=overrides) if overrides else load_settings())


def _run_several(stages: Sequence[str], instance_id: str | None) -> int:
    from headrace.config import load_settings

    drain_s = load_settings().worker.drain_timeout_s
    commands = {
        stage: [*command(stage), *(["--instance-id", f"{instance_id}-{stage}"] if instance_id else [])]
        for stage in stages
    }
    return run_together(commands, stop_within_s=drain_s + KILL_GRACE_S)


def command(stage: str) -> list[str]:
    """How another process runs this stage."""
    return [sys.executable, "-m", "headrace.cli", "worker", stage]


def run_together(
    commands: Mapping[str, Sequence[str]], *, stop_within_s: float, environment: Mapping[str, str] | None = None
) -> int:
    """Run the commands until the first one ends, then stop the others; returns the exit code of that first one.

    SIGTERM and SIGINT are passed on as SIGTERM; the code is then 0 if every command ended well. What doesn't stop in
    time is killed. No process is left behind.
    """
    asked_to_stop = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    children: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, line in commands.items():
            # A group of its own: Ctrl-C on the terminal must come once, from here, not twice.
            children[name] = subprocess.Popen(line, process_group=0, env={**os.environ, **(environment or {})})
        while not asked_to_stop:
            for name, child in children.items():
                if (code := child.poll()) is not None:
                    err().print(f"{name} ended with exit code {code}; stopping the others", soft_wrap=True)
                    _stop(children.values(), stop_within_s)
                    return _exit_code(code)
            time.sleep(POLL_S)
        _stop(children.values(), stop_within_s)
        return max(_exit_code(child.returncode) for child in children.values())
    finally:
        _stop(children.values(), stop_within_s)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stop(children: Collection[subprocess.Popen[bytes]], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    for child in children:
        if child.poll() is None:
            child.terminate()
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _exit_code(code: int) -> int:
    """As a shell has it: a process that a signal ended counts as 128 and the signal's number."""
    return 128 - code if code < 0 else code
