"""What an evaluation found, for people."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from headrace.cli.evaluating import Tuned
from headrace.evaluation import Compared, Interval, Measured, Relevance, Report, difference
from headrace.evaluation.measures import DOCUMENT_MEASURES

EVIDENCE_SHOWN = ("evidence@1", "evidence@5", "evidence@10", "evidence in 500 words", "evidence in 1,000 words")
"""As many as 120 columns have room for; the JSON has all."""
MIN_RELEVANCE = "HEADRACE_LLM__MIN_RELEVANCE"


def print_report(console: Console, report: Report) -> None:
    """One table of documents, one of evidence: a way of searching a line."""
    console.print(
        f"{report.name}: {report.questions:,} questions · {report.encoder} · chunks {report.chunking}", style="dim"
    )
    for title, measures in (("Documents", DOCUMENT_MEASURES), ("Evidence", EVIDENCE_SHOWN)):
        columns = [name for name in measures if any(name in one.measures for one in report.settings)]
        if columns:
            console.print(_table(title, report, columns))
    note = "Behind each mean its 95 % bootstrap interval."
    if len(report.settings) > 1:
        note += " *: worse than the best of its column by a paired bootstrap."
    console.print(Text(note, style="dim"))


def _table(title: str, report: Report, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("setting", no_wrap=True)
    best: dict[str, Measured] = {}
    for name in columns:
        table.add_column(name.replace("evidence in ", "in ").replace("evidence@", "first "), no_wrap=True)
        best[name] = max(
            (one.measures[name] for one in report.settings if name in one.measures), key=lambda one: one.interval.mean
        )
    for one in report.settings:
        table.add_row(one.setting.name, *(_cell(one.measures.get(name), best[name]) for name in columns))
    return table


def _cell(found: Measured | None, best: Measured) -> Text:
    if found is None:
        return Text("")
    worse = difference(best.values, found.values).high < 0 if best.values and found.values else False
    interval = found.interval
    return Text.assemble(
        (f"{interval.mean:.3f}", "bold" if interval.mean == best.interval.mean else ""),
        "*" if worse else " ",
        (f" {_short(interval.low)}–{_short(interval.high)}", "dim"),
    )


def _share(interval: Interval, style: str) -> Text:
    low, high = _short(interval.low), _short(interval.high)
    return Text.assemble((f"{interval.mean:.3f}", style), (f"  {low}–{high}", "dim"))


def _short(number: float) -> str:
    """`.731`"""
    return f"{number:.3f}".removeprefix("0") if number < 1 else "1"


def print_tuned(console: Console, tuned: Tuned, split: str) -> None:
    table = Table(title=f"Tuned on {split}", title_justify="left", title_style="bold")
    for name in ("chunks", "setting", tuned.measure):
        table.add_column(name)
    best = max(trial.value for trial in tuned.trials)
    for trial in tuned.trials:
        style = "bold" if trial.value == best else ""
        table.add_row(trial.chunking, trial.setting, f"{trial.value:.4f}", style=style)
    console.print(table)
    chosen = f"Chosen: {tuned.setting.name}, chunks {tuned.chunking.max_tokens}/{tuned.chunking.overlap_tokens}"
    console.print(chosen + (f", {tuned.passages} passages" if tuned.passages is not None else ""))


def print_relevance(console: Console, relevance: Relevance) -> None:
    """What each threshold would do, and which one to set."""
    tuned_on, on = relevance.tuned_on, relevance.reported_on
    table = Table(title="When to say that nothing was found", title_justify="left", title_style="bold")
    table.add_column("least cosine", no_wrap=True)
    table.add_column(f"answerable ({on.answerable:,}): answered", no_wrap=True)
    table.add_column(f"unanswerable ({on.unanswerable:,}): “I don't know”", no_wrap=True)
    for one in relevance.thresholds:
        style = "bold" if one.threshold == relevance.recommended else ""
        table.add_row(Text(f"{one.threshold:.2f}", style), _share(one.answered, style), _share(one.unknown, style))
    console.print(table)
    if relevance.recommended is None:
        chosen = f"No threshold tells them apart: leave {MIN_RELEVANCE} unset"
    else:
        chosen = f"Recommended: {MIN_RELEVANCE}={relevance.recommended:.2f}"
    others = f"{tuned_on.answerable:,} answerable and {tuned_on.unanswerable:,} unanswerable others"
    console.print(Text(f"{chosen}, tuned on {others}."))


def print_comparison(console: Console, compared: Compared, *, title: str = "Against the baseline") -> None:
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("setting", "measure", "before", "after", "difference, 95 %", ""):
        table.add_column(name)
    for change in compared.changes:
        verdict = ("fell", "red") if change.fell else ("rose", "green") if change.rose else ("", "")
        by = f"{change.by.mean:+.4f} ({change.by.low:+.4f} to {change.by.high:+.4f})"
        by += "" if change.paired else ", not paired"
        before, after = f"{change.before:.4f}", f"{change.after:.4f}"
        table.add_row(change.setting, change.measure, before, after, by, Text(*verdict))
    console.print(table)
    if compared.missing:
        console.print(Text(f"Only in the baseline: {', '.join(compared.missing)}", style="yellow"))
