"""What a gigabyte of text and a thousand questions cost each part of a deployment, and so how many of it are needed.

Generated documents go through the pipeline with the static encoder; counted are the records and bytes on each topic,
the CPU of each worker and of each server, and what the stores hold afterwards. The encoders' own rates and those of
questions come from the kept figures of `ingest` and `query`, and what a pod clears from those of `stages` (in --out, or
bench/results). The rest is arithmetic: docs/capacity.md says what follows from it.
"""

import argparse
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from confluent_kafka import Consumer, TopicPartition
from opensearchpy import OpenSearch

from bench import report, text
from bench.deployment import STATIC, Deployment, Silent, deployment
from bench.ingest import DEFAULT, INT8
from bench.keda import Scaled, scaled_objects
from bench.overlays import K8S, Objects, built, kustomize
from bench.report import Options, Report, Table, spread
from headrace.cli.publishing import publish
from headrace.config import load_settings
from headrace.wiring import build_encoder
from schemas.batches import CHUNKS_PER_BATCH
from schemas.document import Document
from schemas.wire import decode
from topics.table import DOCUMENT_STAGES, GROUPS, TOPICS

NAME = "capacity"
RESULTS = Path(__file__).parent / "results"
DOCUMENTS, QUICK_DOCUMENTS = 4_000, 500
IDLE_S = 300.0
GB = 1e9
HOUR_S = 3_600
DAY_S = 24 * HOUR_S
RETENTION_DAYS = 7
MODEL_DIMENSION = 384
"""Of the default model; what is measured here has the static encoder's 256."""
GRAPH_ROW_BYTES = MODEL_DIMENSION * 4 + 16 * 2 * 4
"""Of HNSW with M 16, as https://github.com/nmslib/hnswlib/blob/master/ALGO_PARAMS.md has it: the vector, and twice as
many links as M on the lowest layer."""
LOADS = (1, 10, 100)
"""Gigabytes of text an hour."""
QUESTIONS_PER_S = 1_000
KEPT = ("ingest", "query", "stages")
WAITS_S = (10, 60)
"""How long a message may wait for a stage: on the urgent lane, and in bulk."""
LAGS = (1, 1_000, 10_000, 100_000, 1_000_000)
BUSY = 0.7
"""Of a core, where a worker is counted as full: the rest is room for a peak and for catching up."""


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Of so much text. CPU in seconds; `topics` are records and their bytes, as they were sent."""

    text_bytes: int
    documents: int
    chunks: int
    seconds: float
    cpu_s: dict[str, float]
    topics: dict[str, tuple[int, int]]
    index_bytes: int

    def per_gb(self, amount: float) -> float:
        return amount / self.text_bytes * GB


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--documents", type=int, help=f"to measure with; {DOCUMENTS:,} by themselves")


def run(options: Options) -> Report:
    count = options.documents or (QUICK_DOCUMENTS if options.quick else DOCUMENTS)
    with deployment(STATIC) as deployed:
        cost = _measured(deployed, count)
        dimension = build_encoder(deployed.settings).identity.dimension
    kept = {name: found for name in KEPT if (found := kept_figures(name, options.out)) is not None}
    lacking = [f"No kept figures of {name}: its rows are left out." for name in KEPT if name not in kept]
    if kustomize() is None:
        lacking.append("No kustomize, kubectl or Go: what a pod clears, and the pods that a lag gets, are left out.")
    return Report(
        name=NAME,
        what="What a gigabyte of text and a thousand questions cost each part of a deployment.",
        tables=tables(cost, dimension, kept),
        figures={"cost": cost, "dimension": dimension},
        notes=lacking,
    )


def tables(cost: Cost, dimension: int, kept: Mapping[str, dict[str, Any]]) -> list[Table]:
    found = [_of_a_gigabyte(cost, dimension), _topics(cost), _needs(cost, kept), *_questions(kept)]
    if kustomize() is None:
        return found
    objects, _ = built(K8S / "base")
    return [*found, _clears(cost, kept, objects), _pods_of_lags(scaled_objects(objects))]


def _measured(deployed: Deployment, count: int) -> Cost:
    deployed.start(DOCUMENT_STAGES)
    deployed.wait(DOCUMENT_STAGES)
    publish(text.records(range(1), name="first"), deployed.settings.kafka, Silent(), wait_s=IDLE_S)
    records = list(text.records(range(count)))
    servers = _servers(deployed)
    before = {name: _cpu_s(pid) for name, pid in servers.items()}
    workers = {stage: deployed.cpu_seconds([stage]) for stage in DOCUMENT_STAGES}
    tally = publish(records, deployed.settings.kafka, Silent(), wait_s=IDLE_S)
    if not tally.fine or tally.outcomes["indexed"] != count:
        sys.exit(f"not every document was indexed: {tally.outcomes}")
    cpu_s = {stage: deployed.cpu_seconds([stage]) - workers[stage] for stage in DOCUMENT_STAGES}
    cpu_s |= {name: _cpu_s(pid) - before[name] for name, pid in servers.items()}
    return Cost(
        text_bytes=sum(len(decode(record.value or b"", Document).text.encode()) for record in records),
        documents=count,
        chunks=tally.chunks,
        seconds=tally.seconds,
        cpu_s=cpu_s,
        topics=_traffic(deployed),
        index_bytes=_index_bytes(deployed),
    )


def _traffic(deployed: Deployment) -> dict[str, tuple[int, int]]:
    """Records and bytes of keys, values and headers on each topic, transactions' marks left out."""
    kafka = deployed.settings.kafka
    names = {kafka.names.topic(topic.name): topic.name for topic in TOPICS}
    reader = Consumer(kafka.confluent() | {"group.id": "bench-capacity", "enable.partition.eof": True})
    places = [TopicPartition(name, partition, 0) for name in names for partition in range(kafka.partitions)]
    reader.assign(places)
    records, size, open_ends = Counter[str](), Counter[str](), len(places)
    while open_ends:
        for message in reader.consume(1_000, 1.0):
            if message.error():
                open_ends -= 1
                continue
            name = names[message.topic()]
            headers = sum(len(key) + len(value or b"") for key, value in message.headers() or ())
            records[name] += 1
            size[name] += len(message.key() or b"") + len(message.value() or b"") + headers
    reader.close()
    return {name: (records[name], size[name]) for name in names.values() if records[name]}


def _index_bytes(deployed: Deployment) -> int:
    """Of the tenant's texts in OpenSearch, merged into one segment and without its transaction log."""
    settings = deployed.settings.stores
    client = OpenSearch(settings.opensearch.url, timeout=120)
    index = f"{settings.prefix}{text.TENANT}_docs"
    client.indices.forcemerge(index=index, max_num_segments=1)
    client.indices.refresh(index=index)
    return int(client.indices.stats(index=index)["indices"][index]["primaries"]["store"]["size_in_bytes"])


def _servers(deployed: Deployment) -> dict[str, int]:
    """The processes that listen at the servers' addresses, where these are on this machine."""
    settings = deployed.settings
    addresses = {
        "Kafka": f"//{settings.kafka.bootstrap_servers.split(',')[0]}",
        "Milvus": settings.stores.milvus.uri,
        "OpenSearch": settings.stores.opensearch.url,
    }
    listening = dict(_listening())
    ports = {name: urlsplit(address).port for name, address in addresses.items()}
    return {name: listening[port] for name, port in ports.items() if port in listening}


def _listening() -> Iterator[tuple[int, int]]:
    """Ports and the processes that listen there, as /proc has it."""
    sockets: dict[str, int] = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            (
                _,
                local,
                _,
                state,
                *_,
            ) = line.split()
            if state == "0A":
                sockets[f"socket:[{line.split()[9]}]"] = int(local.rpartition(":")[2], 16)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            held = [str(handle.readlink()) for handle in (process / "fd").iterdir()]
        except OSError:  # It has ended, or is somebody else's.
            continue
        yield from ((sockets[target], int(process.name)) for target in held if target in sockets)


def _cpu_s(pid: int) -> float:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return sum(map(int, stat.rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")


def kept_figures(name: str, folder: Path | None = None) -> dict[str, Any] | None:
    """The figures of the last run of another benchmark."""
    for place in (folder, RESULTS):
        file = place and place / f"{name}.json"
        if file and file.is_file():
            figures: dict[str, Any] = msgspec.json.decode(file.read_bytes())["figures"]
            return figures
    return None


def _of_a_gigabyte(cost: Cost, dimension: int) -> Table:
    rows = [
        ["chunks", f"{cost.per_gb(cost.chunks):,.0f}"],
        ["documents, of which the generated ones have the median of 150 words", f"{cost.per_gb(cost.documents):,.0f}"],
        *([f"CPU hours of {name}", f"{cost.per_gb(used) / HOUR_S:.2f}"] for name, used in cost.cpu_s.items()),
        ["GB in OpenSearch, one copy", f"{cost.per_gb(cost.index_bytes) / GB:.2f}"],
        [
            f"GB of vectors in Milvus, one copy, {MODEL_DIMENSION} dimensions",
            f"{cost.per_gb(cost.chunks) * MODEL_DIMENSION * 4 / GB:.2f}",
        ],
        ["GB through Kafka, one copy, written once", f"{_kafka_bytes(cost, dimension, 1) / GB:.2f}"],
    ]
    return Table("One gigabyte of text", ["", "amount"], rows)


def _topics(cost: Cost) -> Table:
    rows = [
        [name, f"{cost.per_gb(records):,.0f}", f"{cost.per_gb(size) / GB:.2f}", f"{size / records:,.0f}"]
        for name, (records, size) in cost.topics.items()
    ]
    columns = ["topic", "records", "GB", "bytes a record"]
    return Table("One gigabyte of text on the topics, static encoder's vectors of 256 dimensions", columns, rows)


def _kafka_bytes(cost: Cost, dimension: int, gigabytes: float) -> float:
    """On all topics, with vectors as long as the default model's: in base64, a third longer than their bytes."""
    longer = cost.chunks * (MODEL_DIMENSION - dimension) * 4 * 4 / 3
    return gigabytes * cost.per_gb(sum(size for _, size in cost.topics.values()) + longer)


def _needs(cost: Cost, kept: Mapping[str, dict[str, Any]]) -> Table:
    """By gigabytes of text an hour."""
    chunks_per_s = cost.per_gb(cost.chunks) / HOUR_S
    rows = [["chunks/s", *(f"{load * chunks_per_s:,.0f}" for load in LOADS)]]
    for name, used in cost.cpu_s.items():
        if name == "embed":
            continue  # It is the encoder that decides.
        cores = cost.per_gb(used) / HOUR_S / BUSY
        rows.append([f"cores of {name}, {BUSY:.0%} busy", *(f"{load * cores:,.2f}" for load in LOADS)])
    for encoder in (DEFAULT, INT8):
        if rounds := kept.get("ingest", {}).get("rounds", {}).get(encoder):
            rate = spread([one["chunks"] / one["bare"]["cpu_s"] for one in rounds]).median
            cores = (f"{load * chunks_per_s / rate / BUSY:,.0f}" for load in LOADS)
            rows.append([f"cores of embed, {encoder}: {rate:,.0f} chunks a CPU second", *cores])
    kafka = _kafka_bytes(cost, MODEL_DIMENSION, 1)
    rows += [
        ["MB/s into Kafka, one copy", *(f"{load * kafka / HOUR_S / 1e6:,.1f}" for load in LOADS)],
        [
            f"TB in Kafka, {RETENTION_DAYS} days, one copy",
            *(f"{load * kafka * 24 * RETENTION_DAYS / 1e12:,.1f}" for load in LOADS),
        ],
        [
            "TB of text in OpenSearch a day",
            *(f"{load * cost.per_gb(cost.index_bytes) * 24 / 1e12:,.2f}" for load in LOADS),
        ],
        ["million rows in Milvus a day", *(f"{load * chunks_per_s * DAY_S / 1e6:,.0f}" for load in LOADS)],
        [
            "GB of memory for a day's rows in a graph index",
            *(f"{load * chunks_per_s * DAY_S * GRAPH_ROW_BYTES / GB:,.0f}" for load in LOADS),
        ],
    ]
    return Table("What so many gigabytes of text an hour need", ["", *(f"{load:,}" for load in LOADS)], rows)


def _questions(kept: Mapping[str, dict[str, Any]]) -> list[Table]:
    rounds = _fullest(kept)
    if not rounds:
        return []
    questions = sum(one["questions"] for one in rounds)
    all_s = sum(one["seconds"] for one in rounds) * (os.cpu_count() or 1)
    worker_s, client_s = (sum(one["cpu_s"][side] for one in rounds) for side in ("worker", "here"))
    parts = {
        "the query worker": worker_s,
        "the client that asks": client_s,
        "Kafka, Milvus and OpenSearch together, at most": all_s - worker_s - client_s,
    }
    rows = [
        [name, f"{1000 * used_s / questions:.1f}", f"{QUESTIONS_PER_S * used_s / questions / BUSY:,.0f}"]
        for name, used_s in parts.items()
    ]
    columns = ["", "CPU ms a question", f"cores for {QUESTIONS_PER_S:,} a second, {BUSY:.0%} busy"]
    return [Table(f"Questions, {_most_in_flight(kept)} in flight", columns, rows)]


def _fullest(kept: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The rounds with the most questions in flight, in which the machine has nothing left to give."""
    most = _most_in_flight(kept)
    cells = kept.get("query", {}).get("cells", ())
    found = [cell["rounds"] for cell in cells if (cell["in_flight"], cell["side"]) == (most, "Kafka")]
    return next(iter(found), [])


def _most_in_flight(kept: Mapping[str, dict[str, Any]]) -> int:
    """Without the reranker."""
    cells = kept.get("query", {}).get("cells", ())
    return max((cell["in_flight"] for cell in cells if not cell["rerank"]), default=0)


def pod_rates(cost: Cost, kept: Mapping[str, dict[str, Any]], objects: Objects) -> dict[str, float]:
    """Messages a second of a pod that is as busy as `BUSY` says, by stage, of what was measured.

    A pod is sure of the cores that it asks for and no more, and one process does not get beyond what it did alone.
    """
    rates = {}
    for stage, cores in _cores_asked_for(objects).items():
        if stage == "embed":
            rounds = kept.get("ingest", {}).get("rounds", {}).get(DEFAULT, [])
            per_core = [one["chunks"] / one["bare"]["cpu_s"] / cost.chunks * cost.documents for one in rounds]
            alone = [math.inf] * len(per_core)  # torch has as many threads as the pod has cores.
        elif stage == "query":
            rounds = _fullest(kept)
            per_core = [one["questions"] / one["cpu_s"]["worker"] for one in rounds]
            alone = [one["per_s"] for one in rounds]
        else:
            rounds = kept.get("stages", {}).get("rounds", {}).get(stage, [])
            per_core = [one["messages"] / one["cpu_s"] for one in rounds]
            alone = [one["messages"] / one["seconds"] for one in rounds]
        if rounds:
            rates[stage] = BUSY * min(cores * spread(per_core).median, spread(alone).median)
    return rates


def _cores_asked_for(objects: Objects) -> dict[str, float]:
    pods = {o["metadata"]["name"]: o["spec"]["template"]["spec"] for o in objects if o["kind"] == "Deployment"}
    asked = {stage: pods[f"headrace-{stage}"]["containers"][0]["resources"]["requests"]["cpu"] for stage in GROUPS}
    return {
        stage: int(cpu.removesuffix("m")) / 1000 if cpu.endswith("m") else float(cpu) for stage, cpu in asked.items()
    }


def _clears(cost: Cost, kept: Mapping[str, dict[str, Any]], objects: Objects) -> Table:
    cores = _cores_asked_for(objects)
    long = cost.chunks / cost.documents / CHUNKS_PER_BATCH
    rows = [
        [
            stage,
            f"{cores[stage]:g}",
            f"{rate:,.0f}",
            *(f"{rate * wait_s:,.0f}" for wait_s in WAITS_S),
            "" if stage in {"chunk", "query"} else f"{rate * long:,.1f}",
        ]
        for stage, rate in pod_rates(cost, kept, objects).items()
    ]
    columns = [
        "stage",
        "cores of a pod",
        f"messages/s, {BUSY:.0%} busy",
        *(f"in {wait_s} s" for wait_s in WAITS_S),
        f"messages/s of {CHUNKS_PER_BATCH} chunks",
    ]
    return Table(f"What a pod clears, of messages with {cost.chunks / cost.documents:.1f} chunks", columns, rows)


def _pods_of_lags(scaled: Sequence[Scaled]) -> Table:
    """One trigger's lag, and none of the other lane's."""
    partitions = load_settings().kafka.partitions
    by_stage = {one.target.removeprefix("headrace-"): one for one in scaled}
    rows = []
    for stage in GROUPS:
        one = by_stage[stage]
        for place, trigger in enumerate(one.triggers):
            pods = []
            for lag in LAGS:
                lags = [lag if number == place else 0 for number in range(len(one.triggers))]
                told = [
                    other.reported({number: (0, 0 if number else behind) for number in range(partitions)})
                    for other, behind in zip(one.triggers, lags, strict=True)
                ]
                pods.append(one.pods(told, current=0))
            rows.append([f"{stage}, {trigger.name}", f"{trigger.lag_threshold:,}", *map(str, pods)])
    columns = ["stage, trigger", "`lagThreshold`", *(f"{lag:,}" for lag in LAGS)]
    return Table("Pods that a lag of so many messages gets, by `k8s/base`", columns, rows)


if __name__ == "__main__":
    report.main(NAME, __doc__, run, arguments)
