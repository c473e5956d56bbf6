"""Anthropic's messages."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import anthropic
import msgspec

from headrace.llm.connection import SDKErrors, http_client, translated
from headrace.llm.port import CallFailed, Ended
from headrace.llm.prompts import Prompt
from headrace.llm.settings import LLMSettings

BASE_URL = "https://api.anthropic.com"
ERRORS = SDKErrors(
    anthropic.AnthropicError, anthropic.APITimeoutError, anthropic.APIConnectionError, anthropic.APIStatusError
)
NO_KEY = "none"
CUT = frozenset({"max_tokens", "model_context_window_exceeded"})
WHOLE = frozenset({"end_turn", "stop_sequence"})


class _Usage(msgspec.Struct):
    """Without a prompt cache, `input_tokens` are all; with one, what went through it is counted apart."""

    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int | None = None

    @property
    def read(self) -> int | None:
        if self.input_tokens is None:
            return None
        return self.input_tokens + (self.cache_creation_input_tokens or 0) + (self.cache_read_input_tokens or 0)


class _Block(msgspec.Struct):
    """A message's text block, or a change to one; those of other kinds are the model's own notes."""

    type: str
    text: str | None = None


class _Message(msgspec.Struct):
    usage: _Usage | None = None
    content: list[_Block] = []
    stop_reason: str | None = None


class _Change(msgspec.Struct):
    type: str | None = None
    text: str | None = None
    stop_reason: str | None = None


class _Event(msgspec.Struct):
    """What is read of a stream's event, whatever its `type`."""

    type: str
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Change | None = None
    usage: _Usage | None = None


class AnthropicProvider:
    def __init__(self, settings: LLMSettings) -> None:
        self._settings = settings
        self._client = anthropic.AsyncAnthropic(
            api_key=settings.api_key.get_secret_value() if settings.api_key else NO_KEY,
            base_url=settings.base_url or BASE_URL,
            max_retries=settings.max_retries,
            http_client=http_client(settings),
        )

    async def events(self, prompt: Prompt) -> AsyncGenerator[str | Ended, None]:
        with translated(ERRORS, self._settings, prompt):
            if self._settings.streaming:
                async with aclosing(self._streamed(prompt)) as events:
                    async for event in events:
                        yield event
            else:
                message = msgspec.convert(await self._create(prompt), _Message, from_attributes=True)
                for block in message.content:
                    if block.type == "text" and block.text:
                        yield block.text
                yield _ended(message.stop_reason, message.usage, message.usage)

    async def _streamed(self, prompt: Prompt) -> AsyncGenerator[str | Ended, None]:
        stopped, reason = False, None
        first, last = None, None
        async with await self._create(prompt, stream=True) as events:
            async for untyped in events:
                event = msgspec.convert(untyped, _Event, from_attributes=True)
                if event.type == "message_start" and event.message is not None:
                    first = event.message.usage
                elif event.type == "content_block_delta" and event.delta is not None:
                    if event.delta.type == "text_delta" and event.delta.text:
                        yield event.delta.text
                elif event.type == "content_block_start" and event.content_block is not None:
                    if event.content_block.type == "text" and event.content_block.text:
                        yield event.content_block.text
                elif event.type == "message_delta":
                    reason = event.delta.stop_reason if event.delta is not None else None
                    last = event.usage
                elif event.type == "message_stop":
                    stopped = True
        if not stopped:
            raise CallFailed("broken", "the answer ended without a message_stop: it is not whole")
        yield _ended(reason, first, last)

    async def _create(self, prompt: Prompt, **how: Any) -> Any:
        create: Any = self._client.messages.create
        # The SDK has no argument for a temperature any more; models that take one still read it.
        extra = {} if self._settings.temperature is None else {"temperature": self._settings.temperature}
        return await create(
            model=self._settings.model,
            system=prompt.system,
            messages=[{"role": "user", "content": prompt.user}],
            max_tokens=self._settings.max_output_tokens,
            extra_body=extra,
            **how,
        )

    async def close(self) -> None:
        await self._client.close()


def _ended(reason: str | None, read: _Usage | None, written: _Usage | None) -> Ended:
    """`read` and `written` have the tokens of either direction. Raises CallFailed when this is no whole answer."""
    if reason in CUT or reason in WHOLE:
        return Ended(
            "cut" if reason in CUT else "ok",
            read.read if read is not None else None,
            written.output_tokens if written is not None else None,
        )
    raise CallFailed("withheld", f"the model gave no whole answer: stop_reason {reason}")
