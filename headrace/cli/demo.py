"""`headrace demo`: the whole way once, with real servers and thirty articles."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.console import complain, err, out
from headrace.cli.exits import Exit

if TYPE_CHECKING:
    from headrace.cli.throughput import Throughput
    from headrace.config import Settings

EXAMPLES = Path(__file__).parents[2] / "examples" / "covidqa"
QUESTIONS = ("262", "560", "2131")
"""Of queries.jsonl: three that name what they ask about."""
IDLE_S = 600.0
ANSWER_WITHIN_S = 60.0
METRICS_SETTLE_S = 1.0


def demo(
    setup_seconds: Annotated[float | None, typer.Option(hidden=True, help="What `make demo` took before this.")] = None,
) -> None:
    """Start everything, publish 30 articles, ask three questions, and print the answers with what they rest on.

    Leaves everything running. Run again, it starts nothing twice, and publishing what hasn't changed is harmless.
    """
    from headrace.cli.local import bring_up
    from headrace.cli.stack import say
    from headrace.config import load_settings

    corpus = EXAMPLES / "corpus.jsonl.gz"
    if not corpus.is_file():
        complain(f"headrace: {corpus} is not there: the demo runs from a clone of the project")
        raise typer.Exit(Exit.MISCONFIGURED)
    settings = load_settings()
    started = time.monotonic()
    _headline("Starting Kafka, OpenSearch, Milvus and the six workers")
    bring_up(settings, servers_only=False, say=say)
    up_s = time.monotonic() - started

    _headline(f"Publishing the articles of {EXAMPLES.parent.name}/{EXAMPLES.name}")
    fine, index_s, stages = _index(settings, corpus)
    _headline("Asking")
    answered = _ask(settings)
    _headline("Each stage, while the articles were indexed")
    _print_throughput(stages)
    _headline("Done")
    times = {"set up": setup_seconds, "started": up_s, "indexed": index_s}
    out().print(", ".join(f"{name} in {seconds:.0f} s" for name, seconds in times.items() if seconds is not None))
    out().print(NEXT_STEPS.format(headrace=_command()), markup=False)
    if not (fine and answered):
        raise typer.Exit(Exit.FAILED)


NEXT_STEPS = """\
Everything is still running. What to do next:

  {headrace} ask "How is hepcidin released?"        ask something else
  {headrace} publish FOLDER --wait                  your own .txt, .md, .html or .jsonl
  {headrace} document 630                           where one document is
  {headrace} status                                 servers, workers, lag, what the stores hold
  {headrace} down                                   stop it all; the data stays
"""


def _index(settings: "Settings", corpus: Path) -> "tuple[bool, float, list[Throughput]]":
    from headrace.auth import Bearer
    from headrace.cli.progress import progress
    from headrace.cli.publish import summary
    from headrace.cli.publishing import outgoing, publish
    from headrace.cli.sources import Labels, read_paths
    from headrace.cli.throughput import between, look

    before, started_at = look(settings), time.time()
    readings = read_paths([str(corpus)], Labels(), sys.stdin.buffer)
    with progress(err(), waits=True) as watch:
        tally = publish(map(outgoing, readings), settings.kafka, watch, wait_s=IDLE_S, bearer=Bearer(settings.auth))
    out().print(summary(tally, waited=True))
    # An event is on its way before its worker has counted it.
    time.sleep(METRICS_SETTLE_S)
    return tally.fine, tally.seconds, between(before, look(settings), started_at)


def _ask(settings: "Settings") -> bool:
    from headrace.auth import Bearer
    from headrace.cli.answers import print_answer
    from headrace.cli.asking import Asker
    from schemas import Query

    fine = True
    with Asker(settings.kafka, Bearer(settings.auth)) as asker:
        for question in questions(EXAMPLES / "queries.jsonl"):
            out().print(f"\n{question}", style="bold underline", markup=False)
            answer = asker.ask(Query(query=question, mode="answer"), timeout_s=ANSWER_WITHIN_S)
            print_answer(out(), answer, hits=False)
            fine = fine and answer.error is None and answer.answer is not None
    return fine


def questions(path: Path) -> list[str]:
    """The demo's three, in the order of QUESTIONS."""
    import orjson

    with path.open("rb") as lines:
        texts = {query["id"]: query["text"] for query in map(orjson.loads, lines)}
    return [texts[question] for question in QUESTIONS]


def _print_throughput(stages: "list[Throughput]") -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage")
    for heading in ("messages", "chunks", "seconds at work", "chunks/s at work", "chunks/s overall"):
        table.add_column(heading, justify="right")
    for stage in stages:
        table.add_row(
            stage.stage,
            f"{stage.messages:,}",
            f"{stage.chunks:,}",
            f"{stage.busy_s:.1f}",
            _rate(stage.chunks_per_busy_s),
            _rate(stage.chunks_per_s),
        )
    out().print(table)


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _headline(text: str) -> None:
    out().print(f"\n[bold cyan]{text}[/bold cyan]")


def _command() -> str:
    """As it was called, where it isn't on the PATH."""
    program = Path(sys.argv[0])
    if program.name != "headrace":
        return "headrace"
    try:
        return str(program.relative_to(Path.cwd())) if program.is_absolute() else str(program)
    except ValueError:
        return str(program)
