"""OpenAI's chat completions, and every server that speaks them."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
import openai

from headrace.llm.connection import SDKErrors, http_client, translated
from headrace.llm.port import CallFailed, Ended
from headrace.llm.prompts import Prompt
from headrace.llm.settings import LLMSettings

BASE_URL = "https://api.openai.com/v1"
ERRORS = SDKErrors(openai.OpenAIError, openai.APITimeoutError, openai.APIConnectionError, openai.APIStatusError)
NO_KEY = "none"
"""The SDK insists on a key; a server without keys reads none."""


class _Text(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    """Of a chunk (`delta`) or of a whole completion (`message`)."""

    delta: _Text | None = None
    message: _Text | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(msgspec.Struct):
    """What is read of what the SDK gives, which checks no types. Servers differ in the rest."""

    choices: list[_Choice]
    usage: _Usage | None = None


class OpenAIProvider:
    def __init__(self, settings: LLMSettings) -> None:
        newer = settings.base_url is None
        limit = settings.output_limit_field
        self._settings = settings
        self._limit = ("max_completion_tokens" if newer else "max_tokens") if limit == "auto" else limit
        self._client = openai.AsyncOpenAI(
            api_key=settings.api_key.get_secret_value() if settings.api_key else NO_KEY,
            base_url=settings.base_url or BASE_URL,
            max_retries=settings.max_retries,
            http_client=http_client(settings),
        )

    async def events(self, prompt: Prompt) -> AsyncGenerator[str | Ended, None]:
        finished: str | None = None
        usage = _Usage()
        with translated(ERRORS, self._settings, prompt):
            async with aclosing(self._completions(prompt)) as completions:
                async for completion in completions:
                    usage = completion.usage or usage
                    for choice in completion.choices[:1]:
                        text = choice.delta or choice.message
                        if text is not None and text.content:
                            yield text.content
                        finished = choice.finish_reason or finished
        if finished is None:
            raise CallFailed("broken", "the answer ended without a finish_reason: it is not whole")
        if finished in {"content_filter", "tool_calls", "function_call"}:
            raise CallFailed("withheld", f"the model gave no whole answer: finish_reason {finished}")
        yield Ended("cut" if finished == "length" else "ok", usage.prompt_tokens, usage.completion_tokens)

    async def _completions(self, prompt: Prompt) -> AsyncGenerator[_Completion, None]:
        """The chunks, or the one whole completion."""
        create: Any = self._client.chat.completions.create
        asked: dict[str, Any] = {
            "model": self._settings.model,
            "messages": [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}],
            self._limit: self._settings.max_output_tokens,
        }
        if self._settings.temperature is not None:
            asked["temperature"] = self._settings.temperature
        if not self._settings.streaming:
            yield msgspec.convert(await create(**asked), _Completion, from_attributes=True)
            return
        async with await create(**asked, stream=True, stream_options={"include_usage": True}) as chunks:
            async for chunk in chunks:
                yield msgspec.convert(chunk, _Completion, from_attributes=True)

    async def close(self) -> None:
        await self._client.close()
