"""A worker of the smallest stage there is: it copies `documents.stored` to `documents.events`. For the transport's tests.

Every message holds a number; `CRASH_ON` names one that breaks the worker, `SLOW_S` makes each batch take longer.
"""

import asyncio
import os
import sys
from collections.abc import Sequence

from agents.stage import Item, Outgoing, Record, Stage
from agents.worker import Worker
from headrace import telemetry
from headrace.config import load_settings
from headrace.errors import Poison


def decode(record: Record) -> bytes:
    if record.value is None or record.value.startswith(b"poison"):
        raise Poison("unreadable", "not a number")
    return record.value


async def work(batch: Sequence[Item[bytes]]) -> list[Outgoing]:
    await asyncio.sleep(float(os.environ.get("SLOW_S", "0")))
    if any(item.message == os.environ.get("CRASH_ON", "").encode() for item in batch):
        raise RuntimeError("a bug")
    return [Outgoing(topic="documents.events", key=item.record.key, value=item.message) for item in batch]


if __name__ == "__main__":
    settings = load_settings()
    telemetry.configure_logging("INFO", "json")
    stage = Stage(name="commit", decode=decode, work=work, batch_messages=100, batch_bytes=1_000_000)
    sys.exit(Worker(stage, settings.kafka, settings.worker).run())
