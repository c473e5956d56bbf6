"""Which model makes the vectors, and how it is run."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class EncoderSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """A folder, or a model's name on a hub.
    The default model is taken from the package that ships it where that is installed."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 64
    """Chunks the model reads at once."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of the model; 0 leaves it to torch."""
