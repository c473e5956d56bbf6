"""`headrace top`: the stages as they work."""

import os
import queue
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.console import out, print_json
from headrace.cli.options import Json

if TYPE_CHECKING:
    from headrace.cli.top_reading import Reader, Reading
    from headrace.cli.top_view import View

LOOK_EVERY_S = 0.2
"""How soon a key, or another size of the terminal, is seen."""
QUIT = frozenset("qQ\x04")


def top(
    every: Annotated[
        float, typer.Option("--every", min=0.5, max=60, metavar="SECONDS", help="Between two readings.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one reading, and end.")] = False,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metrics",
            metavar="URL",
            help="A worker's /metrics, as often as there are workers. Those of the local stack are asked anyway.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """The stages as they work: lag, rates, workers, errors, freshness, latency. `q` ends it.

    It works wherever it reaches Kafka, which knows lag, messages a second and workers. The rest comes from the metrics
    of workers. What is not known is a `?`, and the lines below the table say why.

    Where there is no terminal, a table is printed for each reading, and with `--json` one line. Rates are those
    between two readings, so `--once` takes `--every` seconds.
    """
    from headrace.cli.top_reading import Reader
    from headrace.config import load_settings

    settings = load_settings()
    # A terminal must get its screen back also when the command is told to stop.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        reader = Reader(settings, _urls(metrics or []), always_events=once)
        title = f"headrace top  {settings.kafka.bootstrap_servers}  {settings.kafka.group_prefix}*"
        if once or json or not out().is_terminal:
            _print(reader, title, every=every, once=once, json=json)
        else:
            _show(reader, title, every=every)
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)


def _urls(given: list[str]) -> list[str]:
    from headrace.cli.top_reading import metrics_url

    try:
        return [metrics_url(one) for one in given]
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="--metrics") from exc


def _print(reader: "Reader", title: str, *, every: float, once: bool, json: bool) -> None:
    """A table or a line for each reading but the first, which has no rates."""
    import msgspec

    from headrace.cli.top_table import Screen

    views = _views()
    for first, reading in _readings(reader, every):
        view = views(reading)
        if first:
            continue
        if json and once:
            print_json(view)
        elif json:
            sys.stdout.write(msgspec.json.encode(view).decode() + "\n")
            sys.stdout.flush()
        else:
            out().print(Screen(view=view, title=title))
        if once:
            return


def _show(reader: "Reader", title: str, *, every: float) -> None:
    """Until `q`, Ctrl-C or SIGTERM. Readings are taken by a thread, so a server that is away holds up no key."""
    from rich.live import Live

    from headrace.cli.top_table import Screen

    taken: queue.SimpleQueue[Reading | BaseException] = queue.SimpleQueue()

    def take() -> None:
        try:
            for _, reading in _readings(reader, every):
                taken.put(reading)
        except BaseException as exc:  # noqa: BLE001  # whoever shows the readings raises it
            taken.put(exc)

    threading.Thread(target=take, name="readings", daemon=True).start()
    console, views = out(), _views()
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        live.update("asking Kafka and the workers ...", refresh=True)
        size = console.size
        while QUIT.isdisjoint(pressed(LOOK_EVERY_S)):
            new = not taken.empty()
            while not taken.empty():
                reading = taken.get()
                if isinstance(reading, BaseException):
                    raise reading
                live.update(Screen(view=views(reading), title=f"{title}  every {every:g} s  q quits"))
            if new or console.size != size:
                size = console.size
                live.refresh()


def _readings(reader: "Reader", every: float) -> "Iterator[tuple[bool, Reading]]":
    """One after the other, without end, and whether it is the first."""
    first = True
    while True:
        due = time.monotonic() + every
        yield first, reader.read()
        first = False
        time.sleep(max(0.0, due - time.monotonic()))


def _views() -> "Callable[[Reading], View]":
    """What to show of each reading, which is remembered for a minute."""
    from headrace.cli.top_view import recent, view

    readings: deque[Reading] = deque()

    def next_view(reading: "Reading") -> "View":
        readings.append(reading)
        kept = recent(readings, reading.at)
        while len(readings) > len(kept):
            readings.popleft()
        return view(kept)

    return next_view


@contextmanager
def _keys() -> "Iterator[Callable[[float], str]]":
    """What was typed within so many seconds. Where nobody can type, it only waits."""
    if not sys.stdin.isatty():

        def wait(within_s: float) -> str:
            time.sleep(within_s)
            return ""

        yield wait
        return
    import termios
    import tty

    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)

    def pressed(within_s: float) -> str:
        ready, _, _ = select.select([file], [], [], within_s)
        return os.read(file, 64).decode(errors="replace") if ready else ""

    try:
        tty.setcbreak(file)
        yield pressed
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)
