"""`headrace encoder`: models made ready for another runtime."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.console import complain, err, out
from headrace.cli.exits import Exit

if TYPE_CHECKING:
    from headrace.config import Settings

EXPORTED = Path(".headrace") / "encoders"
MOST_TEXTS = 256
"""Passages that the exported model is checked with, drawn evenly from all there are."""

app = typer.Typer(no_args_is_help=True, help="Models made ready for another runtime.")


# A command group of one command would be that command itself.
@app.callback()
def _encoder() -> None: ...


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A folder, or a sentence-transformers model's name on a hub.")],
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Quantise it: two to three times as fast on a CPU, vectors a little different."),
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", help=f"The folder to make. [default: {EXPORTED}/NAME]", file_okay=False, show_default=False
        ),
    ] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option(
            "--texts",
            help="Documents that the exported model is checked with, as `headrace publish` reads them; best are your "
            "own. [default: the demo's articles]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make a folder for `encoder.backend = "onnx"`, and hold its vectors against the original's.

    A model whose vectors differ too much is not kept, and the command says by how much.
    """
    from headrace.config import load_settings
    from headrace.encoders.export import export_encoder

    settings = load_settings()
    target = folder or EXPORTED / (Path(model).name + ("-int8" if int8 else ""))
    passages = _drawn(_passages(settings, model, texts or _examples()))
    err().print(f"exporting {model}, to be checked with {len(passages):,} passages", markup=False, soft_wrap=True)
    note = export_encoder(model, target, precision="int8" if int8 else "float32", texts=passages)
    agreement = note.agreement
    out().print(
        f"{target}: {note.name}; cosine with the original over {agreement.texts:,} texts: "
        f"{agreement.mean:.4f} in the mean, {agreement.least:.4f} at least\n"
        f"To use it, set HEADRACE_ENCODER__BACKEND=onnx HEADRACE_ENCODER__MODEL={target}",
        markup=False,
        soft_wrap=True,
    )


def _examples() -> list[str]:
    from headrace.cli.demo import EXAMPLES

    corpus = EXAMPLES / "corpus.jsonl.gz"
    if not corpus.is_file():
        complain(f"headrace: {corpus} is not there; name documents with --texts")
        raise typer.Exit(Exit.USAGE)
    return [str(corpus)]


def _passages(settings: "Settings", model: str, paths: list[str]) -> Iterator[str]:
    """Texts as the deployment's chunking cuts them, with their titles, as they are embedded."""
    from headrace.chunking import chunk, load_tokenizer
    from headrace.cli.sources import Found, Labels, Problem, read_paths
    from headrace.encoders import context_of, tokenizer_file
    from headrace.encoders.settings import EncoderSettings
    from schemas import Document

    tokenizer = load_tokenizer(tokenizer_file(EncoderSettings(model=model)))
    for reading in read_paths(paths, Labels(), sys.stdin.buffer):
        if isinstance(reading, Problem):
            complain(f"headrace: {reading.where}: {reading.why}")
        elif isinstance(reading, Found) and isinstance(reading.document, Document):
            document = reading.document
            for cut in chunk(document.text, document.content_type, settings.chunking.chunking(), tokenizer):
                context = context_of(settings.encoder.context, document.title, cut.headings, cut.text)
                yield f"{context} {cut.text}" if context else cut.text


def _drawn(passages: Iterator[str]) -> list[str]:
    found = list(passages)
    return found[:: -(-len(found) // MOST_TEXTS) or 1]
