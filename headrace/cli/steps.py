"""How long work of several steps goes: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

LINE_EVERY_S = 5.0
BAR_EVERY_S = 0.1


class Shown:
    """Shows the step that was told of last: how much of it is done, and of how much where that is known."""

    def __init__(self, console: Console, bar: Progress | None) -> None:
        self._console = console
        self._bar = bar
        self._task: TaskID | None = None
        self._shown_at = time.monotonic()

    def show(self, what: str, done: int, total: int | None = None) -> None:
        now = time.monotonic()
        if now - self._shown_at < (LINE_EVERY_S if self._bar is None else BAR_EVERY_S):
            return
        self._shown_at = now
        count = f"{done:,}" if total is None else f"{done:,} of {total:,}"
        if self._bar is None:
            self._console.print(f"{what}: {count}", soft_wrap=True)
            return
        if self._task is None:
            self._task = self._bar.add_task("", count="")
        self._bar.update(self._task, description=what, count=count, completed=done, total=total)


@contextmanager
def steps(console: Console) -> Iterator[Shown]:
    """Shown while the block runs; the bar goes away with it."""
    if not console.is_terminal:
        yield Shown(console, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield Shown(console, bar)
