"""The topics in travel order. Compose, Kubernetes,
the published contract and the docs are checked against this table.
"""

from dataclasses import dataclass
from typing import Literal

from schemas import (
    Answer,
    ChunkBatch,
    Document,
    DocumentEvent,
    EmbeddingBatch,
    Generations,
    Query,
    Receipt,
    Settlement,
)
from schemas.generations import FIRST

KIB, MIB, GIB = 1024, 1024**2, 1024**3
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

RAW_MAX_BYTES = 10 * MIB
"""The largest record of the topics that producers write; their clients refuse a larger one before sending it."""
RECORD_MAX_BYTES = 1_000_000
"""The largest record of every other topic but the dead letters."""
DEAD_MAX_BYTES = RAW_MAX_BYTES + 64 * KIB
"""A dead letter is the original record and the headers that say why."""

CLOCK_AHEAD_MS = HOUR_MS
"""A timestamp is a version where none is named: a document from the future would win until that moment has passed.
Kafka knows the limit since 3.6; its own default is an hour since 4.0, and none before."""
ANY_TIME_MS = 2**63 - 1
"""A dead letter has its original's timestamp, which may be of a topic that somebody made without that limit."""

Lane = Literal["urgent", "bulk"]
LANES: tuple[Lane, ...] = ("urgent", "bulk")
"""In the order in which they are drained."""


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One topic. `retention_ms` is None where age takes nothing: compaction bounds it, or `retention_bytes` of each
    partition do. `message_type` None means bytes as they came.
    """

    name: str
    key: str
    message_type: type | None
    cleanup: Literal["compact", "delete"]
    retention_ms: int | None
    written_by: tuple[str, ...]
    read_by: tuple[str, ...]
    watched_by: tuple[str, ...] = ()
    """Stages of which every worker reads all of it, beside its group's topics."""
    lane: Lane = "bulk"
    max_bytes: int = RECORD_MAX_BYTES
    retention_bytes: int | None = None
    ahead_ms: int | None = None
    """How far ahead of the broker's clock a record's timestamp may be; None leaves it to the broker."""
    summary: str


PRODUCERS, OPERATORS, APPS = "producers", "operators", "apps"
DOCUMENT_STAGES = ("chunk", "embed", "upsert-milvus", "upsert-opensearch", "commit")
UPSERTS = ("upsert-milvus", "upsert-opensearch")
DOCUMENT_KEY = "tenant/doc_id"


def _lanes(bulk: str, urgent: str, **columns: object) -> tuple[Topic, Topic]:
    return (
        Topic(name=bulk, lane="bulk", **columns),  # type: ignore[arg-type]
        Topic(name=urgent, lane="urgent", **columns),  # type: ignore[arg-type]
    )


TOPICS: tuple[Topic, ...] = (
    *_lanes(
        "documents.raw",
        "documents.urgent",
        key=DOCUMENT_KEY,
        message_type=Document,
        cleanup="compact",
        retention_ms=None,
        written_by=(PRODUCERS,),
        read_by=("chunk",),
        max_bytes=RAW_MAX_BYTES,
        ahead_ms=CLOCK_AHEAD_MS,
        summary="Documents as they were sent; no value deletes the document.",
    ),
    *_lanes(
        "documents.chunks",
        "documents.chunks.urgent",
        key=DOCUMENT_KEY,
        message_type=ChunkBatch,
        cleanup="delete",
        retention_ms=7 * DAY_MS,
        written_by=("chunk",),
        read_by=("embed",),
        summary="Up to 64 chunks of one document.",
    ),
    *_lanes(
        "documents.embeddings",
        "documents.embeddings.urgent",
        key=DOCUMENT_KEY,
        message_type=EmbeddingBatch,
        cleanup="delete",
        retention_ms=7 * DAY_MS,
        written_by=("embed",),
        read_by=UPSERTS,
        summary="The same chunks with their vectors.",
    ),
    Topic(
        name="documents.stored",
        key=DOCUMENT_KEY,
        message_type=Receipt,
        cleanup="delete",
        retention_ms=7 * DAY_MS,
        written_by=UPSERTS,
        read_by=("commit",),
        summary="A store holds these chunks.",
    ),
    Topic(
        name="documents.events",
        key=DOCUMENT_KEY,
        message_type=DocumentEvent,
        cleanup="delete",
        retention_ms=7 * DAY_MS,
        written_by=DOCUMENT_STAGES,
        read_by=(PRODUCERS, OPERATORS),
        summary="What became of each version of a document.",
    ),
    Topic(
        name="documents.dead",
        key="the original's",
        message_type=None,
        cleanup="delete",
        # A letter has its original's timestamp, which may be of years ago: by its age it would be gone at once.
        retention_ms=None,
        retention_bytes=10 * GIB,
        written_by=(*DOCUMENT_STAGES, "query"),
        read_by=(OPERATORS,),
        max_bytes=DEAD_MAX_BYTES,
        ahead_ms=ANY_TIME_MS,
        summary="What can't be processed, byte for byte, with the reason in its headers.",
    ),
    Topic(
        name="documents.dead.settled",
        key="the letter's partition:offset",
        message_type=Settlement,
        cleanup="compact",
        retention_ms=None,
        written_by=(OPERATORS,),
        read_by=(OPERATORS,),
        summary="Internal to `headrace dead`: what was decided about each dead letter.",
    ),
    Topic(
        name="documents.generations",
        key="`generations`, on partition 0",
        message_type=Generations,
        cleanup="compact",
        retention_ms=None,
        written_by=(OPERATORS,),
        read_by=(OPERATORS,),
        watched_by=(*DOCUMENT_STAGES, "query"),
        summary="Internal to `headrace reindex` and the workers: which generation answers, and which one tells.",
    ),
    Topic(
        name="queries",
        key="any",
        message_type=Query,
        cleanup="delete",
        retention_ms=HOUR_MS,
        written_by=(APPS,),
        read_by=("query",),
        summary="Questions.",
    ),
    Topic(
        name="replies",
        key="the request's key",
        message_type=Answer,
        cleanup="delete",
        retention_ms=HOUR_MS,
        written_by=("query",),
        read_by=(APPS,),
        summary="Answers, and the pieces of streamed ones.",
    ),
)

BY_NAME = {topic.name: topic for topic in TOPICS}
GROUPS: tuple[str, ...] = (*DOCUMENT_STAGES, "query")
"""The stages that consume, each with a consumer group of its own, in travel order."""


GENERATED = frozenset(topic.name for topic in TOPICS if {*topic.written_by, *topic.read_by} <= set(DOCUMENT_STAGES))
"""What the document stages alone write and read: each generation has these topics of its own."""
UNTOLD = ("documents.events", "documents.dead")
"""What a generation that doesn't tell writes to topics of its own instead."""


@dataclass(frozen=True)
class Names:
    """The names on a given cluster: the table's, behind the deployment's prefixes, of one generation."""

    topic_prefix: str = ""
    group_prefix: str = "headrace-"
    generation: str = FIRST

    def topic(self, name: str) -> str:
        """Raises KeyError for a topic that the table does not have; `replies.<app>` counts as `replies`."""
        if not name.startswith("replies."):
            BY_NAME[name]
        return self.topic_prefix + name + self._suffix(name)

    def untold(self, name: str) -> str:
        """Where this generation writes what it doesn't tell. Raises KeyError for what it never keeps to itself."""
        if name not in UNTOLD:
            raise KeyError(name)
        return f"{self.topic_prefix}{name}.g{self.generation or 1}"

    def named(self, topic: str) -> str | None:
        """The table's name of a topic of this deployment and this generation; None for any other."""
        if not topic.startswith(self.topic_prefix):
            return None
        name = topic[len(self.topic_prefix) :]
        if self.generation:
            name = name.removesuffix(f".g{self.generation}")
        return name if name in BY_NAME and self.topic(name) == topic else None

    def _suffix(self, name: str) -> str:
        return f".g{self.generation}" if self.generation and name in GENERATED else ""

    def group(self, stage: str) -> str:
        """Questions are answered by one group, whichever generation is live."""
        if stage not in GROUPS:
            raise KeyError(stage)
        generation = f"g{self.generation}-" if self.generation and stage in DOCUMENT_STAGES else ""
        return f"{self.group_prefix}{generation}{stage}"

    def read_by(self, stage: str, lane: Lane) -> list[str]:
        """The topics that a stage reads, on one lane."""
        return [self.topic(t.name) for t in TOPICS if stage in t.read_by and t.lane == lane]

    def written_by(self, stage: str, message_type: type, lane: Lane) -> str:
        """The topic a stage's messages of one type go to; topics without lanes take both."""
        found = [t for t in TOPICS if stage in t.written_by and t.message_type is message_type]
        return self.topic(next((t for t in found if t.lane == lane), found[0]).name)
