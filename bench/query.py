"""What a question costs over Kafka, next to the same retrieval called in one process, and to bare calls of the stores.

Three sides, each with 1, 8 and 64 questions in flight, one after the other in every round:

    Kafka    the Python client of this repository asks, a query worker of its own process answers
    direct   the worker's own parts called in this process: the embedder, which gathers questions, and the retrieval
    stores   one search in Milvus, one in OpenSearch and one multi-get a question, by pymilvus and opensearch-py,
             without embedding, live check and fusion: so many threads as there are questions in flight

Kafka and direct once more with a cross-encoder. It is a tiny one with random weights, made here: what it costs is the
way to a reranker and through its queue, and not what a real model takes.
"""

import argparse
import asyncio
import gc
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

from headrace_client import Client
from headrace_client import Query as Asked
from headrace_client.pending import Pending
from opensearchpy import OpenSearch
from pymilvus import MilvusClient

from bench import report
from bench.deployment import STATIC, Deployment, Silent, deployment, value
from bench.report import Options, Plot, Report, Spread, Table, Target, percentile, spread
from bench.text import TENANT, records
from headrace import wiring
from headrace.cli.publishing import publish
from headrace.config import Settings
from headrace.retrieval import Retriever
from headrace.serving.embedding import QueryEmbedder
from headrace.stores.milvus import collection_name
from schemas import Query

NAME = "query"
IN_FLIGHT = (1, 8, 64)
LEVELS = [*((level, False) for level in IN_FLIGHT), (1, True), (8, True)]
"""How many in flight, and whether what is found is reranked."""
ROUNDS = 4
SECONDS = 4.0
"""That one side of one round is asked."""
DOCUMENTS = 2000
QUICK_DOCUMENTS = 60
QUICK_SECONDS = 0.7
QUESTIONS = Path(__file__).parents[1] / "examples" / "covidqa" / "queries.jsonl"
INDEXED_WITHIN_S = 300.0
PIPELINE = ("chunk", "embed", "upsert-milvus", "upsert-opensearch", "commit")
MOST_ADDED_MS = 10.0
LEAST_SHARE = 0.7
BOTH = "both stores"
NOTES = [
    (
        "A query asks for hits (`mode` search, the best 10), with the Python client of this repository. "
        "Percentiles are over all rounds; what Kafka adds and its share are taken within each round."
    ),
    (
        "The client that asks, the worker and the three servers share these cores; the direct side has one process "
        "less on them, and no broker. What the client takes is in the last table."
    ),
    "The reranker is tiny and has random weights; a real one takes its time on both sides.",
]


@dataclass
class Cell:
    """One side with so many in flight, in one round. Milliseconds by question; CPU in seconds."""

    latencies: list[float] = field(default_factory=list)
    steps: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    seconds: float = 0.0
    own_cpu_s: float = 0.0
    worker_cpu_s: float = 0.0

    @property
    def p50(self) -> float:
        return percentile(self.latencies, 0.5)

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def note(self, latency_ms: float, steps: Mapping[str, float]) -> None:
        self.latencies.append(latency_ms)
        for step, took_ms in steps.items():
            self.steps[step].append(took_ms)
        self.steps[BOTH].append(max(steps["milvus"], steps["opensearch"]))

    def mean(self, step: str) -> float:
        return fmean(self.steps[step]) if self.steps[step] else 0.0


Where: TypeAlias = tuple[str, int, bool]
"""Which side, how many in flight, and whether they are reranked."""
Side: TypeAlias = Callable[[int, bool, float], Cell]
"""Asks with so many in flight, reranked or not, for so many seconds."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--documents", type=int, help=f"generated ones that are searched (default: {DOCUMENTS})")
    parser.add_argument("--seconds", type=float, help=f"of one side in one round (default: {SECONDS:g})")


def run(options: Options) -> Report:
    rounds = options.rounds or (1 if options.quick else ROUNDS)
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    documents = options.documents or (QUICK_DOCUMENTS if options.quick else DOCUMENTS)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        questions = _questions()
        cross_encoder(Path(folder), questions)
        # Who wants the figures with another encoder names it; this one takes next to nothing, so what is left is the
        # way, and a query worker is held against a direct call that is as quick as can be.
        environment = {} if "HEADRACE_ENCODER__BACKEND" in os.environ else STATIC
        reranker = {"ENABLED": "true", "MODEL": folder, "DEVICE": "cpu"}
        environment |= {f"HEADRACE_RERANK__{name}": text for name, text in reranker.items()}
        with deployment(environment) as deployed:
            chunks = _fill(deployed, documents)
            deployed.start(("query",))
            deployed.wait(("query",))
            cells = measure(deployed, questions, rounds=rounds, seconds=seconds)
    return _report(cells, deployed.settings, chunks=chunks, rounds=rounds)


def measure(deployed: Deployment, questions: Sequence[str], *, rounds: int, seconds: float) -> dict[Where, list[Cell]]:
    """Every cell, by rounds. The query worker runs."""
    settings = deployed.settings
    kafka = settings.kafka
    cells: defaultdict[Where, list[Cell]] = defaultdict(list)
    with (
        Client(kafka.bootstrap_servers, topic_prefix=kafka.topic_prefix) as client,
        asyncio.Runner() as loop,
    ):
        retriever = wiring.build_retriever(settings)
        embedder = QueryEmbedder(wiring.build_encoder(settings))
        calls = StoreCalls(settings, _vectors(settings, questions))
        gc.collect()
        gc.freeze()  # As a worker does: else this side is slower, for a reason that is no part of the question.

        def over_kafka(in_flight: int, rerank: bool, seconds: float) -> Cell:
            return _over_kafka(deployed, client, _asked(questions, rerank), in_flight, seconds)

        def direct(in_flight: int, rerank: bool, seconds: float) -> Cell:
            queries = (Query(query=text, rerank=rerank) for text in cycle(questions))
            return loop.run(_direct(embedder, retriever, queries, in_flight, seconds))

        def stores(in_flight: int, _: bool, seconds: float) -> Cell:
            return calls.run(in_flight, seconds)

        sides: dict[str, Side] = {"Kafka": over_kafka, "direct": direct, "stores": stores}
        for side in sides.values():  # Connections, and what a server does for the first time.
            side(8, False, min(1.0, seconds))
        for _ in range(rounds):
            for level, rerank in LEVELS:
                for name, side in sides.items():
                    if not (rerank and name == "stores"):
                        cells[name, level, rerank].append(side(level, rerank, seconds))
        retriever.close()
        calls.close()
        gc.unfreeze()
    return cells


def _over_kafka(deployed: Deployment, client: Client, queries: Iterator[Asked], in_flight: int, seconds: float) -> Cell:
    """Each answer asks the next question, on the thread that reads the replies: nothing waits for another thread."""
    cell, ended, lock = Cell(), threading.Event(), threading.Lock()
    failures: list[str] = []
    left = in_flight
    stop = time.perf_counter() + seconds

    def ask() -> None:
        with lock:
            query = next(queries)
        client.ask(query).add_done_callback(partial(answered, time.perf_counter()))

    def answered(started: float, pending: Pending[Any]) -> None:
        nonlocal left
        if (failed := pending.exception()) is not None:
            failures.append(repr(failed))
        else:
            answer = pending.result()
            failures.extend(answer.degraded)
            cell.note((time.perf_counter() - started) * 1000, answer.timings_ms)
        if time.perf_counter() < stop and not failures:
            ask()
            return
        with lock:
            left -= 1
            if not left:
                ended.set()

    before, cpu = _worker_steps(deployed), (deployed.cpu_seconds(), time.process_time())
    started = time.perf_counter()
    for _ in range(in_flight):
        ask()
    ended.wait()
    cell.seconds = time.perf_counter() - started
    cell.worker_cpu_s, cell.own_cpu_s = deployed.cpu_seconds() - cpu[0], time.process_time() - cpu[1]
    if failures:
        sys.exit(f"the query worker did not answer as it should: {failures[0]}\n{deployed.log('query')}")
    for step, (count, took_s) in _worker_steps(deployed).items():
        cell.steps[f"worker {step}"] = [(took_s - before[step][1]) * 1000 / max(1.0, count - before[step][0])]
    return cell


async def _direct(
    embedder: QueryEmbedder, retriever: Retriever, queries: Iterator[Query], in_flight: int, seconds: float
) -> Cell:
    cell = Cell()
    stop = time.perf_counter() + seconds

    async def asking() -> None:
        while (started := time.perf_counter()) < stop:
            query = next(queries)
            vector = await embedder.embed(query.query)
            embedded = time.perf_counter()
            found = await retriever.search(query, vector)
            if found.degraded:
                sys.exit(f"the stores did not answer as they should: {found.degraded}")
            took_ms = (time.perf_counter() - started) * 1000
            cell.note(took_ms, {"embed": (embedded - started) * 1000, **found.timings_ms, "total": took_ms})

    cpu, started = time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(in_flight):
            tasks.create_task(asking())
    cell.seconds, cell.own_cpu_s = time.perf_counter() - started, time.process_time() - cpu
    return cell


class StoreCalls:
    """What a retrieval asks, as somebody would who has the two clients alone: no row is decoded to a type."""

    def __init__(self, settings: Settings, questions: Sequence[tuple[str, list[float]]]) -> None:
        prefix, self._limit = settings.stores.prefix, settings.retrieval.candidates
        self._collection, self._index = collection_name(prefix, TENANT), f"{prefix}{TENANT}_docs"
        self._manifests = f"{prefix}{TENANT}_manifest"
        self._questions = questions
        self._milvus = MilvusClient(settings.stores.milvus.uri)
        self._opensearch = OpenSearch(settings.stores.opensearch.url, pool_maxsize=max(IN_FLIGHT))

    def run(self, in_flight: int, seconds: float) -> Cell:
        cell = Cell()
        questions = cycle(self._questions)
        stop = time.perf_counter() + seconds

        def asking() -> None:
            while (started := time.perf_counter()) < stop:
                self._ask(*next(questions))
                cell.latencies.append((time.perf_counter() - started) * 1000)

        threads = [threading.Thread(target=asking) for _ in range(in_flight)]
        cpu, started = time.process_time(), time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        cell.seconds, cell.own_cpu_s = time.perf_counter() - started, time.process_time() - cpu
        return cell

    def close(self) -> None:
        self._milvus.close()
        self._opensearch.close()

    def _ask(self, question: str, vector: list[float]) -> None:
        ef = {"metric_type": "COSINE", "params": {"ef": 2 * self._limit}}
        [near] = self._milvus.search(
            self._collection, data=[vector], limit=self._limit, output_fields=["doc_id"], search_params=ef
        )
        body = {"query": {"match": {"searched": question}}, "size": self._limit, "_source": ["doc_id"]}
        said = self._opensearch.search(index=self._index, body=body)["hits"]["hits"]
        documents = {hit["entity"]["doc_id"] for hit in near} | {hit["_source"]["doc_id"] for hit in said}
        rows = {hit["id"] for hit in near[:5]} | {hit["_id"] for hit in said[:5]}
        wanted = [{"_index": self._manifests, "_id": doc_id} for doc_id in documents]
        self._opensearch.mget(body={"docs": wanted + [{"_index": self._index, "_id": row} for row in rows]})


def cross_encoder(folder: Path, texts: Iterable[str]) -> None:
    """Write a reranker of two small layers with random weights. It reads whole passages."""
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    words = sorted({word for text in texts for word in text.lower().split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    tokenizer = BertTokenizer(vocab={word: place for place, word in enumerate(vocabulary)})
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=512,
        num_labels=1,
    )
    with tempfile.TemporaryDirectory() as drafts:
        BertForSequenceClassification(config).save_pretrained(drafts)
        tokenizer.save_pretrained(drafts)
        CrossEncoder(drafts, device="cpu").save_pretrained(str(folder))


def _fill(deployed: Deployment, documents: int) -> int:
    """Index generated documents, and return how many chunks they are."""
    deployed.start(PIPELINE)
    deployed.wait(PIPELINE)
    tally = publish(records(range(documents)), deployed.settings.kafka, Silent(), wait_s=INDEXED_WITHIN_S)
    if tally.outcomes["indexed"] != documents:
        sys.exit(f"not every document was indexed: {tally.outcomes}")
    deployed.stop()
    return tally.chunks


def _questions() -> list[str]:
    """Those that people asked about the examples, in an order that no document decides."""
    texts = [json.loads(line)["text"] for line in QUESTIONS.read_text().splitlines()]
    random.Random(0).shuffle(texts)
    return texts


def _asked(questions: Sequence[str], rerank: bool) -> Iterator[Asked]:
    return (Asked(query=text, rerank=rerank) for text in cycle(questions))


def _vectors(settings: Settings, questions: Sequence[str]) -> list[tuple[str, list[float]]]:
    vectors = wiring.build_encoder(settings).encode_queries(questions)
    return list(zip(questions, vectors.tolist(), strict=True))


def _worker_steps(deployed: Deployment) -> dict[str, tuple[float, float]]:
    """Of each step, how often it was done and the seconds that it took, all together."""
    page = deployed.metrics("query")
    name = "headrace_step_seconds"
    return {
        step: (value(page, f"{name}_count", stage="query", step=step), value(page, f"{name}_sum", step=step))
        for step in ("decode", "work", "write")
    }


def _report(cells: Mapping[Where, Sequence[Cell]], settings: Settings, *, chunks: int, rounds: int) -> Report:
    added = {level: _added(cells, level, rerank=False) for level in IN_FLIGHT}
    shares = {level: _shares(cells, level, rerank=False) for level in IN_FLIGHT}
    return Report(
        name=NAME,
        what=f"questions of {chunks:,} chunks over Kafka, by a direct call, and bare calls of the stores",
        tables=[_rates(cells), _ratios(cells), _steps(cells), _cpu(cells)],
        figures={
            "chunks": chunks,
            "rounds": rounds,
            "encoder": settings.encoder.model_dump(mode="json"),
            "candidates": settings.retrieval.candidates,
            "cells": [_figures(where, of_rounds) for where, of_rounds in cells.items()],
        },
        targets=[
            Target("added p50, 1 in flight", "at most", MOST_ADDED_MS, added[1].median, " ms"),
            Target("queries/s over direct, 64 in flight", "at least", LEAST_SHARE, shares[64].median),
        ],
        notes=NOTES,
        plots=[Plot("Questions a second", "in flight", "questions/s", _curves(cells), log_x=True)],
    )


def _curves(cells: Mapping[Where, Sequence[Cell]]) -> dict[str, list[tuple[float, float]]]:
    return {
        side: [(level, spread([cell.rate for cell in cells[side, level, False]]).median) for level in IN_FLIGHT]
        for side in ("Kafka", "direct", "stores")
    }


def _added(cells: Mapping[Where, Sequence[Cell]], level: int, *, rerank: bool) -> Spread:
    rounds = zip(cells["Kafka", level, rerank], cells["direct", level, rerank], strict=True)
    return spread([kafka.p50 - direct.p50 for kafka, direct in rounds])


def _shares(cells: Mapping[Where, Sequence[Cell]], level: int, *, rerank: bool) -> Spread:
    rounds = zip(cells["Kafka", level, rerank], cells["direct", level, rerank], strict=True)
    return spread([kafka.rate / direct.rate for kafka, direct in rounds])


def _rates(cells: Mapping[Where, Sequence[Cell]]) -> Table:
    rows: list[list[str]] = []
    for level, rerank in LEVELS:
        row = [_named(level, rerank=rerank)]
        for side in ("Kafka", "direct", "stores"):
            of_rounds = cells.get((side, level, rerank))
            if of_rounds is None:
                row += ["", "", ""]
                continue
            latencies = [latency for cell in of_rounds for latency in cell.latencies]
            row += [f"{percentile(latencies, share):.1f}" for share in (0.5, 0.99)]
            row.append(spread([cell.rate for cell in of_rounds]).text(0))
        rows.append(row)
    columns = [f"{side} {what}" for side in ("Kafka", "direct", "stores") for what in ("p50 ms", "p99 ms", "q/s")]
    return Table("Questions", ["in flight", *columns], rows)


def _ratios(cells: Mapping[Where, Sequence[Cell]]) -> Table:
    rows = [
        [
            _named(level, rerank=rerank),
            _added(cells, level, rerank=rerank).text(1),
            _shares(cells, level, rerank=rerank).text(),
        ]
        for level, rerank in LEVELS
    ]
    return Table("Kafka against direct, by rounds", ["in flight", "p50 added, ms", "q/s, ratio"], rows)


def _named(level: int, *, rerank: bool) -> str:
    return f"{level}, reranked" if rerank else str(level)


def _steps(cells: Mapping[Where, Sequence[Cell]]) -> Table:
    """Means over all rounds. What runs at once is shown one by one, and counted once."""
    sides = [(side, level) for level in IN_FLIGHT for side in ("Kafka", "direct")]
    columns = [_mean_steps(side, cells[side, level, False]) for side, level in sides]
    rows = [[name, *(f"{column[name]:.1f}" if name in column else "" for column in columns)] for name in columns[0]]
    return Table(
        "Where a question's time goes, mean ms", ["step", *(f"{side}, {level}" for side, level in sides)], rows
    )


def _mean_steps(side: str, of_rounds: Sequence[Cell]) -> dict[str, float]:
    def mean(step: str) -> float:
        return fmean(cell.mean(step) for cell in of_rounds)

    apart = {"wait for a slot": mean("wait"), "embed": mean("embed")}
    at_once = {"- Milvus": mean("milvus"), "- OpenSearch": mean("opensearch")}
    after = {"read manifests and texts": mean("read"), "fuse": mean("fuse")}
    total = mean("total")
    whole = fmean(latency for cell in of_rounds for latency in cell.latencies)
    rest = total - sum(apart.values()) - mean(BOTH) - sum(after.values())
    steps = {**apart, "both stores, at once": mean(BOTH), **at_once, **after, "the rest of the search": rest}
    if side == "Kafka":
        steps |= {
            "Kafka both ways, and the client": whole - total,
            "- until the reply is confirmed": mean("worker write"),
        }
    return {**steps, "all": whole}


def _cpu(cells: Mapping[Where, Sequence[Cell]]) -> Table:
    rows: list[list[str]] = []
    for level in IN_FLIGHT:
        row = [str(level)]
        for side, of_worker in (("Kafka", True), ("Kafka", False), ("direct", False), ("stores", False)):
            of_rounds = cells[side, level, False]
            used_s = [cell.worker_cpu_s if of_worker else cell.own_cpu_s for cell in of_rounds]
            per_question = (1000 * cpu_s / len(cell.latencies) for cpu_s, cell in zip(used_s, of_rounds, strict=True))
            row.append(spread(list(per_question)).text())
        rows.append(row)
    return Table(
        "CPU a question, ms, servers not counted",
        ["in flight", "Kafka: worker", "Kafka: client", "direct", "stores"],
        rows,
    )


def _figures(where: Where, of_rounds: Sequence[Cell]) -> dict[str, Any]:
    side, level, rerank = where
    return {
        "side": side,
        "in_flight": level,
        "rerank": rerank,
        "rounds": [
            {
                "questions": len(cell.latencies),
                "seconds": cell.seconds,
                "per_s": cell.rate,
                **{f"p{share}_ms": percentile(cell.latencies, share / 100) for share in (50, 90, 99)},
                "mean_ms": {step: cell.mean(step) for step in cell.steps},
                "cpu_s": {"here": cell.own_cpu_s, "worker": cell.worker_cpu_s},
            }
            for cell in of_rounds
        ],
    }


if __name__ == "__main__":
    report.main(NAME, __doc__, run, arguments)
