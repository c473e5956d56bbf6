"""How long work of several steps goes: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

LINE_EVERY_S = 5.0
BAR_EVERY_S = 0.1


class Shown:
    """Shows the step that was told of last: how much of it is done, and of how much where that is known."""

    def __init__(self, console: Console, bar: Progress | None, line_every_s: float = LINE_EVERY_S) -> None:
        self._console = console
        self._every_s = line_every_s if bar is None else BAR_EVERY_S
        self._bar = bar
        self._task: TaskID | None = None
        self._shown_at = time.monotonic()

    def show(self, what: str, done: int, total: int | None = None, *, count: str | None = None) -> None:
        """`count` says it in other words than `done of total`, which then only the bar shows."""
        now = time.monotonic()
        if now - self._shown_at < self._every_s:
            return
        self._shown_at = now
        if count is None:
            count = f"{done:,}" if total is None else f"{done:,} of {total:,}"
        if self._bar is None:
            self._console.print(f"{what}: {count}", soft_wrap=True)
            return
        if self._task is None:
            self._task = self._bar.add_task("", count="")
        self._bar.update(self._task, description=what, count=count, completed=done, total=total)

    def seconds(self, what: str) -> Callable[[float], None]:
        """For who counts down."""
        return lambda left_s: self.show(what, 0, count=f"{left_s:.0f} s")


@contextmanager
def steps(console: Console, *, line_every_s: float = LINE_EVERY_S) -> Iterator[Shown]:
    """Shown while the block runs; the bar goes away with it."""
    if not console.is_terminal:
        yield Shown(console, None, line_every_s)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield Shown(console, bar)
