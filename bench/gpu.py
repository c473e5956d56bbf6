"""Tokens a second on a CUDA device: the bare encoder, and the embed stage's own work around it.

Bare is the encoder alone, given all chunks in one call. The stage reads the same chunks from records as Kafka would
give them, decodes them, has as many batches in hand as it does in a worker, and makes the records that it would write;
Kafka itself is left out. Both are measured in every round, at each precision and token budget of a batch. Busy is the
share of time in which the device ran anything, as its driver samples it. Without a CUDA device there is nothing to
measure.
"""

import argparse
import asyncio
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import msgspec
import torch

from agents.app import FORWARD_BATCHES, TOKEN_BYTES
from agents.embed import IN_FLIGHT, Embedder
from agents.stage import Item, Record
from bench import report, text
from bench.report import Options, Plot, Report, Spread, Table, spread
from headrace.chunking import chunk, load_tokenizer
from headrace.chunking.settings import ChunkingSettings
from headrace.config import WorkerSettings
from headrace.encoders import Encoder, build_encoder, context_of, tokenizer_file
from headrace.encoders.settings import EncoderSettings
from schemas import Attributes, ChunkBatch, Revision, encode
from schemas.batches import CHUNKS_PER_BATCH

NAME = "gpu"
ROUNDS = 5
DOCUMENTS, QUICK_DOCUMENTS = 20_000, 300
PRECISIONS, QUICK_PRECISIONS = ("float32", "float16", "bfloat16"), ("float32",)
BUDGETS, QUICK_BUDGETS = (4_096, 16_384, 65_536, 262_144), (4_096, 16_384)
SAMPLE_MS = 50


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """`busy` is a share of `seconds`; None where nothing says."""

    seconds: float
    busy: float | None


class Round(msgspec.Struct, frozen=True, kw_only=True):
    precision: str
    batch_tokens: int
    bare: Side
    stage: Side


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--documents", type=int, help=f"generated ones; {DOCUMENTS:,} by themselves")
    parser.add_argument("--model", default=EncoderSettings().model, help="a folder, or a name on a hub")
    parser.add_argument("--device", default="cuda", help="cpu shows that the benchmark works, and measures nothing")


def run(options: Options) -> Report:
    on_cuda = options.device != "cpu"
    settings = EncoderSettings(model=options.model, device=options.device)
    records = _records(options.documents or (QUICK_DOCUMENTS if options.quick else DOCUMENTS), settings)
    chunks = [(batch, each) for batch in map(_decoded, records) for each in batch.chunks]
    tokens = sum(each.tokens for _, each in chunks)
    texts = [each.text for _, each in chunks]
    contexts = [context_of("title", batch.attributes.title, [], each.text) for batch, each in chunks]

    def one_round(encoder: Encoder, precision: str, budget: int) -> Round:
        bare = _measured(lambda: encoder.encode(texts, contexts=contexts), on_cuda=on_cuda)
        stage = _measured(lambda: asyncio.run(_embed(records, encoder, budget)), on_cuda=on_cuda)
        return Round(precision=precision, batch_tokens=budget, bare=bare, stage=stage)

    rounds: list[Round] = []
    for precision in PRECISIONS if on_cuda and not options.quick else QUICK_PRECISIONS:
        for budget in QUICK_BUDGETS if options.quick else BUDGETS:
            own = {"precision": precision, "batch_tokens": budget}
            encoder = build_encoder(EncoderSettings(**settings.model_dump() | own))
            # What a device is asked for the first time is slow.
            encoder.encode(texts[:64], contexts=contexts[:64])
            count = 1 if options.quick else options.rounds or ROUNDS
            rounds += [one_round(encoder, precision, budget) for _ in range(count)]
    device = torch.cuda.get_device_name() if on_cuda else "a CPU: these figures say nothing of a GPU"
    return _report(rounds, tokens, f"{len(chunks):,} chunks, {tokens:,} tokens, {options.model}, on {device}.")


def _records(documents: int, settings: EncoderSettings) -> list[Record]:
    """As the chunk stage writes them."""
    tokenizer, chunking = load_tokenizer(tokenizer_file(settings)), ChunkingSettings().chunking()
    records = []
    for number in range(documents):
        document = text.document(number)
        chunks = chunk(document.text, document.content_type, chunking, tokenizer)
        for first in range(0, len(chunks), CHUNKS_PER_BATCH):
            batch = ChunkBatch(
                tenant=text.TENANT,
                doc_id=f"generated-{number:07}",
                revision=Revision(version=1, timestamp=1, offset=number, fingerprint="0" * 32),
                total=len(chunks),
                first=first,
                attributes=Attributes(created_at=datetime.now(UTC), title=document.title),
                chunks=chunks[first : first + CHUNKS_PER_BATCH],
            )
            records.append(
                Record(
                    topic="documents.chunks",
                    partition=0,
                    offset=len(records),
                    timestamp=1,
                    key=batch.key.encode(),
                    value=encode(batch),
                    headers=(),
                    lane="bulk",
                )
            )
    return records


def _decoded(record: Record) -> ChunkBatch:
    assert record.value is not None
    return msgspec.json.decode(record.value, type=ChunkBatch)


async def _embed(records: Sequence[Record], encoder: Encoder, batch_tokens: int) -> None:
    """All that the stage does with the records but for reading and writing them."""
    batch_bytes = FORWARD_BATCHES * batch_tokens * TOKEN_BYTES
    stage = Embedder(encoder=encoder).stage(batch_messages=WorkerSettings().batch_messages, batch_bytes=batch_bytes)
    in_hand = asyncio.Semaphore(IN_FLIGHT)

    async def work(batch: list[Record]) -> None:
        try:
            for _ in await stage.work([Item(record=record, message=stage.decode(record)) for record in batch]):
                pass
        finally:
            in_hand.release()

    async with asyncio.TaskGroup() as working:
        for batch in _batches(records, stage.batch_messages, batch_bytes):
            await in_hand.acquire()
            working.create_task(work(batch))


def _batches(records: Sequence[Record], messages: int, size: int) -> Iterator[list[Record]]:
    batch: list[Record] = []
    taken = 0
    for record in records:
        batch.append(record)
        taken += len(record.value or b"")
        if len(batch) == messages or taken >= size:
            yield batch
            batch, taken = [], 0
    if batch:
        yield batch


def _measured(work: Callable[[], object], *, on_cuda: bool) -> Side:
    with _sampled(on_cuda=on_cuda) as samples:
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
    return Side(seconds=seconds, busy=statistics.fmean(samples) / 100 if samples else None)


@contextmanager
def _sampled(*, on_cuda: bool) -> Iterator[list[float]]:
    """The driver's samples, per cent, of the time of the block; filled when it ends."""
    samples: list[float] = []
    if not on_cuda or shutil.which("nvidia-smi") is None:
        yield samples
        return
    query = ["nvidia-smi", "-i", "0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    with tempfile.TemporaryFile() as lines:
        sampler = subprocess.Popen([*query, "-lms", str(SAMPLE_MS)], stdout=lines)
        try:
            yield samples
        finally:
            sampler.terminate()
            sampler.wait()
            lines.seek(0)
            samples += [float(line) for line in lines.read().split() if line.isdigit()]


def _report(rounds: Sequence[Round], tokens: int, note: str) -> Report:
    cases = {
        (each.precision, each.batch_tokens): [one for one in rounds if _case(one) == _case(each)] for each in rounds
    }
    rows = []
    curves: dict[str, list[tuple[float, float]]] = {}
    for (precision, budget), each in cases.items():
        bare, stage = (spread([tokens / side.seconds for side in sides]) for sides in _sides(each))
        rows.append(
            [
                f"{precision}, {budget:,}",
                bare.text(0),
                stage.text(0),
                spread([one.bare.seconds / one.stage.seconds for one in each]).text(),
                _busy([one.bare for one in each]),
                _busy([one.stage for one in each]),
            ]
        )
        for name, found in (("bare", bare), ("stage", stage)):
            curves.setdefault(f"{precision}, {name}", []).append((budget, found.median))
    columns = [
        "precision, batch tokens",
        "bare tokens/s",
        "stage tokens/s",
        "stage / bare",
        "busy, bare",
        "busy, stage",
    ]
    return Report(
        name=NAME,
        what="tokens a second on a GPU: the embed stage over the bare encoder",
        tables=[Table("", columns, rows)],
        figures={"tokens": tokens, "rounds": rounds},
        notes=[note],
        plots=[Plot("The embed stage on a GPU", "tokens of a batch", "tokens/s", curves, log_x=True)],
    )


def _case(one: Round) -> tuple[str, int]:
    return one.precision, one.batch_tokens


def _sides(rounds: Sequence[Round]) -> tuple[list[Side], list[Side]]:
    return [one.bare for one in rounds], [one.stage for one in rounds]


def _busy(sides: Sequence[Side]) -> str:
    found = [side.busy for side in sides if side.busy is not None]
    return _percent(spread(found)) if found else "–"


def _percent(share: Spread) -> str:
    return f"{100 * share.median:.0f}%"


if __name__ == "__main__":
    import sys

    if not torch.cuda.is_available() and "cpu" not in sys.argv:
        print("gpu: there is no CUDA device here, so there is nothing to measure")
        sys.exit(0)
    report.main(NAME, __doc__, run, arguments)
