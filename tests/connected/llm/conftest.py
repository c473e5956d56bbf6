from collections.abc import Callable, Iterator
from typing import Any

import pytest

from headrace.llm import LanguageModel, Prompt, build
from headrace.llm.prompts import build_prompt
from headrace.llm.settings import LLMSettings
from headrace.llm.tokens import estimated_tokens
from schemas import Hit
from tests.fakes.providers import KEY, MODEL, Providers

TEXT = "The headrace leads water to the turbine. It is long."


@pytest.fixture
def server() -> Iterator[Providers]:
    with Providers() as providers:
        yield providers


@pytest.fixture(params=["openai", "anthropic"])
def provider(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def model_of(server: Providers, provider: str) -> Callable[..., LanguageModel]:
    def made(**settings: Any) -> LanguageModel:
        base_url = server.openai_url if provider == "openai" else server.anthropic_url
        asked = {"provider": provider, "model": MODEL, "base_url": base_url, "api_key": KEY} | settings
        model = build(LLMSettings.model_validate(asked))
        assert model is not None
        return model

    return made


@pytest.fixture
def prompt() -> Prompt:
    hit = Hit(rank=1, score=1, doc_id="d", chunk_id="c", ordinal=0, version=1, text=TEXT, start=0, end=len(TEXT))
    return build_prompt("What leads water?", [hit], LLMSettings(), estimated_tokens)
