"""What one would write first: one process that reads documents from Kafka and puts their chunks into both stores.

It has the pipeline's chunker and encoder, and writes the same fields into a collection and an index made alike. It
prints `ready` when it reads, and `done` with its chunks and CPU seconds after so many documents.
"""

import json
import sys
import time
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

from confluent_kafka import Consumer
from opensearchpy import OpenSearch
from opensearchpy.helpers import bulk
from pymilvus import MilvusClient

from headrace import wiring
from headrace.chunking import chunk
from headrace.config import load_settings
from headrace.encoders import context_of
from schemas import Document, decode, parse_key

DOCUMENTS_A_POLL = 1_000
ROWS_AT_ONCE = 2_000


def main(topic: str, count: int, collection: str, index: str) -> None:
    settings = load_settings()
    encoder = wiring.build_encoder(settings)
    tokenizer, _ = wiring.build_tokenizer(settings)
    chunking = settings.chunking.chunking()
    milvus = MilvusClient(settings.stores.milvus.uri)
    opensearch = OpenSearch(settings.stores.opensearch.url, timeout=60)
    consumer = Consumer(
        {
            **settings.kafka.confluent(),
            "group.id": f"{settings.kafka.group_prefix}loop",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([topic])
    while not consumer.assignment():
        consumer.poll(0.1)
    print("ready", flush=True)
    cpu_started = time.process_time()
    done = chunks = 0
    while done < count:
        messages = consumer.consume(DOCUMENTS_A_POLL, timeout=0.1)
        if not messages:
            continue
        rows: list[dict[str, Any]] = []
        texts: list[str] = []
        contexts: list[str] = []
        for message in messages:
            document = decode(message.value(), Document)
            key = parse_key(message.key())
            for ordinal, passage in enumerate(chunk(document.text, document.content_type, chunking, tokenizer)):
                texts.append(passage.text)
                contexts.append(context_of(encoder.identity.context, document.title, passage.headings, passage.text))
                rows.append(
                    {
                        "id": f"{key.doc_id}-{ordinal}",
                        "doc_id": key.doc_id,
                        "version": message.timestamp()[1],
                        "ordinal": ordinal,
                        "content_hash": blake2b(passage.text.encode(), digest_size=16).hexdigest(),
                        "tags": document.tags,
                        "source": document.source or "",
                        "title": document.title,
                        "text": passage.text,
                        "start": passage.start,
                        "end": passage.end,
                        "headings": passage.headings,
                    }
                )
        vectors = encoder.encode(texts, contexts=contexts)
        now = datetime.now(UTC)
        for first in range(0, len(rows), ROWS_AT_ONCE):
            part = range(first, min(first + ROWS_AT_ONCE, len(rows)))
            milvus.insert(collection, [_vector_row(rows[place], now) | {"vector": vectors[place]} for place in part])
            bulk(opensearch, [_text_action(rows[place], now, index) for place in part], chunk_size=ROWS_AT_ONCE)
        consumer.commit(asynchronous=True)
        done, chunks = done + len(messages), chunks + len(rows)
    print(json.dumps({"chunks": chunks, "cpu_s": time.process_time() - cpu_started}), flush=True)
    consumer.close()


def _vector_row(row: dict[str, Any], now: datetime) -> dict[str, Any]:
    kept = {name: row[name] for name in ("id", "doc_id", "version", "ordinal", "content_hash", "tags", "source")}
    return kept | {"created_at": int(now.timestamp() * 1000), "metadata": "{}"}


def _text_action(row: dict[str, Any], now: datetime, index: str) -> dict[str, Any]:
    source = {name: value for name, value in row.items() if name != "id"}
    return {"_index": index, "_id": row["id"], "_source": source | {"created_at_ms": int(now.timestamp() * 1000)}}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
