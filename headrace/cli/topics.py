"""`headrace topics`: create and show."""

from typing import Any

import typer

from headrace.cli.console import err, out, print_json
from headrace.cli.exits import Exit
from headrace.cli.options import Json

DAY_MS = 86_400_000
HOUR_MS = 3_600_000

app = typer.Typer(no_args_is_help=True, help="The topics that documents, queries and answers travel on.")


@app.command()
def create(json: Json = False) -> None:
    """Create the topics that are missing; those that are there stay as they are."""
    from headrace.cli.kafka import QUIET
    from headrace.config import load_settings
    from topics.provisioning import create_topics

    kafka = load_settings().kafka
    created = create_topics(
        {**kafka.confluent(), **QUIET}, kafka.names, partitions=kafka.partitions, replication=kafka.replication
    )
    if json:
        print_json({"created": created})
    else:
        out().print(f"created {', '.join(created)}" if created else "all topics are there", soft_wrap=True)


@app.command()
def show(json: Json = False) -> None:
    """The topics in travel order, and whether they are there; exits with 1 if one is missing."""
    from headrace.cli.kafka import QUIET
    from headrace.config import load_settings
    from topics import TOPICS
    from topics.provisioning import existing_topics
    from topics.table import BY_NAME, UNTOLD

    kafka = load_settings().kafka
    named = [(kafka.names.topic(topic.name), topic) for topic in TOPICS]
    if kafka.names.generation:
        named += [(kafka.names.untold(name), BY_NAME[name]) for name in UNTOLD]
    there = existing_topics({**kafka.confluent(), **QUIET})
    rows: list[dict[str, Any]] = [
        {
            "topic": name,
            "partitions": there.get(name),
            "key": topic.key,
            "value": topic.message_type.__name__ if topic.message_type else "bytes",
            "cleanup": topic.cleanup,
            "retention_ms": topic.retention_ms,
            "max_bytes": topic.max_bytes,
            "written_by": topic.written_by,
            "read_by": topic.read_by,
        }
        for name, topic in named
    ]
    if json:
        print_json(rows)
    else:
        _print(rows)
    if any(row["partitions"] is None for row in rows):
        err().print("missing topics: `headrace topics create` makes them", soft_wrap=True)
        raise typer.Exit(Exit.FAILED)


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("topic", no_wrap=True)
    table.add_column("partitions", justify="right")
    for heading in ("value", "cleanup", "kept"):
        table.add_column(heading, no_wrap=True)
    for heading in ("written by", "read by"):
        table.add_column(heading)
    for row in rows:
        table.add_row(
            row["topic"],
            "[red]missing[/red]" if row["partitions"] is None else str(row["partitions"]),
            row["value"],
            row["cleanup"],
            kept(row["retention_ms"]),
            ", ".join(row["written_by"]),
            ", ".join(row["read_by"]),
        )
    out().print(table)


def kept(retention_ms: int | None) -> str:
    """How long a topic keeps its records, in words."""
    if retention_ms is None:
        return "for ever"
    if retention_ms % DAY_MS == 0:
        return f"{retention_ms // DAY_MS} d"
    return f"{retention_ms / HOUR_MS:g} h"
