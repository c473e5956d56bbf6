"""`headrace publish` and `headrace delete`."""

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.console import complain, out, print_json
from headrace.cli.exits import Exit
from headrace.cli.options import Json, Tenant, Urgent, check_tenant

if TYPE_CHECKING:
    from headrace.cli.progress import Progress
    from headrace.cli.publishing import Outgoing, Tally
    from headrace.cli.sources import Problem, Skipped
    from headrace.config import Settings

UNFINISHED_SHOWN = 10

Wait = Annotated[bool, typer.Option("--wait", help="Wait until each is indexed (or deleted, unchanged, superseded).")]
Timeout = Annotated[
    float,
    typer.Option("--timeout", min=1, help="With --wait: give up when none was finished for so many seconds."),
]


def publish(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Files (.txt .md .markdown .html .htm), JSON Lines (.jsonl .ndjson, .gz too), folders, - for stdin.",
            show_default=False,
        ),
    ],
    tenant: Annotated[
        str | None,
        typer.Option(
            "--tenant", "-t", help="Whose documents. [default: a line's own, else default]", callback=check_tenant
        ),
    ] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="Put this tag on every document; repeatable.")] = None,
    doc_id: Annotated[
        str | None,
        typer.Option("--doc-id", help="The doc_id of the one file; with -, stdin is the text of this document."),
    ] = None,
    urgent: Urgent = False,
    wait: Wait = False,
    timeout: Timeout = 600,
    json: Json = False,
) -> None:
    """Send documents to be indexed.

    A file's doc_id is its name, in a folder its path from there; its source is its file: URI, its title the first
    heading. A JSON line is a Document with `doc_id` (or `id`) and `text`; `"op": "delete"` deletes. The tenant is
    `default` unless --tenant or the line says otherwise. What can't be read is named and the rest goes on. Sending
    again what hasn't changed is harmless.
    """
    from headrace.cli.publishing import outgoing
    from headrace.cli.sources import Labels, read_paths
    from headrace.config import load_settings
    from schemas.key import check_doc_id

    if doc_id is not None:
        _check_one_file(paths)
        try:
            check_doc_id(doc_id)
        except ValueError as exc:
            raise typer.BadParameter(str(exc), param_hint="--doc-id") from exc
    settings = load_settings()
    labels = Labels(tenant=tenant, tags=tuple(tag or ()), doc_id=doc_id)
    readings = read_paths(paths, labels, sys.stdin.buffer)
    send((outgoing(reading) for reading in readings), settings, urgent, timeout if wait else None, json)


def delete(
    context: typer.Context,
    docs: Annotated[list[str] | None, typer.Argument(metavar="DOC", help="doc_ids.", show_default=False)] = None,
    tenant: Tenant = "default",
    everything: Annotated[
        bool, typer.Option("--all", help="Every document that the tenant has; asks first. Takes --tenant.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --all: don't ask.")] = False,
    version: Annotated[
        int | None,
        typer.Option("--version", help="Delete as of this version, where documents carry versions of their own."),
    ] = None,
    urgent: Urgent = False,
    wait: Wait = False,
    timeout: Timeout = 600,
    json: Json = False,
) -> None:
    """Delete documents: no query sees them any more, and their rows go from both stores.

    With --all, also what waits in Kafka and what could not be read. Kafka's own compaction then takes their texts from
    its topics.
    """
    from headrace.cli.publishing import deletion
    from headrace.config import load_settings
    from schemas import Key
    from schemas.key import check_doc_id

    if everything:
        if docs or version is not None or urgent:
            raise typer.BadParameter("takes no DOC, --version and --urgent", param_hint="--all")
        source = context.get_parameter_source("tenant")
        if source is None or source.name == "DEFAULT":
            raise typer.BadParameter("say whose documents: --tenant", param_hint="--all")
        _delete_all(tenant, yes, timeout if wait else None, json)
        return
    if not docs:
        raise typer.BadParameter("name documents, or give --all --tenant", param_hint="DOC")
    try:
        records = [deletion(Key(tenant, check_doc_id(doc)), version) for doc in docs]
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="DOC") from exc
    send(records, load_settings(), urgent, timeout if wait else None, json)


def _delete_all(tenant: str, yes: bool, wait_s: float | None, json: bool) -> None:
    from headrace.cli.erasing import Erasure
    from headrace.config import load_settings

    settings = load_settings()
    erasure = Erasure(settings, tenant)
    count = erasure.count()
    if count and not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter(f"would delete {count:,} documents of {tenant}; --yes does it", param_hint="--all")
        typer.confirm(f"Delete all {count:,} documents of {tenant}?", abort=True, err=True)
    send(erasure.deletions(), settings, False, wait_s, json)


def send(
    records: "Iterable[Outgoing | Problem | Skipped]",
    settings: "Settings",
    urgent: bool,
    wait_s: float | None,
    json: bool,
) -> None:
    """Publish with progress, say how it went, and exit 1 if anything failed."""
    from headrace.auth import Bearer
    from headrace.cli.publishing import publish

    bearer = Bearer(settings.auth)
    with _progress(waits=wait_s is not None) as progress:
        tally = publish(records, settings.kafka, progress, urgent=urgent, wait_s=wait_s, bearer=bearer)
    if json:
        print_json(tally)
    else:
        out().print(summary(tally, waited=wait_s is not None))
    for where in tally.unfinished[:UNFINISHED_SHOWN]:
        complain(f"{where}: has no outcome yet; `headrace document` says where it is")
    if len(tally.unfinished) > UNFINISHED_SHOWN:
        complain(f"… and {len(tally.unfinished) - UNFINISHED_SHOWN} more; `headrace status` says who lags")
    if not tally.fine:
        raise typer.Exit(Exit.FAILED)


def summary(tally: "Tally", *, waited: bool) -> str:
    """One sentence for people."""
    parts = [f"{tally.delivered:,} sent ({tally.sent_bytes / 1e6:,.1f} MB)"]
    if waited:
        parts += [f"{count:,} {status}" for status, count in tally.outcomes.items() if count]
        parts += [f"{len(tally.unfinished):,} not finished"] if tally.unfinished else []
    parts += [f"{tally.problems:,} not readable or too large"] if tally.problems else []
    parts += [f"{tally.undelivered:,} not delivered"] if tally.undelivered else []
    parts += [f"{tally.skipped:,} files of other kinds skipped"] if tally.skipped else []
    return f"{', '.join(parts)}, in {tally.seconds:.1f} s"


def _check_one_file(paths: list[str]) -> None:
    from pathlib import Path

    from headrace.cli.sources import is_json_lines

    if len(paths) != 1 or Path(paths[0]).is_dir() or is_json_lines(paths[0]):
        raise typer.BadParameter("names one document: give one text file, or -", param_hint="--doc-id")


def _progress(*, waits: bool) -> "AbstractContextManager[Progress]":
    from headrace.cli.console import err
    from headrace.cli.progress import progress

    return progress(err(), waits=waits)
