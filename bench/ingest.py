"""Chunks a second through the whole pipeline, over those of the bare encoder on the same cores.

In each round and for each encoder, the document workers are started, the documents published, and the time taken from
the first record to the last `indexed` event; then the workers are stopped, and the encoder alone encodes the same
chunks, with the same titles, in one call in this process. The transformers read the examples' articles; the static
encoder reads generated text, of which it needs far more for a round that lasts. A quick run leaves out the int8
model, whose export alone would take a third of its time.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import msgspec

from bench import report, text
from bench.deployment import STATIC, Deployment, Silent, deployment, machine_cpu_seconds
from bench.report import Options, Report, Table, Target, spread
from headrace import wiring
from headrace.chunking import chunk
from headrace.cli.publishing import Outgoing, Tally, outgoing, publish
from headrace.cli.sources import Labels, read_paths
from headrace.config import Settings
from headrace.encoders import Encoder, context_of
from headrace.encoders.settings import EncoderSettings
from schemas import Document, Key, decode, encode
from topics.table import DOCUMENT_STAGES

NAME = "ingest"
ROUNDS = 2
ARTICLES, QUICK_ARTICLES = 30, 1
GENERATED, QUICK_GENERATED = 6_000, 500
IDLE_S = 300.0
DEFAULT, STATIC_ENCODER, INT8 = "default model, torch float32", "static", "default model, ONNX int8"


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """`cpu_s` of the workers or of the encoder; `machine_cpu_s` of all that ran, servers and publisher included."""

    seconds: float
    cpu_s: float
    machine_cpu_s: float


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One encoder's, over so many chunks. `cpu_s` of the workers, by stage."""

    chunks: int
    pipeline: Side
    bare: Side
    cpu_s: dict[str, float]
    peak_rss_bytes: dict[str, int]

    @property
    def ratio(self) -> float:
        return self.bare.seconds / self.pipeline.seconds

    @property
    def cpu_ratio(self) -> float:
        return self.bare.cpu_s / self.pipeline.cpu_s


class Case:
    """One encoder, in a deployment of its own."""

    def __init__(self, deployed: Deployment, documents: Sequence[Document]) -> None:
        self.deployed = deployed
        self.documents = documents
        self.encoder = wiring.build_encoder(deployed.settings)
        self.texts, self.contexts = _chunks(documents, deployed.settings, self.encoder)

    def round(self, number: int) -> Round:
        deployed = self.deployed
        deployed.start(DOCUMENT_STAGES)
        deployed.wait(DOCUMENT_STAGES)
        # A tenant's index and collection are made with its first document, which is not what is measured.
        self._publish(f"first-{number}", [Document(text="First.")])
        before = {stage: deployed.cpu_seconds([stage]) for stage in DOCUMENT_STAGES}
        machine_before = machine_cpu_seconds()
        # Under other ids in each round: what hasn't changed would be skipped.
        tally = self._publish(f"round-{number}", self.documents)
        machine_s = machine_cpu_seconds() - machine_before
        cpu_s = {stage: deployed.cpu_seconds([stage]) - before[stage] for stage in DOCUMENT_STAGES}
        peaks = {stage: deployed.memory(stage)[1] for stage in DOCUMENT_STAGES}
        deployed.stop()
        if tally.chunks != len(self.texts):
            sys.exit(f"{len(self.texts)} chunks were expected, and {tally.chunks} indexed")
        return Round(
            chunks=len(self.texts),
            pipeline=Side(seconds=tally.seconds, cpu_s=sum(cpu_s.values()), machine_cpu_s=machine_s),
            bare=self._bare(),
            cpu_s=cpu_s,
            peak_rss_bytes=peaks,
        )

    def _bare(self) -> Side:
        self.encoder.encode(self.texts[:1], contexts=self.contexts[:1])
        started, cpu_started, machine_before = time.perf_counter(), time.process_time(), machine_cpu_seconds()
        self.encoder.encode(self.texts, contexts=self.contexts)
        return Side(
            seconds=time.perf_counter() - started,
            cpu_s=time.process_time() - cpu_started,
            machine_cpu_s=machine_cpu_seconds() - machine_before,
        )

    def _publish(self, name: str, documents: Sequence[Document]) -> Tally:
        keys = [Key(text.TENANT, f"{name}-{number}") for number in range(len(documents))]
        records = [
            Outgoing(where=str(key), key=key, value=encode(document))
            for key, document in zip(keys, documents, strict=True)
        ]
        tally = publish(records, self.deployed.settings.kafka, Silent(), wait_s=IDLE_S)
        if not tally.fine or tally.outcomes["indexed"] != len(records):
            sys.exit(f"not every document was indexed: {tally.outcomes}")
        return tally


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--articles", type=int, help=f"for the transformers; {ARTICLES} by themselves, of 30")
    parser.add_argument("--generated", type=int, help=f"documents for the static encoder; {GENERATED:,} by themselves")


def run(options: Options) -> Report:
    articles = _articles(options.articles or (QUICK_ARTICLES if options.quick else ARTICLES))
    count = options.generated or (QUICK_GENERATED if options.quick else GENERATED)
    generated = [text.document(number) for number in range(count)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-bench-")))
        environments = {DEFAULT: {}, STATIC_ENCODER: STATIC}
        if not options.quick:
            environments[INT8] = _int8(folder)
        cases = {
            name: Case(stack.enter_context(deployment(own)), generated if name == STATIC_ENCODER else articles)
            for name, own in environments.items()
        }
        rounds: dict[str, list[Round]] = {name: [] for name in cases}
        for number in range(options.rounds or (1 if options.quick else ROUNDS)):
            for name, case in cases.items():
                rounds[name].append(case.round(number))
    of_default = rounds[DEFAULT]
    ratio = spread([one.ratio for one in of_default]).median
    targets = [Target("pipeline / bare encoder, default model", "at least", 0.9, ratio)]
    faster = [
        default.pipeline.seconds / int8.pipeline.seconds
        for default, int8 in zip(of_default, rounds.get(INT8, ()), strict=False)
    ]
    if faster:
        targets.append(Target("int8 / float32, both through the pipeline", "at least", 2.0, spread(faster).median))
    return Report(
        name=NAME,
        what="Chunks a second through the whole pipeline, over those of the bare encoder on the same cores.",
        tables=[_rates(rounds), _cores(rounds), _stages(rounds)],
        figures={"rounds": rounds, "int8_over_float32": faster},
        targets=targets,
    )


def _int8(folder: Path) -> dict[str, str]:
    """The default model as `headrace encoder export` makes it, and the settings that use it."""
    made = folder / "int8"
    command = [sys.executable, "-m", "headrace.cli", "encoder", "export", EncoderSettings().model]
    subprocess.run([*command, "--int8", "--out", str(made)], check=True, stdout=subprocess.DEVNULL)
    return {"HEADRACE_ENCODER__BACKEND": "onnx", "HEADRACE_ENCODER__MODEL": str(made)}


def _articles(count: int) -> list[Document]:
    readings = islice(read_paths([str(text.CORPUS)], Labels(), sys.stdin.buffer), count)
    records = [outgoing(reading) for reading in readings]
    return [decode(record.value or b"", Document) for record in records if isinstance(record, Outgoing)]


def _chunks(documents: Sequence[Document], settings: Settings, encoder: Encoder) -> tuple[list[str], list[str]]:
    """Texts and contexts, as the chunk stage cuts them and as the embed stage reads them."""
    tokenizer, _ = wiring.build_tokenizer(settings)
    chunking = settings.chunking.chunking()
    context = encoder.identity.context
    passages = [
        (passage.text, context_of(context, document.title, passage.headings, passage.text))
        for document in documents
        for passage in chunk(document.text, document.content_type, chunking, tokenizer)
    ]
    return [passage for passage, _ in passages], [around for _, around in passages]


def _rates(rounds: Mapping[str, Sequence[Round]]) -> Table:
    rows = [
        [
            name,
            f"{of_case[0].chunks:,}",
            spread([one.chunks / one.pipeline.seconds for one in of_case]).text(0),
            spread([one.chunks / one.bare.seconds for one in of_case]).text(0),
            spread([one.ratio for one in of_case]).text(),
            spread([one.cpu_ratio for one in of_case]).text(),
        ]
        for name, of_case in rounds.items()
    ]
    return Table("", ["encoder", "chunks", "pipeline, chunks/s", "bare, chunks/s", "pipeline / bare", "by CPU s"], rows)


def _cores(rounds: Mapping[str, Sequence[Round]]) -> Table:
    """Where the cores' time goes: what others take, the encoder doesn't get."""
    rows = []
    for name, of_case in rounds.items():
        sides = {"pipeline": [one.pipeline for one in of_case], "bare": [one.bare for one in of_case]}
        for side, of_side in sides.items():
            chunks, seconds = sum(one.chunks for one in of_case), sum(one.seconds for one in of_side)
            own, machine = sum(one.cpu_s for one in of_side), sum(one.machine_cpu_s for one in of_side)
            rows.append(
                [
                    f"{name}, {side}",
                    f"{1000 * own / chunks:.2f}",
                    f"{1000 * (machine - own) / chunks:.2f}",
                    f"{machine / seconds:.2f}",
                ]
            )
    columns = ["", "own CPU s per 1,000 chunks", "the servers' and the publisher's", "cores busy"]
    return Table("The machine", columns, rows)


def _stages(rounds: Mapping[str, Sequence[Round]]) -> Table:
    rows = []
    for name, of_case in rounds.items():
        chunks = sum(one.chunks for one in of_case)
        cpu_s = (1000 * sum(one.cpu_s[stage] for one in of_case) / chunks for stage in DOCUMENT_STAGES)
        rows.append([f"{name}, CPU s per 1,000 chunks", *(f"{seconds:.2f}" for seconds in cpu_s)])
        peaks = (max(one.peak_rss_bytes[stage] for one in of_case) for stage in DOCUMENT_STAGES)
        rows.append([f"{name}, peak RSS MB", *(f"{peak / 1e6:,.0f}" for peak in peaks)])
    return Table("The workers", ["", *DOCUMENT_STAGES], rows)


if __name__ == "__main__":
    report.main(NAME, __doc__, run, arguments)
