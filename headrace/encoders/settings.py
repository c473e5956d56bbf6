"""Which model makes the vectors, where it runs, and how it is run. Times in seconds."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from headrace.encoders.context import Context

Backend = Literal["torch", "onnx", "static", "openai"]

STATIC_MODEL = "wordllama/l2_supercat_256"
_DEFAULT_MODEL = {"torch": "sentence-transformers/all-MiniLM-L6-v2", "static": STATIC_MODEL}
_OF_VECTORS = frozenset(
    {"backend", "model", "context", "base_url", "dimension", "ask_dimension", "tokenizer", "max_tokens"}
)
_OF_ENDPOINTS = ("base_url", "dimension", "tokenizer", "max_tokens")


class EncoderSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: Backend = "torch"
    """`torch` runs a sentence-transformers model, `onnx` one that `headrace encoder export` made, `static` looks up a
    vector for each token, and `openai` asks an endpoint that speaks OpenAI's embeddings."""
    model: str = _DEFAULT_MODEL["torch"]
    """A folder, or a model's name on a hub; for `openai` its name there. The defaults of `torch` and `static` are taken
    from the packages that ship them, where those are installed."""
    context: Context = "title"
    """What a passage is embedded together with: its document's title, and the headings that it stands under.
    Vectors of different contexts can't be compared, so after a change the documents must be sent again."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of torch's weights. An ONNX model has that of its file."""
    batch_tokens: Annotated[int, Field(ge=0, le=4_194_304)] = 0
    """Tokens the model reads at once, padding included; 0 is 4,096 on a CPU, and 65,536 on a CUDA device
    and of a static model."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of the model; 0 leaves it to torch or ONNX Runtime."""
    reuse: Literal["auto", "always", "never"] = "auto"
    """Whether an update takes the vectors of chunks that it left as they were from Milvus. `auto` does where the model
    is slower than Milvus: not on a CUDA device, and not for `static`."""

    base_url: str | None = None
    """Of the endpoint, with its `/v1`; None is OpenAI's own."""
    api_key: SecretStr | None = None
    """Beside another backend it is for a generation of an endpoint that is still to come, or that was."""
    dimension: Annotated[int, Field(ge=1)] | None = None
    """Of the endpoint's vectors: the stores must know it when nobody can be asked."""
    ask_dimension: bool = False
    """Whether the endpoint is asked for that dimension, which only models whose vectors can be shortened allow."""
    tokenizer: str | None = None
    """A folder with the tokenizer.json of the endpoint's model, or the model's name on a hub, where that isn't `model`:
    chunks are counted in its tokens."""
    max_tokens: Annotated[int, Field(ge=16)] | None = None
    """Of the longest passage that the endpoint reads whole; None is what the model's files say."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    """Requests to the endpoint at once."""
    texts_per_request: Annotated[int, Field(ge=1, le=2048)] = 32
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """For one request to the endpoint."""

    @model_validator(mode="before")
    @classmethod
    def _model_of_its_backend(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("model") is not None:
            return given
        match given.get("backend", "torch"):
            case "onnx":
                raise ValueError("encoder.model must name the folder that `headrace encoder export` made")
            case "openai":
                raise ValueError("encoder.model must name the model as the endpoint does")
            case "static":
                return given | {"model": STATIC_MODEL}
        return given

    @model_validator(mode="after")
    def _fits_its_backend(self) -> "EncoderSettings":
        if self.backend != "openai":
            theirs = [name for name in _OF_ENDPOINTS if getattr(self, name) is not None]
            if theirs:
                raise ValueError(f"encoder.{theirs[0]} is for encoder.backend openai, and it is {self.backend}")
        elif self.dimension is None:
            raise ValueError("encoder.dimension must say how long the endpoint's vectors are")
        if self.backend != "torch" and self.precision != "float32":
            raise ValueError(f"encoder.precision is for encoder.backend torch, and it is {self.backend}")
        if self.backend in {"static", "openai"} and self.device.startswith("cuda"):
            raise ValueError(f"encoder.device {self.device} is of no use to encoder.backend {self.backend}")
        if self.backend == "static" and self.model != STATIC_MODEL:
            raise ValueError(f"encoder.model {self.model} is not static; leave it out, or set {STATIC_MODEL}")
        return self

    def vectors(self) -> dict[str, Any]:
        """The settings that say which vectors are made, as JSON has them. How they are made, and secrets, are not."""
        return self.model_dump(mode="json", include=set(_OF_VECTORS))

    def of_vectors(self, vectors: Mapping[str, Any]) -> "EncoderSettings":
        """What makes those vectors here: as far as it fits them, how it is run stays. Raises ValueError where they are
        none that this version knows.
        """
        runs = self.model_dump(exclude=set(_OF_VECTORS))
        backend = vectors.get("backend")
        if backend != "torch":
            del runs["precision"]
        if backend in {"static", "openai"} and self.device.startswith("cuda"):
            del runs["device"]
        if backend != "openai":
            del runs["api_key"]
        return EncoderSettings.model_validate({**runs, **vectors})
