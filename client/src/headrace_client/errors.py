"""What can go wrong.

HeadraceError
├── Invalid                   it can't be sent as it is; nothing was sent (also a ValueError)
├── QueueFull                 too much waits for the broker; nothing was sent
├── Closed                    the client was closed, or belongs to another process
├── KafkaUnavailable          no broker answers, or none took the record in time; later it may work
├── KafkaRefused              Kafka refuses: no such topic, no permission, a wrong setting
├── NoReply                   the record was taken, and nothing came back in time (also a TimeoutError)
├── UnreadableReply           a reply is not of the contract's form
├── DocumentFailed            headrace put the document into its dead letters
└── AnswerFailed              headrace answered with an error
    ├── BadRequest
    ├── Unauthorized
    ├── Forbidden
    ├── RateLimited
    ├── DeadlineExceeded      (also a TimeoutError)
    ├── Unavailable
    └── Internal
"""

from headrace_client.messages import AnswerError, ErrorCode
from headrace_client.outcomes import Outcome


class HeadraceError(Exception):
    """Everything that this package raises, but for TypeErrors of wrong calls and the plain TimeoutError of `result`."""


class Invalid(HeadraceError, ValueError):
    """It can't be sent as it is, and nothing was sent."""


class QueueFull(HeadraceError):
    """More waits for the broker than the queue takes, and this was not sent. `publish_many` waits for room."""


class Closed(HeadraceError):
    """The client was closed, or was made before this process was forked."""


class KafkaUnavailable(HeadraceError):
    """No broker answers, or none has confirmed the record in time.

    A record that was not confirmed may still have arrived: a document that is sent again does no harm, and headrace
    does not work on a question past its deadline.
    """


class KafkaRefused(HeadraceError):
    """Kafka refuses: no such topic, no permission, a setting that librdkafka does not take. Again would not help."""


class NoReply(HeadraceError, TimeoutError):
    """Kafka has the record, and nothing came back in time."""


class UnreadableReply(HeadraceError):
    """A reply is not of the contract's form."""


class DocumentFailed(HeadraceError):
    """The document is in `documents.dead`. `outcome.error` has the reason's stable `code` and its words."""

    def __init__(self, outcome: Outcome) -> None:
        error = outcome.error
        why = f"{error.code} ({outcome.stage}): {error.message}" if error is not None else "no reason was given"
        super().__init__(f"{outcome.tenant}/{outcome.doc_id}: {why}")
        self.outcome = outcome


class AnswerFailed(HeadraceError):
    """Headrace answered with an error. `retry_after_ms` is None where trying again is of no use or nobody can tell."""

    def __init__(self, error: AnswerError) -> None:
        super().__init__(f"{error.code}: {error.message}")
        self.code: ErrorCode = error.code
        self.message = error.message
        self.retry_after_ms = error.retry_after_ms


class BadRequest(AnswerFailed):
    """The question can't be read, or its reply can't be sent where it asks for it."""


class Unauthorized(AnswerFailed):
    """No token, or one that does not count."""


class Forbidden(AnswerFailed):
    """The token does not allow it."""


class RateLimited(AnswerFailed):
    """The tenant asks more than it may; see `retry_after_ms`."""


class DeadlineExceeded(AnswerFailed, TimeoutError):
    """The question's time was over before its answer was ready."""


class Unavailable(AnswerFailed):
    """A server that headrace needs is away; see `retry_after_ms`."""


class Internal(AnswerFailed):
    """Headrace failed for a reason of its own."""


BY_CODE: dict[ErrorCode, type[AnswerFailed]] = {
    "bad_request": BadRequest,
    "unauthorized": Unauthorized,
    "forbidden": Forbidden,
    "rate_limited": RateLimited,
    "deadline_exceeded": DeadlineExceeded,
    "unavailable": Unavailable,
    "internal": Internal,
}


def answer_failed(error: AnswerError) -> AnswerFailed:
    return BY_CODE[error.code](error)
