"""A worker's memory is bounded, whatever waits for it: `python -m bench.memory [--large]`.

Queues documents first, then starts the chunk worker alone on them and samples its memory until the queue is empty or
the time is up. Small documents meet the bound in messages, those of 5 MiB the one in bytes; these are 2.6 GB, which
lie in the broker's log until the end.
"""

import argparse
import random
import string
import time
from collections.abc import Iterator
from typing import Any

from rich.table import Table

from bench.deployment import Silent, deployment, value
from headrace.cli.console import err, out, print_json
from headrace.cli.publishing import Outgoing, publish
from schemas import Document, Key, encode

STAGE = "chunk"
SMALL = (20_000, 1_000)
LARGE = (500, 5 * 1024 * 1024)
PARTITION_FETCH_BYTES = 1024 * 1024
"""Faust's consumer_max_fetch_size: what is fetched ahead of each partition, or one record where that is larger."""
SAMPLE_EVERY_S = 0.5
WORDS = 4_000
SENTENCES = 2_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="500 documents of 5 MiB in place of 20,000 of 1 kB")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the worker is watched at most")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    count, size = LARGE if options.large else SMALL
    found = _measure(count, size, options.seconds)
    if options.json:
        print_json(found)
    else:
        _print(found)


def _measure(count: int, size: int, seconds: float) -> dict[str, Any]:
    with deployment() as deployed:
        err().print(f"queueing {count:,} documents of {size:,} bytes")
        queued = publish(_documents(count, size), deployed.settings.kafka, Silent())
        deployed.start([STAGE])
        deployed.wait([STAGE], "/healthz")  # It answers before it fetches.
        start, _ = deployed.memory(STAGE)
        through, buffered, curve = 0, 0, []
        began = time.monotonic()
        while time.monotonic() - began < seconds and through < count:
            time.sleep(SAMPLE_EVERY_S)
            samples = deployed.metrics(STAGE)
            through = round(value(samples, "headrace_messages_total", stage=STAGE, direction="in"))
            buffered = max(buffered, round(value(samples, "headrace_buffered_bytes", stage=STAGE)))
            curve.append(deployed.memory(STAGE)[0])
        watched_s = time.monotonic() - began
        _, peak = deployed.memory(STAGE)
        settings = deployed.settings
    half = len(curve) // 2
    return {
        "documents": count,
        "queued_bytes": queued.sent_bytes,
        "seconds": watched_s,
        "documents_through": through,
        "start_rss_bytes": start,
        "peak_rss_bytes": peak,
        "peak_rss_first_half_bytes": max(curve[:half], default=0),
        "peak_rss_second_half_bytes": max(curve[half:], default=0),
        "peak_buffered_bytes": buffered,
        "bound_bytes": settings.worker.buffer_bytes
        + settings.kafka.partitions * max(PARTITION_FETCH_BYTES, queued.sent_bytes // count),
    }


def _documents(count: int, size: int) -> Iterator[Outgoing]:
    """The same on every run: prose of a vocabulary, each document another order of the same sentences."""
    dice = random.Random(7)
    vocabulary = ["".join(dice.choices(string.ascii_lowercase, k=dice.randint(2, 11))) for _ in range(WORDS)]
    lengths = range(6, 25)
    sentences = [
        " ".join(dice.choices(vocabulary, k=dice.choice(lengths))).capitalize() + ". " for _ in range(SENTENCES)
    ]
    enough = size // min(map(len, sentences)) + 1
    for number in range(count):
        text = "".join(dice.choices(sentences, k=enough))[:size]
        key = Key("default", f"{number:06}")
        yield Outgoing(where=str(key), key=key, value=encode(Document(text=text)))


def _print(found: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    mb = {
        "queued": "queued_bytes",
        "RSS at start": "start_rss_bytes",
        "RSS, peak": "peak_rss_bytes",
        "RSS, peak of the first half": "peak_rss_first_half_bytes",
        "RSS, peak of the second half": "peak_rss_second_half_bytes",
        "headrace_buffered_bytes, peak": "peak_buffered_bytes",
        "its bound: worker.buffer_bytes and a fetch of each partition": "bound_bytes",
    }
    table.add_row("documents queued", f"{found['documents']:,}")
    table.add_row(f"documents through in {found['seconds']:.0f} s", f"{found['documents_through']:,}")
    for title, name in mb.items():
        table.add_row(title, f"{found[name] / 1e6:,.0f} MB")
    table.add_row("RSS, peak over start", f"{(found['peak_rss_bytes'] - found['start_rss_bytes']) / 1e6:,.0f} MB")
    out().print(table)


if __name__ == "__main__":
    main()
