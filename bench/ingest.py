"""Chunks a second through the whole pipeline, over those of the bare encoder on the same cores: `make bench`.

Each round starts the six workers, publishes the articles, takes the time from the first record to the last `indexed`
event, stops the workers, and then has the encoder alone encode the same chunks in one call. The figure is the ratio
within a round. Where others use the machine too, two figures are steadier: the same ratio in CPU seconds, for which the
six workers count and the servers don't, and the share of the pipeline's time that embed was at work.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from bench.deployment import Deployment, deployment, value
from headrace import wiring
from headrace.chunking import chunk
from headrace.cli.console import complain, out, print_json
from headrace.cli.publishing import Outgoing, Tally, publish
from headrace.cli.sources import Found, Labels, read_paths
from headrace.encoders import SentenceTransformerEncoder
from schemas import Document, Key, encode
from topics import GROUPS

CORPUS = Path(__file__).parents[1] / "examples" / "covidqa" / "corpus.jsonl.gz"
IDLE_S = 300.0
STEPS = ("decode", "work", "write")


class Silent:
    """A publication's Watch that tells of problems alone."""

    def changed(self, tally: Tally) -> None: ...

    def problem(self, where: str, why: str) -> None:
        complain(f"{where}: {why}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=30, help="articles to publish (of 30)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    with deployment() as deployed:
        settings = deployed.settings
        articles = _articles(options.documents)
        encoder = SentenceTransformerEncoder(settings.encoder)
        texts = _chunks((document for _, document in articles), deployed)
        rounds = [_round(deployed, number, articles, encoder, texts) for number in range(1, options.rounds + 1)]
    machine = (
        f"{_processor()}, {os.cpu_count()} cores, {_memory_gb():.0f} GB, {encoder.device}, torch {torch.__version__}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    found = {"machine": machine, "documents": len(articles), "chunks": len(texts), "rounds": rounds}
    found["ratio"] = statistics.median(one["ratio"] for one in rounds)
    if options.json:
        print_json(found)
    else:
        _print(found)


def _round(
    deployed: Deployment,
    number: int,
    articles: list[tuple[str, Document]],
    encoder: SentenceTransformerEncoder,
    texts: list[str],
) -> dict[str, Any]:
    deployed.start()
    deployed.wait()
    # A tenant's index and collection are made with its first document, which is not what is measured.
    _publish(deployed, {f"first-{number}": Document(text="First.")})
    before, cpu_before = _seconds(deployed), deployed.cpu_seconds()
    # Under other ids in each round: what hasn't changed would be skipped.
    tally = _publish(deployed, {f"{number}-{doc_id}": document for doc_id, document in articles})
    if tally.chunks != len(texts):
        sys.exit(f"{len(texts)} chunks were expected, and {tally.chunks} indexed")
    after, cpu_s = _seconds(deployed), deployed.cpu_seconds() - cpu_before
    peaks = {stage: deployed.memory(stage)[1] for stage in GROUPS}
    deployed.stop()
    started, cpu_started = time.perf_counter(), time.process_time()
    encoder.encode(texts)
    bare_s, bare_cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    return {
        "pipeline_s": tally.seconds,
        "bare_s": bare_s,
        "pipeline_chunks_per_s": len(texts) / tally.seconds,
        "bare_chunks_per_s": len(texts) / bare_s,
        "ratio": bare_s / tally.seconds,
        "pipeline_cpu_s": cpu_s,
        "bare_cpu_s": bare_cpu_s,
        "cpu_ratio": bare_cpu_s / cpu_s,
        "embed_at_work": (after["embed"]["work"] - before["embed"]["work"]) / tally.seconds,
        "stages": {
            stage: {
                "peak_rss_bytes": peaks[stage],
                "seconds": {step: after[stage][step] - before[stage][step] for step in STEPS},
            }
            for stage in GROUPS
        },
    }


def _publish(deployed: Deployment, documents: dict[str, Document]) -> Tally:
    records = [
        Outgoing(where=doc_id, key=Key("default", doc_id), value=encode(document))
        for doc_id, document in documents.items()
    ]
    tally = publish(records, deployed.settings.kafka, Silent(), wait_s=IDLE_S)
    if not tally.fine or tally.outcomes["indexed"] != len(records):
        sys.exit(f"not every document was indexed: {tally.outcomes}")
    return tally


def _articles(count: int) -> list[tuple[str, Document]]:
    readings = read_paths([str(CORPUS)], Labels(), sys.stdin.buffer)
    return [
        (reading.key.doc_id, reading.document)
        for reading in islice(readings, count)
        if isinstance(reading, Found) and isinstance(reading.document, Document)
    ]


def _chunks(documents: Iterable[Document], deployed: Deployment) -> list[str]:
    """As the chunk stage cuts them."""
    tokenizer, _ = wiring.build_tokenizer(deployed.settings)
    chunking = deployed.settings.chunking.chunking()
    return [
        passage.text
        for document in documents
        for passage in chunk(document.text, document.content_type, chunking, tokenizer)
    ]


def _seconds(deployed: Deployment) -> dict[str, dict[str, float]]:
    pages = {stage: deployed.metrics(stage) for stage in GROUPS}
    return {
        stage: {step: value(page, "headrace_step_seconds_sum", stage=stage, step=step) for step in STEPS}
        for stage, page in pages.items()
    }


def _print(found: dict[str, Any]) -> None:
    console = out()
    console.print(found["machine"])
    console.print(f"{found['documents']} documents, {found['chunks']} chunks")
    rates = _table(
        "round", "pipeline s", "chunks/s", "bare encoder s", "chunks/s", "pipeline / bare", "by CPU", "embed at work"
    )
    for number, one in enumerate(found["rounds"], 1):
        rates.add_row(
            str(number),
            f"{one['pipeline_s']:.1f}",
            f"{one['pipeline_chunks_per_s']:.1f}",
            f"{one['bare_s']:.1f}",
            f"{one['bare_chunks_per_s']:.1f}",
            f"{one['ratio']:.2f}",
            f"{one['cpu_ratio']:.2f}",
            f"{one['embed_at_work']:.0%}",
        )
    console.print(rates)
    stages = _table("stage, last round", *(f"{step} s" for step in STEPS), "peak RSS MB")
    for stage, one in found["rounds"][-1]["stages"].items():
        seconds = (f"{one['seconds'][step]:.2f}" for step in STEPS)
        stages.add_row(stage, *seconds, f"{one['peak_rss_bytes'] / 1e6:.0f}")
    console.print(stages)
    console.print(f"pipeline / bare encoder, median of the rounds: {found['ratio']:.2f}")


def _table(first: str, *headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _processor() -> str:
    names = [line.split(":", 1)[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return names[0].strip() if names else platform.machine()


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


if __name__ == "__main__":
    main()
