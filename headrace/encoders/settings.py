"""Which model makes the vectors, and how it is run."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from headrace.encoders.context import Context


class EncoderSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """A folder, or a model's name on a hub.
    The default model is taken from the package that ships it where that is installed."""
    context: Context = "title"
    """What a passage is embedded together with: its document's title, and the headings that it stands under.
    Vectors of different contexts can't be compared, so after a change the documents must be sent again."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 64
    """Chunks the model reads at once."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of the model; 0 leaves it to torch."""
