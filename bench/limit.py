"""The pipeline against a hand-written loop: the same documents from Kafka into the same stores, static encoder.

`bench/loop.py` is what one would write first: one process that polls a batch, cuts it, encodes it, writes it to both
stores, and commits without waiting. In each round the pipeline's workers and then the loop are given the same
documents, and the time is taken from the first record published until the last document is in: told by its `indexed`
event, or by the loop. Neither runs while the other does.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from opensearchpy import OpenSearch

from bench import report, text
from bench.deployment import STATIC, Deployment, Silent, deployment, machine_cpu_seconds
from bench.report import Options, Report, Table, Target, spread
from headrace.cli.publishing import Outgoing, Tally, producer_config, publish
from headrace.stores.milvus import collection_name
from schemas import Document, Key, encode
from topics.table import DOCUMENT_STAGES

NAME = "limit"
ROUNDS = 3
DOCUMENTS, QUICK_DOCUMENTS = 6_000, 500
IDLE_S = 300.0
TENANT = "loop"
"""In whose collection and index the loop writes."""
LACKS = (
    "The loop has no versions and no deletes (an update leaves the old chunks in place, a redelivery is in Milvus"
    " twice), no retries, no dead letters, no events and no urgent lane, and doesn't wait until what it wrote is found"
    " by a search. It is one process, and stops where one of its servers does."
)


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """`cpu_s` of the workers or of the loop; `machine_cpu_s` of everything that ran, servers and publisher included."""

    seconds: float
    chunks: int
    cpu_s: float
    machine_cpu_s: float


class Round(msgspec.Struct, frozen=True, kw_only=True):
    pipeline: Side
    loop: Side
    cpu_s: dict[str, float]

    @property
    def ratio(self) -> float:
        return self.loop.seconds / self.pipeline.seconds


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--documents", type=int, help=f"in each round; {DOCUMENTS:,} by themselves")


def run(options: Options) -> Report:
    count = options.documents or (QUICK_DOCUMENTS if options.quick else DOCUMENTS)
    rounds = []
    with deployment(STATIC) as deployed:
        kafka = deployed.settings.kafka
        topic = NewTopic(_topic(deployed), kafka.partitions, 1)
        admin = AdminClient(kafka.confluent())
        admin.create_topics([topic])[topic.topic].result()
        for number in range(options.rounds or (1 if options.quick else ROUNDS)):
            pipeline, cpu_s = _pipeline(deployed, number, count)
            loop = _loop(deployed, number, count)
            if pipeline.chunks != loop.chunks:
                sys.exit(f"the pipeline has {pipeline.chunks} chunks, and the loop {loop.chunks}")
            rounds.append(Round(pipeline=pipeline, loop=loop, cpu_s=cpu_s))
    return Report(
        name=NAME,
        what="The same documents through the pipeline, and through a hand-written loop without its guarantees.",
        tables=[_rates(rounds), _stages(rounds)],
        figures={"rounds": rounds, "ratio": [one.ratio for one in rounds]},
        targets=[Target("pipeline / loop, static encoder", "at least", 0.6, spread([r.ratio for r in rounds]).median)],
        notes=[LACKS],
    )


def _pipeline(deployed: Deployment, number: int, count: int) -> tuple[Side, dict[str, float]]:
    deployed.start(DOCUMENT_STAGES)
    deployed.wait(DOCUMENT_STAGES)
    # Also the loop's collection and index are made by a first document, which isn't measured.
    for tenant in (text.TENANT, TENANT):
        key = Key(tenant, f"first-{number}")
        _publish(deployed, [Outgoing(where=str(key), key=key, value=encode(Document(text="First.")))])
    records = list(text.records(range(count), name=f"round-{number}"))
    before = {stage: deployed.cpu_seconds([stage]) for stage in DOCUMENT_STAGES}
    machine_before = machine_cpu_seconds()
    tally = _publish(deployed, records)
    machine_s = machine_cpu_seconds() - machine_before
    cpu_s = {stage: deployed.cpu_seconds([stage]) - before[stage] for stage in DOCUMENT_STAGES}
    deployed.stop()
    side = Side(seconds=tally.seconds, chunks=tally.chunks, cpu_s=sum(cpu_s.values()), machine_cpu_s=machine_s)
    return side, cpu_s


def _publish(deployed: Deployment, records: Sequence[Outgoing]) -> Tally:
    tally = publish(records, deployed.settings.kafka, Silent(), wait_s=IDLE_S)
    if not tally.fine or tally.outcomes["indexed"] != len(records):
        sys.exit(f"not every document was indexed: {tally.outcomes}")
    return tally


def _loop(deployed: Deployment, number: int, count: int) -> Side:
    settings = deployed.settings
    prefix = settings.stores.prefix
    (index,) = OpenSearch(settings.stores.opensearch.url).indices.get(index=f"{prefix}{TENANT}_docs")
    records = list(text.records(range(count), name=f"round-{number}"))
    command = [sys.executable, "-m", "bench.loop", _topic(deployed), str(count)]
    loop = subprocess.Popen(
        [*command, collection_name(prefix, TENANT), index],
        stdout=subprocess.PIPE,
        env=deployed.environment,
        cwd=Path(__file__).parents[1],
        text=True,
    )
    with loop:
        output = loop.stdout
        assert output is not None
        if output.readline() != "ready\n":
            sys.exit("the loop did not start")
        machine_before, started = machine_cpu_seconds(), time.perf_counter()
        producer = Producer(producer_config(settings.kafka.confluent()))
        for record in records:
            producer.produce(_topic(deployed), record.value, record.key.encode())
            producer.poll(0)
        producer.flush()
        told = output.readline()
        seconds, machine_s = time.perf_counter() - started, machine_cpu_seconds() - machine_before
    if loop.returncode or not told:
        sys.exit("the loop ended before its documents did")
    done = json.loads(told)
    return Side(seconds=seconds, chunks=done["chunks"], cpu_s=done["cpu_s"], machine_cpu_s=machine_s)


def _topic(deployed: Deployment) -> str:
    return f"{deployed.settings.kafka.topic_prefix}loop"


def _rates(rounds: Sequence[Round]) -> Table:
    sides = {"pipeline": [one.pipeline for one in rounds], "loop": [one.loop for one in rounds]}
    rows = [
        [
            name,
            f"{of_side[0].chunks:,}",
            spread([side.chunks / side.seconds for side in of_side]).text(0),
            spread([1000 * side.cpu_s / side.chunks for side in of_side]).text(),
            spread([1000 * side.machine_cpu_s / side.chunks for side in of_side]).text(),
        ]
        for name, of_side in sides.items()
    ]
    rows.append(["pipeline / loop", "", spread([one.ratio for one in rounds]).text(), "", ""])
    columns = ["", "chunks", "chunks/s", "own CPU s per 1,000 chunks", "the machine's, with the servers"]
    return Table("", columns, rows)


def _stages(rounds: Sequence[Round]) -> Table:
    chunks = sum(one.pipeline.chunks for one in rounds)
    cpu_s = (1000 * sum(one.cpu_s[stage] for one in rounds) / chunks for stage in DOCUMENT_STAGES)
    rows = [["CPU s per 1,000 chunks", *(f"{seconds:.2f}" for seconds in cpu_s)]]
    return Table("The pipeline's workers", ["", *DOCUMENT_STAGES], rows)


if __name__ == "__main__":
    report.main(NAME, __doc__, run, arguments)
