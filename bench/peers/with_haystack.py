"""Haystack: splitter, then an embedder and a writer to Milvus on one side, and a writer to OpenSearch on the other."""

import os
from dataclasses import replace
from typing import Any

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

from haystack import Document, Pipeline, component
from haystack.components.preprocessors import DocumentSplitter
from haystack.components.writers import DocumentWriter
from haystack.document_stores.types import DuplicatePolicy
from haystack_integrations.document_stores.opensearch import OpenSearchDocumentStore
from job import BATCH, FLAT, Job, Watch, given, load_encoder, text_index
from milvus_haystack import MilvusDocumentStore


@component
class StaticDocumentEmbedder:
    def __init__(self, encoder: Any, batch_size: int) -> None:
        self._encoder = encoder
        self._batch_size = batch_size

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        texts = [f"{document.meta['title']}\n{document.content}" for document in documents]
        vectors = self._encoder.embed(texts, norm=True, batch_size=self._batch_size).tolist()
        return {
            "documents": [
                replace(document, embedding=vector) for document, vector in zip(documents, vectors, strict=True)
            ]
        }


def pipeline(job: Job) -> Pipeline:
    encoder = load_encoder()
    words, overlap = job.chunk_size(lambda text: len(text.split(" ")), encoder)
    milvus = MilvusDocumentStore(
        collection_name=job.name,
        connection_args={"uri": job.milvus},
        index_params=FLAT,
    )
    opensearch = OpenSearchDocumentStore(hosts=job.opensearch, index=job.name, **text_index(), timeout=60)
    indexing = Pipeline()
    indexing.add_component(
        "splitter",
        DocumentSplitter(split_by="word", split_length=words, split_overlap=overlap),
    )
    indexing.add_component("embedder", StaticDocumentEmbedder(encoder, batch_size=BATCH))
    indexing.add_component("vectors", DocumentWriter(milvus, policy=DuplicatePolicy.OVERWRITE))
    indexing.add_component("texts", DocumentWriter(opensearch, policy=DuplicatePolicy.OVERWRITE))
    indexing.connect("splitter.documents", "embedder.documents")
    indexing.connect("embedder.documents", "vectors.documents")
    indexing.connect("splitter.documents", "texts.documents")
    indexing.warm_up()
    return indexing


def main() -> None:
    job = given()
    indexing = pipeline(job)
    first, *documents, changed = (
        Document(content=one["text"], meta={"doc_id": one["id"], "title": one["title"]}) for one in job.read()
    )
    indexing.run({"splitter": {"documents": [first]}})
    watch = Watch()
    written = indexing.run({"splitter": {"documents": documents}})
    packages = ["haystack-ai", "milvus-haystack", "opensearch-haystack", "pymilvus"]
    watch.tell(chunks=written["vectors"]["documents_written"], packages=packages)
    indexing.run({"splitter": {"documents": [changed]}})


if __name__ == "__main__":
    main()
