"""`headrace verify`: is everything that Kafka holds in both stores, and nothing else?"""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.console import complain, err, out
from headrace.cli.exits import Exit
from headrace.cli.options import Json, MaybeTenant

if TYPE_CHECKING:
    from headrace.cli.repairing import Mended, Plan
    from headrace.cli.verifying import Report, Verifier
    from headrace.cli.worktable import WorkTable

ROUNDS = 3
"""A version that is let in by one redelivery may have rows that take another."""
RECUT_SHOWN = 10


def verify(
    tenant: MaybeTenant = None,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended from Kafka; asks first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --repair: only say what it would do.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --repair: don't ask.")] = False,
    settle_s: Annotated[
        float,
        typer.Option("--settle-s", min=0, help="Wait so many seconds for messages at work before and after comparing."),
    ] = 30,
    rate: Annotated[
        float, typer.Option("--rate", min=0.1, help="With --repair: redeliver so many documents a second at most.")
    ] = 100,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", min=1, help="With --repair: give up when the stages did nothing for so many seconds."
        ),
    ] = 300,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=0, help="List so many of each kind; --json lists all.")
    ] = 20,
    json: Json = False,
) -> None:
    """Compare what Kafka holds with the manifests and both stores, and list every difference.

    Exits with 1 if there is any. Documents on their way are no difference. --repair works on the records of differing
    documents again, as if they came again, and deletes rows that belong to nothing; stop it whenever you like and run
    it again. A store that was wiped is rebuilt by it.
    """
    from headrace.cli.steps import steps
    from headrace.cli.verifying import Verifier
    from headrace.config import load_settings

    if (dry_run or yes) and not repair:
        raise typer.BadParameter("goes with --repair", param_hint="--dry-run" if dry_run else "--yes")
    with steps(err()) as shown:
        verifier = Verifier(load_settings(), tenant, shown)
    table, report = _verified(verifier, settle_s)
    mended: Mended | None = None
    swept = 0
    if repair:
        mending = _plan(table)
        _say_plan(mending)
        if dry_run:
            _print(report, table, limit, json, plan=mending)
            raise typer.Exit(Exit.FINE if report.fine else Exit.FAILED)
        if not mending.nothing and _agreed(yes):
            table, report, mended, swept = repaired(
                verifier, table, report, settle_s=settle_s, rate=rate, idle_s=timeout
            )
    _print(report, table, limit, json, mended=mended, swept=swept)
    if not report.fine:
        raise typer.Exit(Exit.FAILED)


def _verified(verifier: "Verifier", settle_s: float) -> "tuple[WorkTable, Report]":
    from headrace.cli.steps import steps
    from headrace.cli.worktable import WorkTable

    table = WorkTable()
    with steps(err()) as shown:
        verifier.steps = shown
        return table, verifier.verify(table, settle_s)


def _plan(table: "WorkTable") -> "Plan":
    from headrace.cli.repairing import plan

    return plan(table)


def _say_plan(mending: "Plan") -> None:
    if mending.nothing:
        complain("Nothing to repair." if not mending.hopeless else "Nothing can be repaired from Kafka.")
        return
    complain(f"To repair: redeliver {mending.redeliver:,} documents, sweep {mending.sweep:,} rows.")
    if mending.hopeless:
        complain(f"{mending.hopeless:,} differences can't be repaired: Kafka no longer has what they take.")


def _agreed(yes: bool) -> bool:
    if yes:
        return True
    if not sys.stdin.isatty():
        complain("Not repaired: --yes does it without asking.")
        return False
    return typer.confirm("Do it?", err=True)


def repaired(
    verifier: "Verifier", table: "WorkTable", report: "Report", *, settle_s: float, rate: float, idle_s: float
) -> "tuple[WorkTable, Report, Mended, int]":
    """Mend and verify again, a few times; what the last verification found, what was mended, and rows swept."""
    from headrace.cli.repairing import Mended, Repair
    from headrace.cli.steps import steps

    done = Mended(redelivered=0, recut=[], passed=True)
    swept = 0
    for _ in range(ROUNDS):
        before = report
        if table.redeliveries():
            with steps(err()) as shown:
                mended = Repair(verifier, shown).redeliver(table, rate=rate, idle_s=idle_s)
            done = Mended(redelivered=done.redelivered + mended.redelivered, recut=mended.recut, passed=mended.passed)
            if not mended.passed:
                complain(f"Nothing has moved for {idle_s:.0f} s: are all workers running? (`headrace status`)")
            table, report = _verified(verifier, settle_s)
        # What was redelivered decides what belongs to nothing.
        if next(table.sweeps(), None) is not None:
            with steps(err()) as shown:
                swept += Repair(verifier, shown).sweep(table)
            table, report = _verified(verifier, settle_s)
        if report.fine or not done.passed or report.differences == before.differences:
            break
    return table, report, done, swept


def _print(
    report: "Report",
    table: "WorkTable",
    limit: int,
    json: bool,
    *,
    plan: "Plan | None" = None,
    mended: "Mended | None" = None,
    swept: int = 0,
) -> None:
    if json:
        _print_json(report, table, plan, mended, swept)
    else:
        _print_report(report, table, limit)
        if mended is not None:
            out().print(f"Repaired: {mended.redelivered:,} documents redelivered, {swept:,} rows swept.")
            for name in mended.recut[:RECUT_SHOWN]:
                complain(f"{name}: is cut into other chunks than when it went live; publish it again, changed")
    if report.at_work:
        complain(f"{report.at_work:,} messages at work; differences of documents on their way may be passing")
    if report.changing:
        complain(f"{report.changing:,} documents changed each time they were looked at, and were not judged")


def _print_report(report: "Report", table: "WorkTable", limit: int) -> None:
    from rich.text import Text

    print_differences(report, table, limit)
    out().print(Text(summary(report)), soft_wrap=True)


def print_differences(report: "Report", table: "WorkTable", limit: int) -> None:
    """Of each kind so many, and how many there are."""
    from rich.text import Text

    from headrace.verification import MEANINGS

    console = out()
    for kind, count in (report.differences | report.notes).items():
        console.print(Text(f"{kind}: {count:,} ({MEANINGS[kind]})", style="bold"), soft_wrap=True)
        for difference in table.found(kind, limit):
            name = f"{difference.tenant}/{difference.doc_id}"
            remedy = "" if difference.remedy or kind in report.notes else "; can't be repaired from Kafka"
            shown = name if name.isprintable() else repr(name)
            console.print(Text(f"  {shown}: {difference.what}{remedy}"), soft_wrap=True)
        if count > limit:
            console.print(Text(f"  … and {count - limit:,} more", style="dim"))


def summary(report: "Report") -> str:
    """One sentence for people."""
    found = sum(report.differences.values())
    verdict = "no differences" if not found else f"{found:,} difference{'' if found == 1 else 's'}"
    poison = f" ({report.poison:,} of them dead letters)" if report.poison else ""
    return (
        f"{report.records:,} records{poison}, {report.manifests:,} manifests, {report.rows['milvus']:,} rows of Milvus "
        f"and {report.rows['opensearch']:,} of OpenSearch compared in {report.seconds:.1f} s: {verdict}"
    )


def _print_json(report: "Report", table: "WorkTable", plan: "Plan | None", mended: "Mended | None", swept: int) -> None:
    """One document, written difference by difference: there may be more of them than fit in memory."""
    import msgspec

    repair = None if mended is None else {**msgspec.to_builtins(mended), "swept": swept}
    head = {**msgspec.to_builtins(report), "fine": report.fine, "plan": plan, "repair": repair}
    # Counts and what they count are apart: `found` has the differences, then the notes.
    sys.stdout.write(msgspec.json.encode(head).decode()[:-1] + ',"found":[')
    first = True
    for kind in (*report.differences, *report.notes):
        for difference in table.found(kind):
            sys.stdout.write(("" if first else ",") + "\n" + msgspec.json.encode(difference).decode())
            first = False
    sys.stdout.write("\n]}\n")
