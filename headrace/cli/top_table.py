"""How `headrace top` shows a view: a table that keeps within 80 columns, and lines below it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from headrace.cli.top_view import Freshness, Questions, StageRow, View

WIDE = 90
"""From so many columns on, what a stage waits for has a column of its own."""
UNKNOWN = "?"
NONE = "-"
"""A stage has no such thing."""


@dataclass(frozen=True, kw_only=True)
class Screen:
    """A view as a rich renderable, which is laid out anew for each width."""

    view: View
    title: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.max_width >= WIDE
        yield Text(f"{self.title}  {self.view.at.astimezone():%H:%M:%S}", style="bold", overflow="ellipsis")
        yield Text()
        yield _stages(self.view.stages, wide=wide)
        yield Text()
        yield from _lines(self.view, wide=wide)


def _stages(rows: Iterable[StageRow], *, wide: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("\nstage", no_wrap=True)
    for heading in (
        "lag\nurgent",
        "lag\nbulk",
        "\noldest",
        "msgs\n/s",
        "chunks\n/s",
        "\nworkers",
        "\nbatch",
        "in\nhand",
        "errors\n/s",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    if wide:
        table.add_column("\nwaits for")
    for row in rows:
        cells: list[str | Text] = [
            Text(row.stage, style="red" if row.waits_for else ""),
            _lag(row, "urgent"),
            _lag(row, "bulk"),
            _oldest(row),
            number(row.messages_per_s),
            NONE if _lacks_chunks(row) else number(row.chunks_per_s),
            _workers(row),
            _batch(row),
            number(row.in_hand),
            Text(number(row.errors_per_s), style="red" if row.errors_per_s else ""),
        ]
        if wide:
            cells.append(Text(UNKNOWN if row.waits_for is None else ", ".join(row.waits_for), style="red"))
        table.add_row(*cells)
    return table


def _lacks_chunks(row: StageRow) -> bool:
    return row.stage in ("commit", "query")


def _lag(row: StageRow, lane: str) -> str:
    if row.lag is None:
        return UNKNOWN
    found = {str(of): count for of, count in row.lag.items()}
    return number(found[lane]) if lane in found else NONE


def _oldest(row: StageRow) -> str:
    if not row.oldest_s or (row.lag is not None and set(row.lag) - set(row.oldest_s)):
        return UNKNOWN
    return age(max(row.oldest_s.values()))


def _workers(row: StageRow) -> Text:
    if row.workers is None:
        return Text(UNKNOWN)
    # The mark is explained below.
    return Text(f"{row.workers}{'*' if row.rebalancing else ''}", style="yellow" if row.rebalancing else "")


def _batch(row: StageRow) -> str:
    if row.stage == "query":
        return NONE
    if row.batch_messages is None:
        return NONE if row.answering or row.workers == 0 else UNKNOWN
    return number(row.batch_messages)


def _lines(view: View, *, wide: bool) -> Iterable[Text]:
    yield Text.assemble(("freshness  ", "bold"), _freshness(view.freshness))
    yield Text.assemble(("questions  ", "bold"), _questions(view.questions))
    yield Text.assemble(("dead       ", "bold"), f"{number(view.dead_letters_per_s)} letters/s")
    if not wide:
        for row in view.stages:
            if row.waits_for:
                yield Text(f"{row.stage} waits for {', '.join(row.waits_for)}", style="red")
    rebalancing = [row.stage for row in view.stages if row.rebalancing]
    if rebalancing:
        yield Text(f"* partitions are being given out anew: {', '.join(rebalancing)}", style="yellow")
    if view.unknown:
        yield Text()
    for one in view.unknown:
        of = f" of {', '.join(one.stages)}" if 0 < len(one.stages) < len(view.stages) else ""
        yield Text(f"{', '.join(one.columns)}{of}: {one.why}", style="dim")


def _freshness(found: Iterable[Freshness]) -> str:
    parts = [
        f"{one.lane or 'all'}: p50 {one.p50_s:.3g} s, p99 {one.p99_s:.3g} s, {number(one.documents)} documents"
        for one in found
    ]
    return " · ".join(parts) if parts else "nothing went live lately"


def _questions(found: Questions) -> str:
    latency = ""
    if found.p50_ms is not None and found.p99_ms is not None:
        latency = f", p50 {found.p50_ms:.3g} ms, p99 {found.p99_ms:.3g} ms"
    return f"{number(found.per_s)}/s{latency} · degraded {_by(found.degraded_per_s)} · errors {_by(found.errors_per_s)}"


def _by(rates: Mapping[str, float] | None) -> str:
    if rates is None:
        return UNKNOWN
    if not rates:
        return "0/s"
    return ", ".join(f"{number(rate)}/s {of}" for of, rate in sorted(rates.items()))


def number(value: float | None) -> str:
    """In at most five characters up to 999 billion; unknown without one."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0"
    if value < 0.1:
        return "<0.1"
    if value < 9.95:
        return f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"
    if value < 9_999.5:
        return f"{value:.0f}"
    size, unit = next((size, unit) for size, unit in ((1e3, "k"), (1e6, "M"), (1e9, "G")) if value < 999.5 * size)
    return f"{value / size:.1f}{unit}" if value < 99.95 * size else f"{value / size:.0f}{unit}"


def age(seconds: float) -> str:
    """In the largest unit of which there is at least one."""
    if seconds <= 0:
        return "0"
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s" if seconds >= 9.95 else f"{seconds:.1f}s"
