"""`headrace up`, `down` and `status`."""

from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.console import complain, err, out, print_json
from headrace.cli.exits import Exit
from headrace.cli.options import Json

if TYPE_CHECKING:
    from headrace.cli.condition import Condition


def up(
    servers_only: Annotated[
        bool, typer.Option("--servers-only", help="Kafka, OpenSearch and Milvus, no workers.")
    ] = False,
) -> None:
    """Start Kafka, OpenSearch, Milvus and the six workers on this machine, as processes: no Docker needed.

    Returns when all are ready. What runs already is left as it is.
    """
    from headrace.cli.local import bring_up
    from headrace.config import load_settings

    bring_up(load_settings(), servers_only=servers_only, say=say)
    out().print("everything is up; `headrace down` stops it")


def down() -> None:
    """Stop what `headrace up` started; the data stays."""
    from headrace.cli.generation_workers import all_of
    from headrace.config import load_settings
    from headrace.localstack.stack import LocalStack

    settings = load_settings()
    for workers in all_of(settings.worker.data_dir):
        if workers.running():
            say(f"stopping the workers of generation {workers.name}")
            workers.stop()
    LocalStack(settings.local, say).down()


def status(json: Json = False) -> None:
    """Servers, workers, the lag of each stage by lane, what the stores hold for each tenant, and the dead letters.

    Exits with 1 if something isn't as it should be: a server away, a worker not ready, or counts that differ while
    nothing is on its way.
    """
    from headrace.cli.condition import condition
    from headrace.config import load_settings

    found = condition(load_settings())
    if json:
        print_json(found)
    else:
        _print(found)
    if found.problems:
        raise typer.Exit(Exit.FAILED)


def say(line: str) -> None:
    """Progress, as it goes."""
    err().print(line, markup=False, soft_wrap=True)


def _print(found: "Condition") -> None:
    from rich.table import Table
    from rich.text import Text

    console = out()
    processes = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("process", "state", "pid", "up", "address", ""):
        processes.add_column(heading, justify="right" if heading in ("pid", "up") else "left")
    for process in found.processes:
        processes.add_row(
            process.name,
            Text(process.state, style="green" if process.ready else "red"),
            str(process.pid or ""),
            uptime(process.uptime_s),
            process.address,
            Text("ready" if process.ready and process.kind == "worker" else process.says),
        )
    console.print(processes)
    if found.lag:
        console.print()
        lag = Table(box=None, pad_edge=False, header_style="bold")
        lag.add_column("lag")
        for lane in ("urgent", "bulk"):
            lag.add_column(lane, justify="right")
        for stage in dict.fromkeys(entry.stage for entry in found.lag):
            by_lane = {entry.lane: f"{entry.messages:,}" for entry in found.lag if entry.stage == stage}
            lag.add_row(stage, by_lane.get("urgent", ""), by_lane.get("bulk", ""))
        console.print(lag)
    if found.tenants:
        console.print()
        tenants = Table(box=None, pad_edge=False, header_style="bold")
        tenants.add_column("tenant")
        for heading in ("documents", "chunks", "deleted", "milvus", "opensearch"):
            tenants.add_column(heading, justify="right")
        for count in found.tenants:
            tenants.add_row(
                count.tenant,
                f"{count.documents:,}",
                f"{count.chunks:,}",
                f"{count.deleted:,}",
                f"{count.milvus_documents:,} / {count.milvus_chunks:,}",
                f"{count.opensearch_documents:,} / {count.opensearch_chunks:,}",
            )
        console.print(tenants)
    if any(found.dead_letters.values()):
        console.print()
        counts = ", ".join(f"{count:,} {state}" for state, count in found.dead_letters.items() if count)
        console.print(f"dead letters  {counts}")
    for problem in found.problems:
        complain(problem)


def uptime(seconds: float) -> str:
    """In the largest unit that gives a whole number."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds else ""
