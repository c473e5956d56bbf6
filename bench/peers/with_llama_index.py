"""LlamaIndex: an IngestionPipeline with a document store, so that a changed document replaces its chunks in Milvus.

The vectors go into its Milvus store. Its OpenSearch store would need OpenSearch's k-NN plugin and send each vector a
second time, as JSON; so the texts are written by a transformation of our own, in bulk. That one doesn't hear of what a
changed document replaces.
"""

from collections.abc import Sequence
from typing import Any

from job import BATCH, DIMENSION, FLAT, WRITTEN_AT_ONCE, Job, Watch, given, load_encoder, text_index
from llama_index.core import Document
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import BaseNode, TransformComponent
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.utils import get_tokenizer
from llama_index.vector_stores.milvus import MilvusVectorStore
from opensearchpy import OpenSearch, helpers


class StaticEmbedding(BaseEmbedding):
    _encoder: Any = PrivateAttr()

    def __init__(self, encoder: Any, **settings: Any) -> None:
        super().__init__(**settings)
        self._encoder = encoder

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._encoder.embed(texts, norm=True).tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


class TextWriter(TransformComponent):
    index: str
    _client: OpenSearch = PrivateAttr()

    def __init__(self, client: OpenSearch, **settings: Any) -> None:
        super().__init__(**settings)
        self._client = client

    def __call__(self, nodes: Sequence[BaseNode], **_: Any) -> Sequence[BaseNode]:
        helpers.bulk(
            self._client,
            (
                {
                    "_index": self.index,
                    "_id": node.node_id,
                    "doc_id": node.ref_doc_id,
                    "title": node.metadata["title"],
                    "content": node.text,
                }
                for node in nodes
            ),
            chunk_size=WRITTEN_AT_ONCE,
        )
        return nodes


def pipeline(job: Job) -> IngestionPipeline:
    encoder = load_encoder()
    # The splitter counts the tokens of GPT unless it is told otherwise; with the encoder's it would be slower.
    gpt = get_tokenizer()
    chunk_size, overlap = job.chunk_size(lambda text: len(gpt(text)), encoder)
    opensearch = OpenSearch(job.opensearch, timeout=60)
    opensearch.indices.create(index=job.name, body=text_index())
    return IngestionPipeline(
        transformations=[
            SentenceSplitter(chunk_size=chunk_size, chunk_overlap=overlap),
            TextWriter(opensearch, index=job.name),
            StaticEmbedding(encoder, embed_batch_size=BATCH),
        ],
        vector_store=MilvusVectorStore(
            uri=job.milvus,
            collection_name=job.name,
            dim=DIMENSION,
            similarity_metric="COSINE",
            index_config={"index_type": FLAT["index_type"]},
            batch_size=WRITTEN_AT_ONCE,
            use_async_client=False,
        ),
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS,
    )


def main() -> None:
    job = given()
    ingestion = pipeline(job)
    first, *documents, changed = (
        Document(id_=one["id"], text=one["text"], metadata={"title": one["title"]}) for one in job.read()
    )
    ingestion.run(documents=[first])
    watch = Watch()
    nodes = ingestion.run(documents=documents)
    packages = ["llama-index-core", "llama-index-vector-stores-milvus", "pymilvus"]
    watch.tell(chunks=len(nodes), packages=packages)
    ingestion.run(documents=[changed])


if __name__ == "__main__":
    main()
