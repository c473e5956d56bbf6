"""A worker of the smallest stage there is: it copies `documents.stored` to `documents.events`. For the transport's tests.

Every message holds a number; `CRASH_ON` names one that breaks the worker, `SLOW_S` makes each batch take longer, `AWAY` says
that the store is away, and `FAULT` is one of the ways in which it may go quiet, once it has a batch.
"""

import asyncio
import os
import sys
import time
from collections.abc import Sequence

from agents.stage import Item, Outgoing, Record, Stage
from agents.worker import Worker
from headrace import telemetry
from headrace.config import load_settings
from headrace.errors import Poison, Transient


def decode(record: Record) -> bytes:
    if record.value is None or (record.value.startswith(b"poison") and "TAKES_POISON" not in os.environ):
        raise Poison("unreadable", "not a number")
    return record.value


def go_quiet(fault: str) -> None:
    """What a worker must not survive: it lives, and does nothing more."""
    kafka = worker.app.kafka
    consumer = kafka._thread._ensure_consumer()
    print("quiet from now on:", fault, flush=True)
    match fault:
        case "its partitions stay paused":
            kafka.pause_partitions(kafka.assignment())
        case "its fetcher has died":
            kafka._thread.thread_loop.call_soon_threadsafe(consumer._fetcher._fetch_task.cancel)
        case "its consumer's thread hangs":
            kafka._thread.thread_loop.call_soon_threadsafe(time.sleep, 3600)
        case "its event loop hangs":
            time.sleep(3600)
        case "it is out of its group":
            worker.app.rebalancing = True


async def work(batch: Sequence[Item[bytes]]) -> list[Outgoing]:
    await asyncio.sleep(float(os.environ.get("SLOW_S", "0")))
    if fault := os.environ.pop("FAULT", None):
        go_quiet(fault)
    if "AWAY" in os.environ:
        raise Transient("milvus", "no answer")
    if any(item.message == os.environ.get("CRASH_ON", "").encode() for item in batch):
        raise RuntimeError("a bug")
    return [Outgoing(topic="documents.events", key=item.record.key, value=item.message) for item in batch]


if __name__ == "__main__":
    settings = load_settings()
    telemetry.configure_logging("INFO", "json", "headrace-copy")
    stage = Stage(name="commit", decode=decode, work=work, batch_messages=100, batch_bytes=1_000_000, in_flight=3)
    worker = Worker(stage, settings.kafka, settings.worker)
    sys.exit(worker.run())
