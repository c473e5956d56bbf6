"""Quix Streams: an application that reads headrace's own topic; a function cuts and embeds, and two sinks write.

The sinks collect what comes between two checkpoints, five seconds as Quix sets them, and write it in bulk. Quix has no
splitter and no sink for either store, so these are written as its documentation shows custom ones.
"""

from collections.abc import Iterator
from typing import Any

from job import BATCH, DIMENSION, FLAT, WRITTEN_AT_ONCE, Job, Watch, given, load_encoder, text_index
from opensearchpy import OpenSearch, helpers
from pymilvus import DataType, MilvusClient
from quixstreams import Application
from quixstreams.sinks import BatchingSink, SinkBatch


class MilvusSink(BatchingSink):
    def __init__(self, uri: str, collection: str) -> None:
        super().__init__()
        self._uri = uri
        self._collection = collection

    def setup(self) -> None:
        self._client = MilvusClient(self._uri)
        schema = self._client.create_schema()
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=128)
        schema.add_field("doc_id", DataType.VARCHAR, max_length=512)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=DIMENSION)
        index = self._client.prepare_index_params()
        index.add_index("vector", **FLAT)
        self._client.create_collection(self._collection, schema=schema, index_params=index)

    def write(self, batch: SinkBatch) -> None:
        for items in batch.iter_chunks(WRITTEN_AT_ONCE):
            rows = [{name: item.value[name] for name in ("id", "doc_id", "vector")} for item in items]
            self._client.upsert(self._collection, rows)


class OpenSearchSink(BatchingSink):
    def __init__(self, url: str, index: str) -> None:
        super().__init__()
        self._url = url
        self._index = index

    def setup(self) -> None:
        self._client = OpenSearch(self._url, timeout=60)
        self._client.indices.create(index=self._index, body=text_index())

    def write(self, batch: SinkBatch) -> None:
        helpers.bulk(
            self._client,
            (
                {"_id": item.value["id"], **{name: item.value[name] for name in ("doc_id", "title", "content")}}
                for item in batch
            ),
            index=self._index,
            chunk_size=WRITTEN_AT_ONCE,
        )


class Chunks:
    """The chunks of a document with their vectors. The time begins with the first one."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._encoder = load_encoder()
        self._encoder.embed(["first"])
        self._first = job.read()[0]["id"]
        self.watch: Watch | None = None
        self.count = 0

    def __call__(self, document: dict[str, Any], key: str, *_: Any) -> list[dict[str, Any]]:
        if self.watch is None:
            self.watch = Watch()
        title = document.get("title") or ""
        texts = list(self._windows(document["text"]))
        vectors = self._encoder.embed([f"{title}\n{text}" for text in texts], norm=True, batch_size=BATCH)
        doc_id = key.partition("/")[2]
        if doc_id != self._first:
            self.count += len(texts)
        return [
            {"id": f"{doc_id}:{place}", "doc_id": doc_id, "title": title, "content": text, "vector": vector}
            for place, (text, vector) in enumerate(zip(texts, vectors, strict=True))
        ]

    def _windows(self, text: str) -> Iterator[str]:
        spans = self._encoder.tokenizer.encode(text, add_special_tokens=False).offsets
        size, step = self._job.max_tokens, self._job.max_tokens - self._job.overlap_tokens
        for first in range(0, max(1, len(spans) - self._job.overlap_tokens), step):
            window = spans[first : first + size]
            yield text[window[0][0] : window[-1][1]]


def main() -> None:
    job = given()
    chunks = Chunks(job)
    processed = 0

    def count(*_: Any) -> None:
        """Stop behind the last document, so that the last checkpoint isn't waited for."""
        nonlocal processed
        processed += 1
        if processed == job.count:
            application.stop()

    application = Application(
        broker_address=job.kafka,
        consumer_group=job.group,
        auto_offset_reset="earliest",
        auto_create_topics=False,
        on_message_processed=count,
        loglevel="WARNING",
    )
    topic = application.topic(job.topic, key_deserializer="str", value_deserializer="json")
    stream = application.dataframe(topic)
    stream = stream.apply(chunks, expand=True, metadata=True)
    stream.sink(MilvusSink(job.milvus, job.name))
    stream.sink(OpenSearchSink(job.opensearch, job.name))
    application.run()
    assert chunks.watch is not None, f"{job.topic} was empty"
    chunks.watch.tell(chunks=chunks.count, packages=["quixstreams", "pymilvus", "opensearch-py"])


if __name__ == "__main__":
    main()
