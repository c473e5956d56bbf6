"""How a publication goes: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from headrace.cli.publishing import Tally

LINE_EVERY_S = 5.0
BAR_EVERY_S = 0.1


class Progress:
    """A Watch for people: problems appear as lines at once, everything else as its sum."""

    def __init__(self, console: Console, bar: Bar | None, *, waits: bool) -> None:
        self._console = console
        self._bar = bar
        self._waits = waits
        self._task: TaskID | None = None
        self._shown_at = time.monotonic()
        self._shown = ""

    def problem(self, where: str, why: str) -> None:
        (self._bar.console if self._bar else self._console).print(
            f"{where}: {why}", markup=False, soft_wrap=True, style="red"
        )

    def changed(self, tally: Tally) -> None:
        now = time.monotonic()
        if now - self._shown_at < (BAR_EVERY_S if self._bar else LINE_EVERY_S):
            return
        self._shown_at = now
        self._show(tally)

    def _show(self, tally: Tally) -> None:
        done = tally.finished if self._waits else tally.delivered
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task("indexing" if self._waits else "sending", total=None)
            self._bar.update(self._task, total=tally.sent, completed=done)
            return
        line = f"{tally.sent:,} sent, {done:,} finished" if self._waits else f"{tally.sent:,} sent, {done:,} delivered"
        if line != self._shown:
            self._console.print(line, soft_wrap=True)
            self._shown = line


@contextmanager
def progress(console: Console, *, waits: bool) -> Iterator[Progress]:
    """Shown while the block runs; the bar goes away with it."""
    if not console.is_terminal:
        yield Progress(console, None, waits=waits)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        yield Progress(console, bar, waits=waits)
