"""How documents are cut that don't say so themselves."""

from pydantic import BaseModel, ConfigDict, Field

from schemas import Chunking, Strategy


class ChunkingSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: Strategy = "fixed"
    max_tokens: int = Field(default=256, ge=8)
    """Tokens as the encoder reads them, its special tokens included."""
    overlap_tokens: int = Field(default=64, ge=0)

    def chunking(self) -> Chunking:
        return Chunking(strategy=self.strategy, max_tokens=self.max_tokens, overlap_tokens=self.overlap_tokens)
