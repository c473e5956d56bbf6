"""How hits are found and how many are looked at for an answer. Times in seconds."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas import Fusion


class RetrievalSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    fusion: Literal["convex", "zscore", "rrf"] = "convex"
    """How the two ranked lists become one for queries that don't say; `convex` normalises scores by least and greatest,
    `zscore` by mean and deviation, `rrf` takes ranks alone."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.4
    """The dense scores' weight for queries that don't say; `rrf` has none. The default is SciFact's best on its
    training questions (docs/evaluation.md)."""
    candidates: Annotated[int, Field(ge=1, le=1000)] = 200
    """Chunks asked of each store for a query; never fewer than its top_k."""
    threads: Annotated[int, Field(ge=1, le=256)] = 8
    """Calls that each of the two searches and the live check may have open at once. They are apart, so that a server
    that hangs holds up only what needs it."""
    breaker_failures: Annotated[int, Field(ge=1)] = 5
    """After so many failures in a row a server is not asked for a while; answers go without it at once."""
    breaker_reset_s: Annotated[float, Field(gt=0)] = 5.0
    """How long it is not asked. Then one query tries, and the others go without it until that one has an answer."""
    answer_passages: Annotated[int, Field(ge=1, le=50)] = 5
    """Hits that an answer is made of."""
    answer_sentences: Annotated[int, Field(ge=1, le=20)] = 3
    """Sentences of an extractive answer."""

    @property
    def default_fusion(self) -> Fusion:
        return Fusion(method=self.fusion, alpha=self.alpha)
