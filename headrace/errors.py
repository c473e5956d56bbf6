"""What an error means, in its class; `agents/stage.py` alone acts on it.

    HeadraceError
    ├── Poison          this record can never be processed   -> documents.dead and documents.events, then ack
    ├── Transient       a server is away or says "slow down" -> wait with backoff and try again, as long as it takes
    └── Misconfigured   what runs does not fit what is set   -> refuse to start, with one clear line

Anything else is a bug: the worker exits with the record unacked.
"""


class HeadraceError(Exception):
    """An error whose meaning is known. Its text says what happened and, where somebody can act, what to do."""


class Poison(HeadraceError):
    """This record can never be processed. `code` is stable: operators group dead letters by it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Transient(HeadraceError):
    """A server is away or overloaded. `service` names it ("milvus", "opensearch", "kafka", ...)."""

    def __init__(self, service: str, message: str) -> None:
        super().__init__(f"{service}: {message}")
        self.service = service


class Misconfigured(HeadraceError):
    """The settings, the stores and the models do not fit together; nothing can go right until somebody mends it."""
