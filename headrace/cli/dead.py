"""`headrace dead`: list and show."""

import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.console import complain, err, out, print_json
from headrace.cli.exits import Exit
from headrace.cli.options import Json, MaybeTenant

if TYPE_CHECKING:
    from headrace.cli.deadletters import DeadLetter

PREVIEW_CHARACTERS = 2000

app = typer.Typer(no_args_is_help=True, help="Look at what could not be processed (the topic documents.dead).")


@app.command("list")
def list_(
    stage: Annotated[str | None, typer.Option("--stage", help="Only what this stage refused.")] = None,
    code: Annotated[str | None, typer.Option("--code", help="Only this reason.")] = None,
    tenant: MaybeTenant = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="So many at most, the newest.")] = 50,
    json: Json = False,
) -> None:
    """The newest dead letters and how many of each kind they are."""
    from headrace.cli.deadletters import dead_letters
    from headrace.config import load_settings

    def wanted(letter: "DeadLetter") -> bool:
        return (
            (stage is None or letter.stage == stage)
            and (code is None or letter.code == code)
            and (tenant is None or letter.tenant == tenant)
        )

    letters = dead_letters(load_settings().kafka, wanted, limit)
    if json:
        print_json(letters)
    elif not letters:
        out().print("No dead letters.")
    else:
        _print_letters(letters)


def _print_letters(letters: "list[DeadLetter]") -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("id", "at", "key", "stage", "code", "bytes"):
        table.add_column(heading, no_wrap=heading in ("id", "at"), justify="right" if heading == "bytes" else "left")
    table.add_column("why", ratio=1)
    for letter in letters:
        at = letter.at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        cells = (letter.id, at, letter.key or "(none)", letter.stage, letter.code, f"{letter.size:,}", letter.message)
        table.add_row(*(Text(cell) for cell in cells))
    console = out()
    console.print(table)
    console.print()
    for (stage, code), count in Counter((letter.stage, letter.code) for letter in letters).most_common():
        console.print(Text(f"{count:>6,}  {stage} {code}"))
    err().print("`headrace dead show ID` shows one whole.", style="dim")


@app.command()
def show(
    position: Annotated[str, typer.Argument(metavar="ID", help="partition:offset, as `dead list` shows it.")],
    raw: Annotated[bool, typer.Option("--raw", help="Write the payload's bytes to stdout, nothing else.")] = False,
    json: Json = False,
) -> None:
    """One dead letter: its headers, its key, and its payload."""
    import base64

    from headrace.cli.deadletters import dead_letter, readable_headers
    from headrace.cli.kafka import raw_key, raw_value
    from headrace.config import load_settings

    partition, colon, offset = position.partition(":")
    if not (colon and partition.isdecimal() and offset.isdecimal()):
        raise typer.BadParameter("must be partition:offset, e.g. 3:17", param_hint="ID")
    message = dead_letter(load_settings().kafka, int(partition), int(offset))
    if message is None:
        complain(f"there is no dead letter {position}")
        raise typer.Exit(Exit.FAILED)
    key, value, headers = raw_key(message), raw_value(message), readable_headers(message)
    if raw:
        sys.stdout.buffer.write(value or b"")
        sys.stdout.buffer.flush()
    elif json:
        print_json(
            {
                "id": id,
                "timestamp": message.timestamp()[1],
                "key": None if key is None else key.decode(errors="replace"),
                "headers": headers,
                "value_base64": None if value is None else base64.b64encode(value).decode(),
            }
        )
    else:
        _print_letter(key, value, headers)


def _print_letter(key: bytes | None, value: bytes | None, headers: dict[str, str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row(Text("key", style="bold"), Text("(none)" if key is None else key.decode(errors="backslashreplace")))
    for name, shown in headers.items():
        table.add_row(Text(name, style="bold"), Text(shown))
    console = out()
    console.print(table)
    console.print()
    if value is None:
        console.print("No value.")
        return
    text = value[: 4 * PREVIEW_CHARACTERS].decode(errors="backslashreplace")[:PREVIEW_CHARACTERS]
    console.print(Text(text))
    if len(value) > len(text.encode()):
        err().print(f"… {len(value):,} bytes in all; --raw writes them.", style="dim")
