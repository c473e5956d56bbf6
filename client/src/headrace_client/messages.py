"""The contract's public messages. They are the same as headrace's own, to the last default; tests hold them to it.

Readers ignore fields they do not know, so a newer headrace may be talked to; a new field always has a default.
"""

from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec

TENANT_PATTERN = r"[a-z0-9][a-z0-9_-]{0,47}"
DEFAULT_TENANT = "default"

Strategy = Literal["fixed", "sentence", "hierarchical"]
ContentType = Literal["text/plain", "text/markdown", "text/html"]
MetadataValue = str | bool | int | float | list[str]
Timestamp = Annotated[datetime, msgspec.Meta(tz=True)]
Version = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Status = Literal["indexed", "deleted", "unchanged", "superseded", "failed"]
ErrorCode = Literal[
    "bad_request", "unauthorized", "forbidden", "rate_limited", "deadline_exceeded", "unavailable", "internal"
]


class Chunking(msgspec.Struct, frozen=True, kw_only=True):
    """How a document is cut. Tokens are counted as the encoder reads them, its special tokens included."""

    strategy: Strategy = "fixed"
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] = 256
    overlap_tokens: Annotated[int, msgspec.Meta(ge=0)] = 64


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a document, named by `tenant` (`default` where it is None) and `doc_id`.

    Without a `version` the record's timestamp is the version; without `created_at` it is the record's timestamp too.
    """

    text: str
    op: Literal["upsert"] = "upsert"
    doc_id: str | None = None
    tenant: str | None = None
    title: str | None = None
    content_type: ContentType = "text/plain"
    source: str | None = None
    source_confidence: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    created_at: Timestamp | None = None
    tags: list[str] = []
    metadata: dict[str, MetadataValue] = {}
    version: Version | None = None
    chunking: Chunking | None = None


class Deletion(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a document, as a version without content."""

    op: Literal["delete"] = "delete"
    doc_id: str | None = None
    tenant: str | None = None
    version: Version | None = None


class EventError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a version failed; the record is in `documents.dead` under the same code."""

    code: str
    message: str


class DocumentEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a version, as `documents.events` tells it."""

    status: Status
    stage: str
    at: Timestamp
    doc_id: str | None = None
    tenant: str | None = None
    version: int | None = None
    chunks: int | None = None
    error: EventError | None = None


class Fusion(msgspec.Struct, frozen=True, kw_only=True):
    """How the two ranked lists become one. `alpha` is the weight of the dense scores (not for `rrf`)."""

    method: Literal["convex", "zscore", "rrf"] = "convex"
    alpha: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """A question. `mode` `search` gives hits alone, `answer` an answer in words besides.

    `fusion` and `rerank` None leave the choice to the deployment.
    """

    query: Annotated[str, msgspec.Meta(min_length=1, max_length=8192)]
    tenant: Annotated[str, msgspec.Meta(pattern=f"^{TENANT_PATTERN}$")] = DEFAULT_TENANT
    mode: Literal["search", "answer"] = "search"
    top_k: Annotated[int, msgspec.Meta(ge=1, le=100)] = 10
    filters: dict[str, Any] = {}
    fusion: Fusion | None = None
    rerank: bool | None = None
    expand: Annotated[int, msgspec.Meta(ge=0, le=5)] = 0
    """Neighbours on each side that a hit's `passage` has beside the hit itself."""
    max_per_document: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Hits of one document at most."""
    highlight: bool = False
    explain: bool = False
    stream: bool = False
    """Set by the client: `ask` or `stream`."""
    request_id: str | None = None
    """The same again, with the same query, gets the same answer for a while without the work being done twice."""


class HitScores(msgspec.Struct, frozen=True, kw_only=True):
    """The scores as each searcher gave them; None where it did not find the chunk or did not run."""

    dense: float | None = None
    bm25: float | None = None
    rerank: float | None = None


class Passage(msgspec.Struct, frozen=True, kw_only=True):
    """A hit with its neighbours, as one text without what they overlap in. `chunk_ids` are in the document's order."""

    text: str
    start: int
    end: int
    chunk_ids: list[str]


class Highlight(msgspec.Struct, frozen=True, kw_only=True):
    """A word of the question, or one of its forms: character offsets into the hit's `text`."""

    start: int
    end: int


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """How a hit came to its place. Ranks are from 1; None where that step did not see the chunk or did not run."""

    dense_rank: int | None = None
    bm25_rank: int | None = None
    dense: float | None = None
    bm25: float | None = None
    fused: float | None = None
    fused_rank: int | None = None
    rerank: float | None = None
    rerank_rank: int | None = None


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """One passage of a live version. `start` and `end` are character offsets into the document's text as it was sent;
    for plain text `text` is exactly that slice.
    """

    rank: int
    score: float
    doc_id: str
    chunk_id: str
    ordinal: int
    version: int
    text: str
    start: int
    end: int
    title: str | None = None
    source: str | None = None
    source_confidence: float | None = None
    tags: list[str] = []
    metadata: dict[str, MetadataValue] = {}
    scores: HitScores = HitScores()
    passage: Passage | None = None
    highlights: list[Highlight] = []
    explanation: Explanation | None = None


class Citation(msgspec.Struct, frozen=True, kw_only=True):
    """`marker` stands in the answer's text; `start` and `end` locate what it cites in the document's text."""

    marker: str
    chunk_id: str
    doc_id: str
    start: int
    end: int


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a language model read and wrote. `cost` is in the currency of the deployment's prices; None without them."""

    input_tokens: int
    output_tokens: int
    cost: float | None = None


class AnswerText(msgspec.Struct, frozen=True, kw_only=True):
    """`known` is false where nothing relevant was found: the text then says so, and cites nothing."""

    text: str
    citations: list[Citation]
    model: str
    known: bool = True
    usage: Usage | None = None


class AnswerError(msgspec.Struct, frozen=True, kw_only=True):
    code: ErrorCode
    message: str
    retry_after_ms: int | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer. `degraded` names what it had to do without; `timings_ms` says where the time went.

    `error` is always None in what the client returns: an answer with an error is raised as AnswerFailed.
    """

    request_id: str | None = None
    hits: list[Hit] = []
    answer: AnswerText | None = None
    degraded: list[str] = []
    timings_ms: dict[str, float] = {}
    error: AnswerError | None = None


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a streamed answer's text."""

    delta: str


T = TypeVar("T")


def encode(message: Any) -> bytes:
    """UTF-8 JSON. Raises UnicodeEncodeError for half of a surrogate pair."""
    return msgspec.json.encode(message)


def decode(value: bytes, message_type: type[T]) -> T:
    """Raises ValueError (msgspec's errors are) when the bytes are not a message of this type."""
    try:
        return msgspec.json.decode(value, type=message_type)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
