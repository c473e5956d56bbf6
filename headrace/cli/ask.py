"""`headrace ask`."""

import sys
import uuid
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.console import complain, out, print_json
from headrace.cli.exits import Exit
from headrace.cli.filters import HELP, parse_filters
from headrace.cli.options import Json, Tenant

if TYPE_CHECKING:
    from schemas import Answer, Delta, Fusion


class Method(Enum):
    CONVEX = "convex"
    ZSCORE = "zscore"
    RRF = "rrf"


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
    fusion: Annotated[
        Method | None,
        typer.Option("--fusion", help="How the two ranked lists become one; the deployment's by default."),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option("--alpha", min=0, max=1, help="The weight of the vectors; 0 is keywords alone.")
    ] = None,
    rerank: Annotated[
        bool | None,
        typer.Option("--rerank/--no-rerank", help="Whether the reranker has a say; the deployment's by default."),
    ] = None,
    expand: Annotated[
        int, typer.Option("--expand", min=0, max=5, help="Neighbours on each side that are shown with a hit.")
    ] = 0,
    max_per_document: Annotated[
        int | None, typer.Option("--max-per-document", min=1, help="Hits of one document at most.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show how each hit came to its place.")] = False,
    json: Json = False,
) -> None:
    """Ask the documents; the answer quotes what it rests on.

    The query goes out on `queries` and the reply comes on `replies`, as any app would do it.
    """
    from headrace.auth import Bearer
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
        fusion=_fusion(fusion, alpha),
        rerank=rerank,
        expand=expand,
        max_per_document=max_per_document,
        highlight=True,
        explain=explain,
        stream=stream,
        request_id=str(uuid.uuid4()),
    )
    settings = load_settings()
    with Asker(settings.kafka, Bearer(settings.auth)) as asker:
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


def _fusion(method: Method | None, alpha: float | None) -> "Fusion | None":
    from schemas import Fusion

    if method is None and alpha is None:
        return None
    if method == Method.RRF and alpha is not None:
        raise typer.BadParameter("reciprocal rank fusion has no weights", param_hint="--alpha")
    return Fusion(method=(method or Method.CONVEX).value, alpha=0.5 if alpha is None else alpha)


def _print_piece(piece: "Answer | Delta") -> None:
    """The text so far goes to stderr: the whole answer follows on stdout, with its citations."""
    from schemas import Delta

    # A stream that broke off begins again with its hits: what was shown of it doesn't count.
    sys.stderr.write(piece.delta if isinstance(piece, Delta) else "\n")
    sys.stderr.flush()
