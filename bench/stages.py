"""Each document stage alone, drained from a full topic, and where its time goes: a flame graph of each.

The workers run one after the other: documents are published, the chunk worker alone goes through them, then the embed
worker through the chunks, and so on. Time and CPU count from the first message that a worker takes, and the tenant's
index and collection are there before. Rates are measured first; then as many documents more go the
same way with py-spy watching, since that slows them down. The flame graphs are kept with `--out`.
"""

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from html import unescape
from operator import itemgetter
from pathlib import Path

import msgspec

from bench import report, text
from bench.deployment import STATIC, Deployment, Silent, deployment, value
from bench.report import Options, Report, Table, spread
from headrace.cli.kafka import watermarks
from headrace.cli.publishing import publish
from topics.table import DOCUMENT_STAGES

NAME = "stages"
DOCUMENTS, QUICK_DOCUMENTS = 6_000, 2_000
MODEL_DOCUMENTS = 150
"""For the default model, which takes a hundred times as long, and which a quick run leaves out."""
STANDS_STILL_S = 120.0
SAMPLES_PER_S = 100
STEPS = ("decode", "work", "write")
TOP, KEPT = 5, 30
MODEL = "embed-default-model"


class Drained(msgspec.Struct, frozen=True, kw_only=True):
    """`messages` of the stage's topic in `seconds`, and their `chunks`; `steps` are the stage's own seconds."""

    messages: int
    chunks: int
    seconds: float
    cpu_s: float
    rss_bytes: int
    steps: dict[str, float]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--documents", type=int, help=f"to drain in each round; {DOCUMENTS:,} by themselves")
    parser.add_argument("--profile", type=Path, help="where the flame graphs go, if not into --out")


def run(options: Options) -> Report:
    count = options.documents or (QUICK_DOCUMENTS if options.quick else DOCUMENTS)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch:
        folder = options.profile or options.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        graphs = {stage: folder / f"{NAME}-{stage}.svg" for stage in (*DOCUMENT_STAGES, MODEL)}
        # A quick run has no time for a pass without py-spy.
        passes = [True] if options.quick else [*[False] * (options.rounds or 1), True]
        rounds = _static(count, passes, graphs)
        if not options.quick:
            rounds[MODEL] = _model(MODEL_DOCUMENTS, passes, graphs[MODEL])
        tops = {name: self_time(graphs[name].read_text()) for name in rounds}
    return Report(
        name=NAME,
        what="Each document stage alone, drained from a full topic.",
        tables=[_rates(rounds), _shares(rounds), _hot(tops)],
        figures={"rounds": rounds, "self_time": {name: top[:KEPT] for name, top in tops.items()}},
        notes=["Static encoder and generated text, but for `embed-default-model`; a chunk is up to 256 tokens."],
    )


def _static(count: int, passes: Sequence[bool], graphs: Mapping[str, Path]) -> dict[str, list[Drained]]:
    """What each stage drained in the passes without a profiler, or in the only one. `passes` says which have one."""
    found: dict[str, list[Drained]] = {stage: [] for stage in DOCUMENT_STAGES}
    with deployment(STATIC) as deployed:
        _make_stores(deployed)
        for number, profiled in enumerate(passes):
            begun = {stage: _filled(deployed, stage) for stage in DOCUMENT_STAGES}
            _fill(deployed, range(number * count, (number + 1) * count))
            chunks: int | None = None
            for stage in DOCUMENT_STAGES:
                messages = _filled(deployed, stage) - begun[stage]
                drained, chunks = drain(deployed, stage, messages, chunks, graphs[stage] if profiled else None)
                if not profiled or len(passes) == 1:
                    found[stage].append(drained)
    return found


def _model(count: int, passes: Sequence[bool], graph: Path) -> list[Drained]:
    """Of the embed stage with the default model."""
    found: list[Drained] = []
    with deployment() as deployed:
        for number, profiled in enumerate(passes):
            begun = _filled(deployed, "embed")
            _fill(deployed, range(number * count, (number + 1) * count))
            with _running(deployed, "chunk"):
                chunks = round(_when_through(deployed, "chunk", count)["chunks"])
            messages = _filled(deployed, "embed") - begun
            drained, _ = drain(deployed, "embed", messages, chunks, graph if profiled else None)
            if not profiled or len(passes) == 1:
                found.append(drained)
    return found


def _make_stores(deployed: Deployment) -> None:
    """A tenant's index and collection are made with its first document."""
    deployed.start(DOCUMENT_STAGES)
    deployed.wait(DOCUMENT_STAGES)
    publish(text.records(range(1), name="first"), deployed.settings.kafka, Silent(), wait_s=STANDS_STILL_S)
    deployed.stop()


def _fill(deployed: Deployment, numbers: range) -> None:
    publish(text.records(numbers), deployed.settings.kafka, Silent())


@contextmanager
def _running(deployed: Deployment, stage: str) -> Iterator[None]:
    deployed.start([stage])
    try:
        yield
    finally:
        deployed.stop()


def drain(
    deployed: Deployment, stage: str, messages: int, chunks: int | None, graph: Path | None
) -> tuple[Drained, int]:
    """Start the worker, and stop it when it has gone through the messages that wait. They have `chunks`, which is also
    returned; None for as many as it makes of them. With a `graph`, py-spy watches.
    """
    with _running(deployed, stage), nullcontext() if graph is None else flame_graph(deployed, stage, graph):
        at_first = _when(deployed, stage, lambda now: now["in_hand"] + now["in"] > 0, look_every_s=0.05)
        started, cpu_started = time.time(), deployed.cpu_seconds([stage])
        at_last = _when_through(deployed, stage, messages)
        cpu_s = deployed.cpu_seconds([stage]) - cpu_started
        _, peak = deployed.memory(stage)
    through = at_last["in"] - at_first["in"]
    if not through:
        sys.exit(f"{stage} was through with {messages:,} messages before it could be looked at: give it more")
    total = round(at_last["chunks"]) if chunks is None else chunks
    drained = Drained(
        messages=round(through),
        chunks=round(total * through / messages),
        seconds=at_last["progress"] - started,
        cpu_s=cpu_s,
        rss_bytes=peak,
        steps={step: at_last[step] - at_first[step] for step in STEPS},
    )
    return drained, total


def _when_through(deployed: Deployment, stage: str, messages: int) -> dict[str, float]:
    """What the worker tells of itself as soon as it has confirmed so many messages."""
    return _when(deployed, stage, lambda now: now["in"] >= messages, look_every_s=0.5)


def _when(
    deployed: Deployment, stage: str, reached: Callable[[dict[str, float]], bool], *, look_every_s: float
) -> dict[str, float]:
    before, moved = -1.0, time.monotonic()
    while True:
        page = deployed.metrics(stage)
        now = {
            "in": value(page, "headrace_messages_total", stage=stage, direction="in"),
            "in_hand": value(page, "headrace_in_hand_messages", stage=stage),
            "chunks": value(page, "headrace_chunks_total", stage=stage),
            "progress": value(page, "headrace_last_progress_timestamp_seconds", stage=stage),
            **{step: value(page, "headrace_step_seconds_sum", stage=stage, step=step) for step in STEPS},
        }
        if reached(now):
            return now
        if now["in"] > before:
            before, moved = now["in"], time.monotonic()
        elif deployed.workers[stage].poll() is not None or time.monotonic() - moved > STANDS_STILL_S:
            sys.exit(f"{stage} stands still at {before:,.0f} messages:\n{deployed.log(stage).read_text()[-3000:]}")
        time.sleep(look_every_s)


def _filled(deployed: Deployment, stage: str) -> int:
    """Records that were ever put into what the stage reads."""
    kafka = deployed.settings.kafka
    topics = kafka.names.read_by(stage, "bulk")
    return sum(end for topic in topics for _, end in watermarks(kafka.confluent(), topic).values())


@contextmanager
def flame_graph(deployed: Deployment, stage: str, file: Path) -> Iterator[None]:
    """Of what this worker does meanwhile, by function."""
    deployed.wait([stage], "/healthz")  # It answers before it fetches, and py-spy takes a moment.
    py_spy = Path(sys.executable).parent / "py-spy"
    how = ["--nonblocking", "--rate", str(SAMPLES_PER_S), "--function", "--output", str(file)]
    spy = subprocess.Popen(
        [py_spy, "record", "--pid", str(deployed.workers[stage].pid), *how],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        yield
    finally:
        spy.send_signal(signal.SIGINT)
        _, complaint = spy.communicate()
    if not file.is_file():
        sys.exit(f"py-spy made no flame graph: {complaint.decode()[-1000:]}")
    title = f"{stage} worker, {deployed.settings.encoder.model}"
    file.write_text(TITLE.sub(rf"\g<1>{title}<", file.read_text(), count=1))


WAITING = re.compile(r"select \(selectors\.py|_worker \(concurrent/futures|readinto \(socket\.py|_blocking \(grpc/")
"""Functions that wait for something: py-spy takes a thread that has just been woken for one at work."""
TITLE = re.compile(r'(<text id="title"[^>]*>)[^<]*<')
FRAME = re.compile(r'<title>([^<]*) \([\d,]+ samples?, [^<]*</title><rect [^>]*y="(\d+)"[^>]*fg:x="(\d+)" fg:w="(\d+)"')


def self_time(graph: str) -> list[tuple[str, float]]:
    """Of a flame graph, the functions that were at work themselves, the busiest first; of all at work, their shares."""
    rows: dict[int, list[tuple[int, int, str]]] = defaultdict(list)
    for name, y, x, width in FRAME.findall(graph):
        rows[int(y)].append((int(x), int(width), unescape(name)))
    levels = [sorted(row) for _, row in sorted(rows.items())]
    own: Counter[str] = Counter()
    for level, above in zip(levels, [[], *levels], strict=False):
        for x, width, name in level:
            own[name] += width
            if above:
                own[above[bisect_right(above, x, key=itemgetter(0)) - 1][2]] -= width
    at_work = Counter({name: count for name, count in own.items() if count and not WAITING.search(name)})
    return [(name, count / at_work.total()) for name, count in at_work.most_common()]


def _rates(rounds: Mapping[str, Sequence[Drained]]) -> Table:
    rows = [
        [
            stage,
            spread([one.messages / one.seconds for one in of_stage]).text(0),
            spread([one.chunks / one.seconds for one in of_stage]).text(0),
            spread([one.cpu_s / one.chunks * 1000 for one in of_stage]).text(),
            spread([one.cpu_s / one.seconds for one in of_stage]).text(),
            f"{max(one.rss_bytes for one in of_stage) / 1e6:,.0f}",
        ]
        for stage, of_stage in rounds.items()
    ]
    columns = ["stage", "messages/s", "chunks/s", "CPU s per 1,000 chunks", "cores busy", "peak RSS MB"]
    return Table("", columns, rows)


def _shares(rounds: Mapping[str, Sequence[Drained]]) -> Table:
    rows = []
    for stage, of_stage in rounds.items():
        shares = {
            step: sum(one.steps[step] for one in of_stage) / sum(one.seconds for one in of_stage) for step in STEPS
        }
        rows.append([stage, *(f"{share:.0%}" for share in shares.values())])
    return Table("Time of each step of all batches, over the time in all; batches overlap", ["stage", *STEPS], rows)


def _hot(tops: Mapping[str, Sequence[tuple[str, float]]]) -> Table:
    rows = [[stage, f"{share:.0%}", name] for stage, top in tops.items() for name, share in top[:TOP]]
    return Table("Where the CPU goes, by function", ["stage", "share", "function"], rows)


if __name__ == "__main__":
    report.main(NAME, __doc__, run, arguments)
