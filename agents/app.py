"""Puts each stage together from the settings, and runs one as a process."""

import asyncio
import gc
import signal
import sys
import time
from typing import Any, Protocol, TypeVar

import structlog

from agents.chunk import Chunker
from agents.commit import Committer
from agents.embed import Embedder
from agents.freshness import Freshness
from agents.generations import DocumentStanding, QueryStanding, Standing
from agents.query import Responder
from agents.stage import RequestStage, Stage
from agents.upsert_milvus import MilvusUpserter
from agents.upsert_opensearch import OpenSearchUpserter
from agents.worker import Worker
from headrace import telemetry, wiring
from headrace.auth import Authenticator
from headrace.config import Settings
from headrace.encoders import encoder_batch_tokens, encoder_identity
from headrace.errors import Misconfigured, Transient
from headrace.serving import Corpora, Corpus, GenerationCorpora
from headrace.tracing import Tracer
from schemas import GenerationInfo
from topics import GROUPS
from topics.generations import GenerationWatch
from topics.provisioning import existing_topics
from topics.reaching import until_let_in_again

log = structlog.get_logger("headrace.app")

TOKEN_BYTES = 10
"""About what a token takes in a message of chunks."""
FORWARD_BATCHES = 4
"""Of the encoder, in a batch of `embed`: enough to sort texts by their length, and little enough to be done soon."""


def build_stage(
    name: str, settings: Settings, corpora: Corpora | None = None, freshness: Freshness | None = None
) -> Stage[Any] | RequestStage[Any]:
    """The stage with everything that it works with. Raises Misconfigured when that doesn't fit together.

    `corpora` are for `query`; without them it answers from the generation that is set. `freshness` is for `commit`.
    """
    batch_messages, batch_bytes = settings.worker.batch_messages, settings.worker.batch_bytes
    match name:
        case "chunk":
            chunker = build_chunker(settings, wiring.build_authenticator(settings))
            if rate := settings.generation.rate:
                batch_messages = max(1, min(batch_messages, int(rate)))  # What a second lets in.
            return chunker.stage(batch_messages=batch_messages, batch_bytes=batch_bytes)
        case "embed":
            embedder = Embedder(encoder=wiring.build_encoder(settings), reuse=wiring.build_reuse(settings))
            in_hand = FORWARD_BATCHES * encoder_batch_tokens(settings.encoder)
            return embedder.stage(batch_messages=batch_messages, batch_bytes=in_hand * TOKEN_BYTES)
        case "upsert-milvus":
            milvus = MilvusUpserter(
                vectors=_checked(wiring.build_vectors(settings)), encoder=encoder_identity(settings.encoder)
            )
            return milvus.stage(batch_messages=batch_messages, batch_bytes=batch_bytes)
        case "upsert-opensearch":
            opensearch = OpenSearchUpserter(texts=_checked(wiring.build_texts(settings)))
            return opensearch.stage(batch_messages=batch_messages, batch_bytes=batch_bytes)
        case "commit":
            committer = Committer(
                manifests=wiring.build_manifests(settings),
                vectors=wiring.build_vectors(settings),
                texts=wiring.build_texts(settings),
                freshness=freshness or Freshness(),
            )
            return committer.stage(batch_messages=batch_messages, batch_bytes=batch_bytes)
        case "query":
            _checked(wiring.build_vectors(settings))
            _checked(wiring.build_texts(settings))
            responder = Responder(
                answerer=wiring.build_answerer(settings, corpora),
                names=settings.kafka.names,
                partitions_of=CachedPartitions(settings.kafka.confluent()),
            )
            return responder.stage()
    raise Misconfigured(f"there is no stage {name!r}; the stages are {', '.join(GROUPS)}")


def build_worker(stage: str, settings: Settings, tracer: Tracer) -> Worker:
    """The stage as a process that goes by the record of generations. Raises as `build_stage` does."""
    names = settings.kafka.names
    watch = GenerationWatch(settings.kafka, group=names.group(stage))
    if stage != "query":
        standing: Standing = DocumentStanding(stage, names, watch, rate=settings.generation.rate)
        freshness = Freshness(lambda: (now := watch.fresh()) is not None and now.telling == settings.generation.name)
        built = build_stage(stage, settings, freshness=freshness)
        return Worker(built, settings.kafka, settings.worker, tracer, standing)
    reranker = wiring.build_reranker(settings)

    def build(name: str, info: GenerationInfo) -> Corpus:
        return wiring.build_corpus(settings.of_generation(name, info.encoder), reranker)

    own = wiring.build_corpus(settings, reranker)
    corpora = GenerationCorpora(settings.generation.name, own, build, watch.fresh)
    built = build_stage(stage, settings, corpora)
    return Worker(built, settings.kafka, settings.worker, tracer, QueryStanding(names, watch, corpora))


def build_chunker(settings: Settings, authenticator: Authenticator | None = None) -> Chunker:
    tokenizer, readable = wiring.build_tokenizer(settings)
    return Chunker(
        tokenizer=tokenizer,
        encoder=encoder_identity(settings.encoder).recipe,
        encoder_max_tokens=readable,
        default=settings.chunking.chunking(),
        manifests=wiring.build_manifests(settings),
        authenticator=authenticator,
    )


class Checkable(Protocol):
    def check(self) -> None: ...


C = TypeVar("C", bound=Checkable)


def _checked(store: C) -> C:
    """Refuse to start on a store that can't be used; one that is away is waited for when there is work."""
    try:
        store.check()
    except Transient as exc:
        log.warning("service_away_at_start", server=exc.service, reason=str(exc))
    return store


class CachedPartitions:
    """How many partitions a topic has.

    A new topic is known within a second, a deleted one is forgotten within half a minute.
    """

    NEW_AFTER_S = 1.0
    GONE_AFTER_S = 30.0

    def __init__(self, kafka: dict[str, Any]) -> None:
        self._kafka = kafka
        self._topics: dict[str, int] = {}
        self._looked = float("-inf")
        self._looking = asyncio.Lock()

    async def __call__(self, topic: str) -> int | None:
        """Raises Transient when no broker answers, or one refuses."""
        if self._is_outdated(topic):
            async with self._looking:
                if self._is_outdated(topic):
                    try:
                        self._topics = await asyncio.to_thread(existing_topics, self._kafka)
                    except Misconfigured as exc:
                        raise until_let_in_again(exc) from exc
                    self._looked = time.monotonic()
        return self._topics.get(topic)

    def _is_outdated(self, topic: str) -> bool:
        age = time.monotonic() - self._looked
        return age > self.GONE_AFTER_S or (topic not in self._topics and age > self.NEW_AFTER_S)


def run(stage: str, settings: Settings) -> int:
    """Run one stage in this process until it is told to stop; the exit code.
    Raises Misconfigured before anything is consumed.
    """
    telemetry.configure_logging(settings.log.level, settings.log.format, f"headrace-{stage}")
    telemetry.tenants.most = settings.metrics.tenants
    # Loading a model takes a while, and nothing is in hand yet.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    tracer = wiring.build_tracer(settings, stage)
    worker = build_worker(stage, settings, tracer)
    # What is there now stays until the end: libraries, a model, settings. The collector would go through it again and
    # again, which holds all threads up for tens of milliseconds.
    gc.collect()
    gc.freeze()
    try:
        return worker.run()
    finally:
        tracer.stop()
        gc.unfreeze()  # Libraries complain at the end of what was never collected.
