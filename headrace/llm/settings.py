"""Which language model writes answers, and how it is called."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

Seconds = Annotated[float, Field(gt=0)]
Price = Annotated[float, Field(ge=0)]


class LLMSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: Literal["none", "openai", "anthropic"] = "none"
    """With `none`, answers are sentences of the hits. `openai` is also vLLM, TGI and whatever else speaks OpenAI's chat
    completions, at `base_url`."""
    model: str | None = None
    """Its name as the server knows it; also `model` in answers, and a label of metrics."""
    base_url: str | None = None
    """None is the provider's own service. For `openai` it ends in `/v1` as a rule, for `anthropic` it doesn't."""
    api_key: SecretStr | None = None
    """A server at `base_url` may do without one. The SDKs' own variables (`OPENAI_API_KEY`, ...) are not read."""
    streaming: bool = True
    """Whether the model is asked to answer in pieces; off for gateways that can't."""

    connect_timeout_s: Seconds = 5.0
    silence_timeout_s: Seconds = 20.0
    """How long the server may send nothing at all, before its first piece as well as between two."""
    timeout_s: Seconds = 45.0
    """Of the whole call: waiting for its turn, all tries, all pieces. A query's own deadline may leave less."""
    max_retries: Annotated[int, Field(ge=0, le=10)] = 2
    """Tries again when the server can't be reached or says 408, 409, 429 or 5xx, and before it has begun to answer."""
    max_retry_wait_s: Seconds = 10.0
    """A server that asks for a longer wait (`retry-after`) is not waited for."""
    concurrency: Annotated[int, Field(ge=1, le=1000)] = 16
    """Calls at a time of one worker; others wait for their turn."""

    max_output_tokens: Annotated[int, Field(ge=16)] = 800
    output_limit_field: Literal["auto", "max_tokens", "max_completion_tokens"] = "auto"
    """What `openai` calls that limit. `auto` is the newer name without a `base_url`, and with one the older name, which
    every compatible server knows."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """None sends none: some models refuse any. 0 makes answers steadier where the model takes it."""
    context_tokens: Annotated[int, Field(ge=512)] = 6000
    """The prompt's budget, its instructions and the question included. The answer comes on top."""
    max_passages: Annotated[int, Field(ge=1, le=100)] = 10
    input_price: Price | None = None
    """For a million tokens, in any currency, as `output_price`. With both, answers and metrics say what they cost."""
    output_price: Price | None = None

    system_template: Path | None = None
    """Jinja2 files in place of `headrace/llm/templates/`; they are read at the start and tried there."""
    user_template: Path | None = None
    min_relevance: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Below this cosine of the question and its nearest hit, the answer is `unknown_text` and the model isn't asked.

    A cosine, because that alone means the same for every query: fused scores are stretched over each query's own hits,
    and BM25's depend on how rare the question's words are. It depends on the encoder, and None switches it off."""
    unknown_text: Annotated[str, Field(min_length=1)] = "I don't know: nothing relevant was found."
    """The answer when nothing relevant was found, or when the model says that the passages don't tell."""

    @model_validator(mode="after")
    def _is_complete(self) -> "LLMSettings":
        if self.provider == "none":
            return self
        if not self.model:
            raise ValueError("model: name the model that is to be asked")
        if self.base_url is None and self.api_key is None:
            raise ValueError(f"api_key: {self.provider} asks for one")
        return self
