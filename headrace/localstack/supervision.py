"""supervisord runs the processes; this writes its configuration and talks to it.

Servers and workers lie in two included files, so that either can be changed while the other is left alone.
"""

import hashlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from headrace.errors import Misconfigured

SOCKET_PATH_LIMIT = 90
"""A Unix socket's path ends at 104 to 108 bytes, and supervisord first binds a name with its process id behind it."""
Group = Literal["servers", "workers"]
GROUPS: tuple[Group, ...] = ("servers", "workers")
ALIVE = frozenset({"STARTING", "RUNNING", "BACKOFF", "STOPPING"})
NOT_RUNNING = 70
"""supervisord's fault code."""
START_TIMEOUT_S = 15.0


@dataclass(frozen=True, kw_only=True)
class Program:
    """What supervisord keeps running under `name`: it comes back by itself however it ends."""

    name: str
    address: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_wait_s: int = 30
    """After so long a process that was asked to stop is killed."""


@dataclass(frozen=True)
class ProcessInfo:
    """What supervisord says of one process; `state` in its words (RUNNING, BACKOFF, FATAL, ...)."""

    name: str
    state: str
    pid: int | None
    uptime_s: float

    @property
    def alive(self) -> bool:
        return self.state in ALIVE


def socket_path(root: Path) -> Path:
    """Where supervisord of this root listens: inside the root, or in a temporary folder if the root lies too deep."""
    inside = root.resolve() / "supervisor.sock"
    if len(os.fsencode(inside)) <= SOCKET_PATH_LIMIT:
        return inside
    key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    name = f"headrace-{os.getuid()}-{key}.sock"
    outside = Path(tempfile.gettempdir()) / name
    return outside if len(os.fsencode(outside)) <= SOCKET_PATH_LIMIT else Path("/tmp") / name


def render_main(root: Path) -> str:
    """supervisord.conf itself."""
    root = root.resolve()
    return f"""\
[supervisord]
directory={_value(str(Path.cwd()))}
logfile={_value(str(root / "logs" / "supervisord.log"))}
logfile_maxbytes=5MB
logfile_backups=1
pidfile={_value(str(root / "supervisord.pid"))}
childlogdir={_value(str(root / "logs"))}
umask=077

[unix_http_server]
file={_value(str(socket_path(root)))}
chmod=0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[include]
files={_value(str(root / "programs"))}/*.conf
"""


def render_program(program: Program, root: Path, group: Group) -> str:
    log = root.resolve() / "logs" / f"{program.name}.log"
    lines = [
        f"[program:{program.name}]",
        f"; address={program.address}",
        f"command={_value(shlex.join(program.command))}",
        # supervisord stops the highest numbers first.
        f"priority={100 * (1 + GROUPS.index(group))}",
        "autostart=true",
        "autorestart=true",
        "startsecs=1",
        "startretries=10",
        f"stopwaitsecs={program.stop_wait_s}",
        "redirect_stderr=true",
        f"stdout_logfile={_value(str(log))}",
        "stdout_logfile_maxbytes=20MB",
        "stdout_logfile_backups=2",
    ]
    if program.environment:
        pairs = ",".join(f"{name}={_quoted(name, value)}" for name, value in sorted(program.environment.items()))
        lines.append(f"environment={pairs}")
    return "\n".join(lines) + "\n"


def _value(text: str) -> str:
    """As an INI value that supervisord reads back as it was. Raises Misconfigured for what its format cannot hold."""
    if "\n" in text or re.search(r"\s[;#]", text):
        raise Misconfigured(f"supervisord's configuration cannot hold a line break, ' ;' or ' #': {text[:60]!r}")
    return text.replace("%", "%%")


def _quoted(name: str, text: str) -> str:
    quote = "'" if '"' in text else '"'
    if quote in text or text[:1] in {"'", '"'} or text[-1:] in {"'", '"'}:
        raise Misconfigured(f"supervisord's configuration cannot hold the quotes in the environment variable {name}")
    return f"{quote}{_value(text)}{quote}"


class Supervisor:
    """The supervisord of one root. Every method but `start` and `write` expects it to run."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._socket = socket_path(root)

    def running(self) -> bool:
        """Whether this user's supervisord answers."""
        try:
            if self._socket.stat().st_uid != os.getuid():
                return False
            return bool(self._call("getState")["statecode"] == 1)
        except OSError:
            return False

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Start it as a daemon, with no programs. Its programs get its environment, this process's where none is given.

        Raises Misconfigured with its own words when it does not come up.
        """
        for folder in ("logs", "programs"):
            (self._root / folder).mkdir(parents=True, exist_ok=True)
        for group in GROUPS:
            self._file(group).unlink(missing_ok=True)
        config = self._root / "supervisord.conf"
        _write_private(config, render_main(self._root))
        started = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisord", "-c", str(config)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            check=False,
        )
        if started.returncode != 0 or not _soon(self.running):
            said = (started.stderr.strip() or started.stdout.strip() or "it said nothing").splitlines()[-1]
            raise Misconfigured(f"supervisord did not start: {said} (its log is in {self._root / 'logs'})")

    def addresses(self) -> dict[str, str]:
        """Where each program listens, by its name, as `apply` was told last."""
        found: dict[str, str] = {}
        for group in GROUPS:
            file = self._file(group)
            if file.is_file():
                found.update(re.findall(r"(?m)^\[program:([^\]\n]+)\]\n; address=(.*)$", file.read_text()))
        return found

    def apply(self, group: Group, programs: Iterable[Program]) -> list[str]:
        """Make these the group's programs: start the new ones, restart the changed ones, stop the others.

        Returns the names of those that were started. What runs and has not changed is left alone.
        """
        rendered = {program.name: render_program(program, self._root, group) for program in programs}
        _write_private(self._file(group), "".join(rendered.values()))
        added, changed, removed = self._call("reloadConfig")[0]
        self.stop([*changed, *removed])
        for name in (*changed, *removed):
            self._call("removeProcessGroup", name)
        for name in (*added, *changed):
            self._call("addProcessGroup", name)
        started = [*added, *changed]
        for process in self.processes():
            if process.name in rendered and process.name not in started and not process.alive:
                self._call("startProcess", process.name, False)
                started.append(process.name)
        return [name for name in rendered if name in started]

    def processes(self) -> list[ProcessInfo]:
        """In no particular order."""
        return [
            ProcessInfo(
                name=info["name"],
                state=info["statename"],
                pid=info["pid"] or None,
                uptime_s=float(info["now"] - info["start"]) if info["pid"] else 0.0,
            )
            for info in self._call("getAllProcessInfo")
        ]

    def stop(self, names: Iterable[str]) -> None:
        """Stop these, all at once, and return when none is left. Those that do not run are passed over."""
        waiting = set(names)
        for process in self.processes():
            if process.name in waiting and process.alive:
                try:
                    self._call("stopProcess", process.name, False)
                except xmlrpc.client.Fault as fault:
                    # It ended by itself in between.
                    if fault.faultCode != NOT_RUNNING:
                        raise
        while any(process.alive for process in self.processes() if process.name in waiting):
            time.sleep(0.1)

    def shutdown(self) -> None:
        """Stop what still runs, then supervisord itself, and return when its process is gone."""
        pid = cast(int, self._call("getPID"))
        self._call("shutdown")
        while _exists(pid):
            time.sleep(0.1)

    def log(self, name: str) -> Path:
        return self._root / "logs" / f"{name}.log"

    def last_words(self, name: str) -> str:
        """The last line that a process wrote, and where the rest is."""
        log = self.log(name)
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")
        return f"{last[:400]} (all of it in {log})"

    def _file(self, group: Group) -> Path:
        return self._root / "programs" / f"{group}.conf"

    def _call(self, method: str, *arguments: object) -> Any:
        from supervisor.xmlrpc import SupervisorTransport  # type: ignore[import-untyped]

        transport = SupervisorTransport(None, None, serverurl=f"unix://{self._socket}")
        try:
            # The host is never used: the transport goes to the socket.
            server = xmlrpc.client.ServerProxy("http://localhost", transport=transport)
            return getattr(server.supervisor, method)(*arguments)
        finally:
            transport.close()


def _write_private(path: Path, text: str) -> None:
    """Only for its owner's eyes: an environment may carry passwords."""
    path.touch(mode=0o600, exist_ok=True)
    path.write_text(text)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
