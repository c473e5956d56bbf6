"""What every benchmark prints: tables, targets and curves, with the machine that they were measured on.

A benchmark is a module with `NAME`, a docstring whose first line says what it measures, `run(options) -> Report`, and

    if __name__ == "__main__":
        report.main(NAME, __doc__, run, arguments)   # `arguments(parser)` adds its own options, and may be left out

So each is `python -m bench.NAME [--quick] [--rounds N] [--json] [--out DIR]`, and `python -m bench` runs them all.
`options.quick` is a run of half a minute or so that shows that it works: its figures are not to be quoted.
Both sides of a ratio are measured in every round, one after the other, so that what else the machine does hits both.
"""

import argparse
import math
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec
from rich.table import Table as RichTable

from headrace.cli.console import out

Options = argparse.Namespace


class Spread(msgspec.Struct, frozen=True):
    """A figure over the rounds. Printed as `0.91 (0.88-0.93)`, or as the one value that there is."""

    median: float
    lowest: float
    highest: float
    rounds: int

    def text(self, digits: int = 2) -> str:
        if self.rounds == 1:
            return f"{self.median:,.{digits}f}"
        return f"{self.median:,.{digits}f} ({self.lowest:,.{digits}f}-{self.highest:,.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values), len(values))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all doesn't exceed; `share` from 0 to 1."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Table(msgspec.Struct, frozen=True):
    """Cells as they are to be read; numbers are right-aligned, so the first column alone holds words."""

    title: str
    columns: list[str]
    rows: list[list[str]]


class Target(msgspec.Struct, frozen=True):
    """What issue or design asks for, and what was measured: the median, where there are rounds."""

    what: str
    bound: Literal["at least", "at most"]
    wanted: float
    measured: float
    unit: str = ""

    @property
    def met(self) -> bool:
        return self.measured >= self.wanted if self.bound == "at least" else self.measured <= self.wanted


class Plot(msgspec.Struct, frozen=True):
    """Curves over one x-axis: by their names, the points in the order of x. `below` are steps over the same x-axis, in
    a narrower field with a y-axis of its own.
    """

    title: str
    x: str
    y: str
    lines: dict[str, list[tuple[float, float]]]
    log_x: bool = False
    below: dict[str, list[tuple[float, float]]] = {}
    y_below: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`figures` has everything that was measured, round by round, as numbers."""

    name: str
    what: str
    tables: list[Table]
    figures: dict[str, Any]
    targets: list[Target] = []
    notes: list[str] = []
    plots: list[Plot] = []
    machine: str = ""
    at: str = ""
    command: str = ""
    seconds: float = 0.0


def main(
    name: str,
    doc: str | None,
    run: Callable[[Options], Report],
    arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> None:
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="half a minute, to see that it works; quote nothing of it")
    parser.add_argument("--rounds", type=int, help="how often both sides are measured")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--out", type=Path, help="also write NAME.json and the plots into this folder")
    if arguments is not None:
        arguments(parser)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    started = datetime.now(UTC)
    report = run(options)
    report = msgspec.structs.replace(
        report,
        machine=f"{machine()}, load {load:.1f} at the start",
        at=f"{started:%Y-%m-%d}",
        command=" ".join([f"python -m bench.{name}", *_own_options(sys.argv[1:])]),
        seconds=(datetime.now(UTC) - started).total_seconds(),
    )
    if options.out is not None:
        save(report, options.out)
    if options.json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    else:
        show(report)


def _own_options(arguments: Sequence[str]) -> list[str]:
    """Those that change what is measured: where the report went to is nobody's business."""
    given = list(arguments)
    if "--out" in given:
        place = given.index("--out")
        del given[place : place + 2]
    return given


def machine() -> str:
    names = [line.split(":", 1)[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    processor = names[0].strip() if names else platform.machine()
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{processor}, {os.cpu_count()} cores, {memory_gb:.0f} GB, torch {version('torch')}"


def show(report: Report) -> None:
    console = out()
    console.print(f"[bold]{report.name}[/bold]: {report.what}")
    console.print(f"{report.machine}; {report.at}, {report.seconds:.0f} s")
    for table in (*report.tables, *_target_table(report.targets)):
        shown = RichTable(title=table.title, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for place, column in enumerate(table.columns):
            shown.add_column(column, justify="right" if place else "left")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    for note in report.notes:
        console.print(note)


def save(report: Report, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    encoded = msgspec.json.format(msgspec.json.encode(report))
    (folder / f"{report.name}.json").write_bytes(encoded + b"\n")
    for place, plot in enumerate(report.plots):
        draw(plot, folder / plot_file(report, place))


def plot_file(report: Report, place: int) -> str:
    return f"{report.name}{'' if place == 0 else f'-{place + 1}'}.png"


def markdown(report: Report, plots: str = "results") -> str:
    """The report as it stands in a document; its plots are in that folder, as the document names it."""
    lines = [
        f"```\n{report.command}\n```",
        "",
        f"{report.machine}. {report.at}, {report.seconds / 60:.1f} minutes.",
        "",
    ]
    for table in (*report.tables, *_target_table(report.targets)):
        if table.title:
            lines += [f"{table.title}:", ""]
        lines += [_row(table.columns), _row(["---", *["---:"] * (len(table.columns) - 1)])]
        lines += [*map(_row, table.rows), ""]
    for note in report.notes:
        lines += [note, ""]
    for place, plot in enumerate(report.plots):
        lines += [f"![{plot.title}]({plots}/{plot_file(report, place)})", ""]
    return "\n".join(lines)


def draw(plot: Plot, file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    fields = [(plot.lines, plot.y), *([(plot.below, plot.y_below)] if plot.below else [])]
    figure, grid = plt.subplots(
        len(fields),
        figsize=(7, 4),
        layout="constrained",
        sharex=True,
        squeeze=False,
        height_ratios=[3, 2][: len(fields)],
    )
    for place, ((lines, y), [axes]) in enumerate(zip(fields, grid, strict=True)):
        for name, points in lines.items():
            how = {"drawstyle": "steps-post"} if place else {"marker": "o", "markersize": 3}
            axes.plot([x for x, _ in points], [y for _, y in points], label=name, **how)
        axes.set(ylabel=y)
        if plot.log_x:
            axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend()
    grid[0][0].set(title=plot.title)
    grid[-1][0].set(xlabel=plot.x)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _target_table(targets: Sequence[Target]) -> list[Table]:
    if not targets:
        return []
    rows = [
        [
            target.what,
            f"{target.bound} {target.wanted:g}{target.unit}",
            f"{target.measured:,.2f}{target.unit}",
            "yes" if target.met else "no",
        ]
        for target in targets
    ]
    return [Table("", ["target", "wanted", "measured", "met"], rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
