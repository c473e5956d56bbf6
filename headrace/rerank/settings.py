"""Whether hits are reranked, and by which model. Times in seconds."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class RerankSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = False
    """Whether the model is loaded. Without it, a query that asks for reranking is answered with `degraded`."""
    by_default: bool = True
    """Whether queries that don't say are reranked, where the model is loaded."""
    model: str = "cross-encoder/ms-marco-MiniLM-L-12-v2"
    """A folder, or a cross-encoder's name on a hub. It must give one score for a pair."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    candidates: Annotated[int, Field(ge=1, le=1000)] = 50
    """Of the fused chunks, the best so many are reranked; those beyond stay behind them, as they were."""
    weight: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """The reranker's share of the blend; the rest is the fused score's."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 64
    """(question, chunk) pairs that the model reads at once, of all queries that wait."""
    timeout_s: Annotated[float, Field(gt=0)] = 5.0
    """How long a query waits for it, others' pairs included, before it goes without."""
