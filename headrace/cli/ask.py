"""`headrace ask`."""

import sys
import uuid
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.console import complain, out, print_json
from headrace.cli.exits import Exit
from headrace.cli.filters import HELP, parse_filters
from headrace.cli.options import Json, Tenant

if TYPE_CHECKING:
    from schemas import Answer, Delta


def ask(
    question: Annotated[str, typer.Argument(help="What to ask, or the words to search for.", show_default=False)],
    search: Annotated[bool, typer.Option("--search", help="Hits only, no answer.")] = False,
    conditions: Annotated[list[str] | None, typer.Option("--filter", "-f", metavar="KEY=VALUE", help=HELP)] = None,
    filters: Annotated[
        str | None, typer.Option("--filters", metavar="JSON", help="The contract's filters, as they are sent.")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, max=100, help="Hits at most.")] = 10,
    tenant: Tenant = "default",
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, max=3600, help="Seconds; past them nobody works on it any longer.")
    ] = 30,
    stream: Annotated[bool, typer.Option("--stream", help="Show the answer's text as it is made.")] = False,
    json: Json = False,
) -> None:
    """Ask the documents; the answer quotes what it rests on.

    The query goes out on `queries` and the reply comes on `replies`, as any app would do it.
    """
    from headrace.cli.answers import print_answer
    from headrace.cli.asking import Asker
    from headrace.config import load_settings
    from schemas import Query

    if not 1 <= len(question) <= 8192:
        raise typer.BadParameter("a question has 1 to 8192 characters", param_hint="QUESTION")
    query = Query(
        query=question,
        tenant=tenant,
        mode="search" if search else "answer",
        top_k=top_k,
        filters=_filters(conditions or [], filters),
        stream=stream,
        request_id=str(uuid.uuid4()),
    )
    with Asker(load_settings().kafka) as asker:
        answer = asker.ask(query, timeout_s=timeout, on_piece=_print_piece if stream and not json else None)
    if stream and not json:
        sys.stderr.write("\n\n")
    if json:
        print_json(answer)
    else:
        print_answer(out(), answer)
    if answer.error is not None:
        if json:
            complain(f"{answer.error.code}: {answer.error.message}")
        raise typer.Exit(Exit.FAILED)


def _filters(conditions: list[str], given: str | None) -> dict[str, Any]:
    import orjson

    try:
        parsed = orjson.loads(given) if given is not None else {}
    except orjson.JSONDecodeError as exc:
        raise typer.BadParameter(f"is not JSON: {exc}", param_hint="--filters") from exc
    if not isinstance(parsed, dict):
        raise typer.BadParameter("is not a JSON object", param_hint="--filters")
    try:
        return parse_filters(conditions, parsed)
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="--filter") from exc


def _print_piece(piece: "Answer | Delta") -> None:
    """The text so far goes to stderr: the whole answer follows on stdout, with its citations."""
    from schemas import Delta

    if isinstance(piece, Delta):
        sys.stderr.write(piece.delta)
        sys.stderr.flush()
