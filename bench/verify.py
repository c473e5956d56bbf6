"""What `headrace verify` takes for many documents: `python -m bench.verify [--documents N]`.

The documents are put straight into Kafka, the manifests and both stores, two chunks each; no worker runs. Their vectors
are short, since a verification reads none. Then one store is wiped and it is done again.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from pymilvus import MilvusClient

from bench.deployment import deployment
from headrace.cli.console import err, print_json
from headrace.cli.publishing import producer_config
from headrace.cli.verifying import Verifier
from headrace.cli.worktable import WorkTable
from headrace.config import Settings, load_settings
from headrace.stores import Stored, TextRow, VectorRow
from headrace.stores.manifests import OpenSearchManifestStore
from headrace.stores.milvus import MilvusStore, collection_name
from headrace.stores.opensearch import OpenSearchTextStore
from schemas import Attributes, EncoderIdentity, Intake, Key, Live, Manifest, Revision, chunk_id, encode, revision_id
from schemas.document import Document

TENANT = "bench"
CHUNKS = 2
PAGE = 2_000
ENCODER = EncoderIdentity(name="bench/four-dimensions", dimension=4, normalised=True)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
TEXT = "The water drives the wheel, and the wheel drives the stones. " * 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        _measure(load_settings())
        return
    with deployment() as made:
        _fill(made.settings, options.documents)
        _settle(made.settings)
        # In a process of its own, so that its peak of memory is that of a verification.
        for wiped in (False, True):
            if wiped:
                stores = made.settings.stores
                MilvusClient(stores.milvus.uri).drop_collection(collection_name(stores.prefix, TENANT))
            subprocess.run([sys.executable, "-m", "bench.verify", "--measure"], check=True, env=made.environment)


def _measure(settings: Settings) -> None:
    verifier = Verifier(settings, TENANT, Silent())
    verifier.vectors = MilvusStore(settings.stores, ENCODER)
    before, _ = _resident_mb()
    started = time.monotonic()
    report = verifier.verify(WorkTable(), settle_s=0)
    print_json(
        {
            "documents": report.documents,
            "rows": report.rows,
            "differences": report.differences,
            "seconds": round(time.monotonic() - started, 1),
            "resident_mb_before": before,
            "resident_mb_peak": _resident_mb()[1],
        }
    )


def _resident_mb() -> tuple[int, int]:
    """Of this process, now and at its peak."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (int(status[name].split()[0]) // 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


class Silent:
    def show(self, what: str, done: int, total: int | None = None) -> None:
        pass


def _fill(settings: Settings, documents: int) -> None:
    manifests = OpenSearchManifestStore(settings.stores)
    vectors = MilvusStore(settings.stores, ENCODER)
    texts = OpenSearchTextStore(settings.stores)
    for first in range(0, documents, PAGE):
        placed = _send(settings, range(first, min(first + PAGE, documents)))
        live = {key: _live(revision) for key, revision in placed.items()}
        manifests.write({key: Stored(manifest=_manifest(key, one)) for key, one in live.items()})
        rows = [row for key, one in live.items() for row in _rows(key, one)]
        vectors.upsert(TENANT, [VectorRow(**row, vector=np.ones(4, dtype=np.float32)) for row in rows])
        texts.upsert(TENANT, [TextRow(**row, text=TEXT, start=0, end=len(TEXT)) for row in rows])
        err().print(f"{first + len(placed):,} of {documents:,} documents put in place")


def _send(settings: Settings, numbers: range) -> dict[Key, Revision]:
    placed: dict[Key, Revision] = {}

    def delivered(error: KafkaError | None, message: Message) -> None:
        assert error is None, error
        at = message.timestamp()[1]
        key = Key(TENANT, (message.key() or b"").decode().partition("/")[2])
        placed[key] = Revision(version=at, timestamp=at, offset=message.offset() or 0, fingerprint="f" * 32)

    producer = Producer(producer_config(settings.kafka.confluent()))
    for number in numbers:
        key, value = Key(TENANT, f"doc-{number:08}"), encode(Document(text=TEXT))
        producer.produce(settings.kafka.names.topic("documents.raw"), value, key.encode(), on_delivery=delivered)
        producer.poll(0)
    producer.flush()
    return placed


def _settle(settings: Settings) -> None:
    """As if `chunk` had finished everything."""
    kafka = settings.kafka
    consumer = Consumer({**kafka.confluent(), "group.id": kafka.names.group("chunk")})
    topic = kafka.names.topic("documents.raw")
    places = [TopicPartition(topic, number) for number in range(kafka.partitions)]
    for place in places:
        place.offset = consumer.get_watermark_offsets(place)[1]
    consumer.commit(offsets=places, asynchronous=False)
    consumer.close()


def _live(revision: Revision) -> Live:
    return Live(revision=revision, chunks=CHUNKS, at=NOW)


def _manifest(key: Key, live: Live) -> Manifest:
    intake = Intake(revision=live.revision, content=live.revision, chunks=CHUNKS, at=NOW)
    return Manifest(tenant=key.tenant, doc_id=key.doc_id, intake=intake, live=live)


def _rows(key: Key, live: Live) -> Iterator[dict[str, Any]]:
    revision = revision_id(key, live.revision)
    for ordinal in range(live.chunks):
        yield {
            "id": chunk_id(revision, ordinal),
            "doc_id": key.doc_id,
            "version": live.revision.version,
            "ordinal": ordinal,
            "content_hash": f"{ordinal:032}",
            "attributes": Attributes(created_at=NOW),
        }


if __name__ == "__main__":
    main()
