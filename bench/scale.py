"""What a document costs, and what the workers hold, while a deployment grows from a thousand documents to 200,000.

Documents of generated text go through the pipeline with the static encoder, in one deployment. At each mark, batches of
2,000 more are published, and each is waited for: their seconds and the workers' CPU are the cost. Between the marks the
deployment is filled in the same way, with all that is missing published at once, and the stores are left to merge what
they got. The workers are never restarted.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from bench import report, text
from bench.deployment import STATIC, Deployment, Silent, deployment, machine_cpu_seconds
from bench.report import Options, Plot, Report, Table, Target, spread
from headrace.cli.publishing import Tally, publish
from topics.table import DOCUMENT_STAGES

NAME = "scale"
MARKS, QUICK_MARKS = (1_000, 10_000, 50_000, 200_000), (500, 2_000)
BATCHES, QUICK_BATCHES = 3, 1
BATCH, QUICK_BATCH = 2_000, 500
MEDIAN_WORDS = 80
IDLE_S = 300.0
QUIET = 0.3
"""Cores busy. A fill is over when less is; what the stores still merge before that belongs to the fill."""
LOOK_AT_QUIET_S = 5.0
QUIET_WITHIN_S = 120.0
LOOK_EVERY_S = 2.0
WARM = 10_000
"""Documents after which every worker has had full batches, so that what it holds says something."""
RATIO = 1.2
FLAT = 1.1
NOTE = (
    "Seconds of a batch are from its first record to its last event, so about one of them is the way of the last"
    " document. CPU is that of the workers, servers not counted."
)


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    documents: int
    chunks: int
    seconds: float
    cpu_s: dict[str, float]


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """Resident bytes of each worker when so many documents were in."""

    documents: int
    rss_bytes: dict[str, int]


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """`held` documents were there before the batches. `fill_per_s` is how fast the ones before came in, and
    `quiet_after_s` how long the stores went on with them."""

    held: int
    fill_per_s: float
    quiet_after_s: float
    batches: list[Batch]
    rss_bytes: dict[str, int]

    @property
    def seconds(self) -> list[float]:
        return [batch.seconds / batch.documents for batch in self.batches]

    @property
    def cpu_s(self) -> list[float]:
        return [sum(batch.cpu_s.values()) / batch.documents for batch in self.batches]


class Growing(Silent):
    """A deployment, what it holds, and what its workers hold: looked at while documents go through."""

    def __init__(self, deployed: Deployment) -> None:
        self.deployed = deployed
        self.held = 0
        self.looks: list[Look] = []
        self._looked = time.monotonic()

    def add(self, count: int) -> Tally:
        records = text.records(range(self.held, self.held + count), median_words=MEDIAN_WORDS)
        tally = publish(records, self.deployed.settings.kafka, self, wait_s=IDLE_S)
        if not tally.fine or tally.outcomes["indexed"] != count:
            sys.exit(f"not every document was indexed: {tally.outcomes}")
        self.held += count
        return tally

    def changed(self, tally: Tally) -> None:
        if time.monotonic() - self._looked > LOOK_EVERY_S:
            self.looks.append(Look(documents=self.held + tally.finished, rss_bytes=self.rss_bytes()))
            self._looked = time.monotonic()

    def rss_bytes(self) -> dict[str, int]:
        return {stage: self.deployed.memory(stage)[0] for stage in DOCUMENT_STAGES}

    def batch(self, count: int) -> Batch:
        before = {stage: self.deployed.cpu_seconds([stage]) for stage in DOCUMENT_STAGES}
        tally = self.add(count)
        return Batch(
            documents=count,
            chunks=tally.chunks,
            seconds=tally.seconds,
            cpu_s={stage: self.deployed.cpu_seconds([stage]) - before[stage] for stage in DOCUMENT_STAGES},
        )


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--documents", type=int, help=f"the last mark; {MARKS[-1]:,} by itself")


def run(options: Options) -> Report:
    marks = QUICK_MARKS if options.quick else MARKS
    if options.documents:
        marks = (*(mark for mark in marks if mark < options.documents), options.documents)
    batches = options.rounds or (QUICK_BATCHES if options.quick else BATCHES)
    with deployment(STATIC) as deployed:
        deployed.start(DOCUMENT_STAGES)
        deployed.wait(DOCUMENT_STAGES)
        growing = Growing(deployed)
        measured = [_mark(growing, mark, batches, QUICK_BATCH if options.quick else BATCH) for mark in marks]
    first, last = measured[0], measured[-1]
    ratios = {
        "seconds": spread(last.seconds).median / spread(first.seconds).median,
        "CPU seconds": spread(last.cpu_s).median / spread(first.cpu_s).median,
    }
    warm = next((mark for mark in measured if mark.held >= WARM), first)
    grown = {stage: last.rss_bytes[stage] / warm.rss_bytes[stage] for stage in DOCUMENT_STAGES}
    slopes = _slopes(growing.looks, warm.held)
    return Report(
        name=NAME,
        what=f"The cost of a document and the workers' memory, from {marks[0]:,} documents to {marks[-1]:,}.",
        tables=[_costs(measured), _stages(measured), _memory(measured, slopes)],
        figures={"marks": measured, "ratios": ratios, "looks": growing.looks, "rss_slopes": slopes},
        targets=[
            *(
                Target(f"{name} a document at {last.held:,} / at {first.held:,}", "at most", RATIO, ratio)
                for name, ratio in ratios.items()
            ),
            Target(
                f"memory at {last.held:,} / at {warm.held:,}, of the worker that grew most",
                "at most",
                FLAT,
                max(grown.values()),
            ),
        ],
        notes=[NOTE],
        plots=[
            Plot(
                "Cost of a document",
                "documents held",
                "ms",
                {
                    "time": [(mark.held, 1000 * spread(mark.seconds).median) for mark in measured],
                    "CPU of the workers": [(mark.held, 1000 * spread(mark.cpu_s).median) for mark in measured],
                },
                log_x=True,
            ),
            Plot(
                "Resident memory of the workers",
                "documents held",
                "MB",
                {
                    stage: [(look.documents, look.rss_bytes[stage] / 1e6) for look in growing.looks]
                    for stage in DOCUMENT_STAGES
                },
            ),
        ],
    )


def _mark(growing: Growing, mark: int, batches: int, size: int) -> Mark:
    missing = mark - growing.held
    fill = growing.add(missing)
    return Mark(
        held=mark,
        fill_per_s=missing / fill.seconds,
        quiet_after_s=_quiet(),
        batches=[growing.batch(size) for _ in range(batches)],
        rss_bytes=growing.rss_bytes(),
    )


def _quiet() -> float:
    """Seconds until the stores have done with what they were given before; at most `QUIET_WITHIN_S`."""
    started = time.monotonic()
    busy = QUIET
    while busy >= QUIET and time.monotonic() - started < QUIET_WITHIN_S:
        before, looked = machine_cpu_seconds(), time.monotonic()
        time.sleep(LOOK_AT_QUIET_S)
        busy = (machine_cpu_seconds() - before) / (time.monotonic() - looked)
    return time.monotonic() - started


def _slopes(looks: Sequence[Look], warm: int) -> dict[str, float]:
    """Bytes that each worker's memory grew by with a document, once it was warm: a line through what was looked at."""
    later = [look for look in looks if look.documents >= warm]
    if len(later) < 2:
        return {}
    documents = [look.documents for look in later]
    return {
        stage: float(np.polyfit(documents, [look.rss_bytes[stage] for look in later], 1)[0])
        for stage in DOCUMENT_STAGES
    }


def _costs(marks: Sequence[Mark]) -> Table:
    rows = [
        [
            f"{mark.held:,}",
            spread([1000 * seconds for seconds in mark.seconds]).text(),
            spread([1000 * cpu_s for cpu_s in mark.cpu_s]).text(),
            f"{sum(batch.chunks for batch in mark.batches) / _documents(mark):.2f}",
            f"{mark.fill_per_s:,.0f}",
            f"{mark.quiet_after_s:.0f}",
        ]
        for mark in marks
    ]
    columns = [
        "documents held",
        "ms",
        "CPU ms of the workers",
        "chunks",
        "filled before at documents/s",
        "stores quiet after s",
    ]
    return Table("Cost of a document", columns, rows)


def _stages(marks: Sequence[Mark]) -> Table:
    rows = [
        [
            stage,
            *(f"{1000 * sum(batch.cpu_s[stage] for batch in mark.batches) / _documents(mark):.2f}" for mark in marks),
        ]
        for stage in DOCUMENT_STAGES
    ]
    return Table("CPU ms of a document", ["worker", *(f"at {mark.held:,}" for mark in marks)], rows)


def _documents(mark: Mark) -> int:
    return sum(batch.documents for batch in mark.batches)


def _memory(marks: Sequence[Mark], slopes: Mapping[str, float]) -> Table:
    rows = [
        [
            stage,
            *(f"{mark.rss_bytes[stage] / 1e6:,.0f}" for mark in marks),
            f"{slopes[stage] * 100_000 / 1e6:+.1f}" if slopes else "",
        ]
        for stage in DOCUMENT_STAGES
    ]
    columns = ["worker", *(f"at {mark.held:,}" for mark in marks), "MB a further 100,000 documents"]
    return Table("Resident memory, MB", columns, rows)


if __name__ == "__main__":
    report.main(NAME, __doc__, run, arguments)
