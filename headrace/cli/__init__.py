"""The command line: `headrace`.

Each command imports what it needs when it runs, so that `--help` and completion are immediate.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from headrace.cli import (
    ask,
    config,
    dead,
    demo,
    document,
    encoder,
    evaluate,
    publish,
    reindex,
    schema,
    stack,
    top,
    topics,
    verify,
    worker,
)
from headrace.cli.console import complain, out
from headrace.cli.exits import EPILOG, Exit

app = typer.Typer(
    name="headrace",
    help="Documents in, cited answers out: a Kafka pipeline into Milvus and OpenSearch.",
    epilog=EPILOG,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_DOCUMENTS, _OPERATION, _STACK = "Documents and questions", "Operation", "This machine"

app.command(rich_help_panel=_DOCUMENTS)(publish.publish)
app.command(rich_help_panel=_DOCUMENTS)(publish.delete)
app.command(rich_help_panel=_DOCUMENTS)(ask.ask)
app.command(rich_help_panel=_DOCUMENTS)(document.document)
app.command(rich_help_panel=_DOCUMENTS)(evaluate.evaluate)
app.command(rich_help_panel=_STACK)(stack.up)
app.command(rich_help_panel=_STACK)(stack.down)
app.command(rich_help_panel=_STACK)(demo.demo)
app.command(rich_help_panel=_OPERATION)(stack.status)
app.command(rich_help_panel=_OPERATION)(top.top)
app.command(rich_help_panel=_OPERATION)(verify.verify)
app.command(rich_help_panel=_OPERATION)(reindex.reindex)
app.command(rich_help_panel=_OPERATION)(worker.worker)
app.add_typer(topics.app, name="topics", rich_help_panel=_OPERATION)
app.add_typer(dead.app, name="dead", rich_help_panel=_OPERATION)
app.command(rich_help_panel=_OPERATION)(config.config)
app.add_typer(encoder.app, name="encoder", rich_help_panel=_OPERATION)
app.add_typer(schema.app, name="schema", rich_help_panel=_OPERATION)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            out().print(version("headrace"))
        except PackageNotFoundError:
            out().print("not installed")
        raise typer.Exit


@app.callback()
def _headrace(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave with its exit code. Errors whose meaning is known are one line on stderr."""
    from headrace.errors import HeadraceError, Misconfigured, Transient

    try:
        app(args=None if arguments is None else list(arguments), prog_name="headrace")
    except HeadraceError as exc:
        complain(f"headrace: {exc}")
        match exc:
            case Misconfigured():
                sys.exit(Exit.MISCONFIGURED)
            case Transient():
                sys.exit(Exit.AWAY)
            case _:
                sys.exit(Exit.FAILED)
    except BrokenPipeError:
        # Whoever read stdout has seen enough (`| head`).
        sys.stderr.close()
        sys.exit(Exit.FAILED)
