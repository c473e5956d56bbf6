"""How much is looked at for an answer."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class RetrievalSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    candidates: Annotated[int, Field(ge=1, le=1000)] = 100
    """Chunks asked of each store for a query; never fewer than its top_k."""
    answer_passages: Annotated[int, Field(ge=1, le=50)] = 5
    """Hits that an answer is made of."""
    answer_sentences: Annotated[int, Field(ge=1, le=20)] = 3
    """Sentences of an extractive answer."""
