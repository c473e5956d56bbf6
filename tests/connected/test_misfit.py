"""What does not fit together ends a worker with one line that says what to do; nothing is dead-lettered for it."""

import subprocess
from datetime import UTC, datetime

import numpy as np
from confluent_kafka import Producer

from headrace.stores.milvus import MilvusStore
from headrace.stores.ports import VectorRow
from schemas import Attributes, EmbeddingBatch, EncoderIdentity, Revision, encode
from schemas.batches import pack_vectors
from tests.conftest import Deployment

OTHER = EncoderIdentity(name="another-model", dimension=8, normalised=True)


def end_of(deployment: Deployment, worker: subprocess.Popen[bytes]) -> tuple[int, str]:
    """The exit code and the last line of the log."""
    code = worker.wait(timeout=60)
    return code, (deployment.logs / "upsert-milvus.log").read_text().rstrip().splitlines()[-1]


def test_a_collection_of_another_encoder_is_refused_at_the_start(deployment: Deployment) -> None:
    row = VectorRow(
        id="x-0",
        doc_id="x",
        version=1,
        ordinal=0,
        content_hash="",
        attributes=Attributes(created_at=datetime.now(UTC)),
        vector=np.ones(8, dtype=np.float32),
    )
    store = MilvusStore(deployment.settings.stores, OTHER)
    store.upsert("default", [row])
    store.close()
    code, said = end_of(deployment, deployment.start("upsert-milvus"))
    assert code == 3
    assert said.startswith("headrace: milvus: ")
    assert "another-model" in said


def test_vectors_of_another_model_end_the_worker_and_stay_unacked(deployment: Deployment) -> None:
    batch = EmbeddingBatch(
        tenant="default",
        doc_id="x",
        revision=Revision(version=1, timestamp=1, offset=0, fingerprint="f"),
        total=0,
        first=0,
        attributes=Attributes(created_at=datetime.now(UTC)),
        chunks=[],
        encoder=OTHER.name,
        dimension=OTHER.dimension,
        vectors=pack_vectors(np.zeros((0, 8))),
    )
    producer = Producer(deployment.settings.kafka.confluent())
    producer.produce(deployment.topic("documents.embeddings"), encode(batch), batch.key.encode())
    assert producer.flush(30) == 0
    for _ in range(4):
        code, said = end_of(deployment, deployment.start("upsert-milvus"))
        assert code == 3
        assert "HEADRACE_ENCODER__MODEL" in said
