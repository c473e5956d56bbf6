"""What an app asks and what it gets."""

from typing import Annotated, Any, Literal

import msgspec

from schemas.document import MetadataValue
from schemas.key import DEFAULT_TENANT, TENANT_PATTERN

ErrorCode = Literal[
    "bad_request", "unauthorized", "forbidden", "rate_limited", "deadline_exceeded", "unavailable", "internal"
]
MAX_TOP_K = 100
MAX_EXPAND = 5


class Fusion(msgspec.Struct, frozen=True, kw_only=True):
    """How the two ranked lists become one. `alpha` is the weight of the dense scores (not for `rrf`).

    `convex` stretches each list's scores to 0..1 by their least and greatest, `zscore` by their mean and deviation.
    """

    method: Literal["convex", "zscore", "rrf"] = "convex"
    alpha: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5


class Query(msgspec.Struct, frozen=True, kw_only=True):
    query: Annotated[str, msgspec.Meta(min_length=1, max_length=8192)]
    tenant: Annotated[str, msgspec.Meta(pattern=f"^{TENANT_PATTERN}$")] = DEFAULT_TENANT
    mode: Literal["search", "answer"] = "search"
    top_k: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOP_K)] = 10
    filters: dict[str, Any] = {}
    fusion: Fusion | None = None
    """Null is the deployment's, as `rerank` null is."""
    rerank: bool | None = None
    expand: Annotated[int, msgspec.Meta(ge=0, le=MAX_EXPAND)] = 0
    """Neighbours on each side that a hit's `passage` has beside the hit itself."""
    max_per_document: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Hits of one document at most."""
    highlight: bool = False
    explain: bool = False
    stream: bool = False
    request_id: str | None = None


class HitScores(msgspec.Struct, frozen=True, kw_only=True):
    """The scores as each searcher gave them; null where it did not find the chunk or did not run."""

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
    """How a hit came to its place. Ranks are from 1; null where that step did not see the chunk or did not run.

    `dense` and `bm25` are the scores as the fusion took them (normalised; for `rrf` the ranks' shares).
    """

    dense_rank: int | None = None
    bm25_rank: int | None = None
    dense: float | None = None
    bm25: float | None = None
    fused: float | None = None
    fused_rank: int | None = None
    rerank: float | None = None
    rerank_rank: int | None = None


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """One passage of a live version. `start` and `end` are character offsets
    into the document's text as it was sent.
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
    """`marker` stands in the answer's text;
    `start` and `end` locate what it cites in the document's text as it was sent.
    """

    marker: str
    chunk_id: str
    doc_id: str
    start: int
    end: int


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a language model read and wrote. `cost` is in the currency of the deployment's prices; null without them."""

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
    """The reply. `degraded` names what it had to do without; `timings_ms` says where the time went."""

    request_id: str | None = None
    hits: list[Hit] = []
    answer: AnswerText | None = None
    degraded: list[str] = []
    timings_ms: dict[str, float] = {}
    error: AnswerError | None = None


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a streamed answer's text."""

    delta: str
