"""Why a question isn't answered, beside what headrace/errors.py says of servers."""


class RateLimited(Exception):
    """Too many questions: of one tenant, or all together. `retry_after_s` says when another may be taken."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BadRequest(Exception):
    """The question can't be understood."""
