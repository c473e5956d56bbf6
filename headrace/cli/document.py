"""`headrace document`: where is it?"""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.console import complain, out, print_json
from headrace.cli.exits import Exit
from headrace.cli.options import Json, Tenant

if TYPE_CHECKING:
    from headrace.cli.whereabouts import Whereabouts

PLACES = {
    "unknown": "unknown",
    "accepted": "accepted, on its way to the stores",
    "storing": "being stored",
    "live": "live: queries see it",
    "deleted": "deleted",
    "failed": "failed",
}


def document(
    doc: Annotated[str, typer.Argument(metavar="DOC", help="Its doc_id.", show_default=False)],
    tenant: Tenant = "default",
    json: Json = False,
) -> None:
    """Where a document is: accepted, stored, live, deleted, or why it failed."""
    from headrace import wiring
    from headrace.cli.whereabouts import locate
    from headrace.config import load_settings
    from schemas import Key
    from schemas.key import check_doc_id

    try:
        key = Key(tenant, check_doc_id(doc))
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="DOC") from exc
    settings = load_settings()
    manifest = wiring.build_manifests(settings).read([key])[key].manifest
    found = locate(key, manifest, settings.kafka)
    if json:
        print_json(found)
    elif found.place != "unknown":
        _print(found)
    if found.place == "unknown":
        complain(f"nothing is known of document {key}: not accepted yet, or never sent")
        raise typer.Exit(Exit.FAILED)


def _print(found: "Whereabouts") -> None:
    from rich.table import Table
    from rich.text import Text

    intake, live = found.manifest.intake, found.manifest.live
    rows: list[tuple[str, str]] = [("document", f"{found.tenant}/{found.doc_id}"), ("place", PLACES[found.place])]
    if intake:
        what = "a deletion" if intake.deleted else _chunks(intake.chunks)
        rows.append(("accepted", f"version {intake.revision.version} at {_when(intake.at)}, {what}"))
    for arrival in found.arriving:
        stored = ", ".join(f"{count} of {arrival.total} in {store}" for store, count in arrival.stored.items())
        rows.append(("arriving", f"version {arrival.version}: {stored}"))
    if live:
        what = "deleted" if live.deleted else _chunks(live.chunks)
        rows.append(("live", f"version {live.revision.version} since {_when(live.at)}, {what}"))
    for event in found.events:
        why = f": {event.error.code}, {event.error.message}" if event.error else ""
        version = "" if event.version is None else f" version {event.version}"
        rows.append(("event", f"{_when(event.at)} {event.status}{version} ({event.stage}){why}"))
    rows += [
        ("dead letter", f"{letter.id} {letter.code} ({letter.stage}): {letter.message}")
        for letter in found.dead_letters
    ]
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, said in rows:
        table.add_row(Text(name, style="bold"), Text(said))
    out().print(table)


def _chunks(count: int) -> str:
    return f"{count:,} chunk{'' if count == 1 else 's'}"


def _when(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
