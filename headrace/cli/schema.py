"""`headrace schema`: the contract for other languages."""

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.console import complain, out
from headrace.cli.exits import Exit

PUBLISHED = Path("schemas/published")

app = typer.Typer(no_args_is_help=True, help="The wire contract as JSON Schemas and an AsyncAPI 3 document.")

Folder = Annotated[Path, typer.Argument(help="Where they lie.", file_okay=False)]


@app.command()
def export(folder: Folder = PUBLISHED) -> None:
    """Write the JSON Schemas and the AsyncAPI document."""
    from topics import contract

    for path in contract.export(folder):
        out().print(str(path), markup=False, soft_wrap=True)


@app.command()
def check(folder: Folder = PUBLISHED) -> None:
    """Compare what lies in the folder with the code; exits with 1 and names each difference."""
    from topics import contract

    differences = contract.drift(folder)
    for difference in differences:
        complain(difference)
    if differences:
        raise typer.Exit(Exit.FAILED)
    out().print("as the code has it")
