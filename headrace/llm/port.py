"""What answers need of a language model, and what goes wrong with one."""

from collections.abc import AsyncGenerator
from typing import Literal, NamedTuple, Protocol, TypeAlias

from headrace.errors import Transient
from headrace.llm.prompts import Prompt
from schemas import Usage

SERVICE = "llm"
CUT_MARK = " …"
"""The end of an answer that the model could not finish within `max_output_tokens`: what was streamed can't be taken
back to the last whole sentence, and whoever reads it sees that more was to come."""

Outcome: TypeAlias = Literal[
    "ok", "cut", "away", "rate_limited", "timeout", "broken", "withheld", "refused", "busy", "abandoned"
]
"""How a call ended, as metrics say it (docs/operations.md)."""


class CallFailed(Transient):
    """No answer, or half of one, which is none."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(SERVICE, message)
        self.outcome: Outcome = outcome


class Refused(CallFailed):
    """The server is there and won't, because of the key, the model's name or the request.

    It is Transient all the same: a wrong key must not end a worker that can answer without the model.
    """

    def __init__(self, message: str) -> None:
        super().__init__("refused", message)


class Ended(NamedTuple):
    """The end that a provider declared. Tokens are None where it doesn't count them."""

    outcome: Literal["ok", "cut"]
    input_tokens: int | None
    output_tokens: int | None


class Provider(Protocol):
    """One provider's wire format, spoken by its SDK."""

    def events(self, prompt: Prompt) -> AsyncGenerator[str | Ended, None]:
        """The answer's pieces, none of them empty, and how it ended. Raises CallFailed.

        Nothing is tried again once a piece has come, and what ends without the provider's own end raises.
        """

    async def close(self) -> None: ...


class LanguageModel(Protocol):
    @property
    def name(self) -> str: ...

    def stream(self, prompt: Prompt, *, timeout_s: float) -> AsyncGenerator[str | Usage, None]:
        """The answer in pieces, put together the whole of it, and then one Usage; at most `timeout_s` long.

        Raises Transient of the service "llm" when there is no answer, also in the middle of it: what came before is
        then not an answer. Close the iterator (`contextlib.aclosing`) when it is left early.
        """

    async def close(self) -> None: ...
