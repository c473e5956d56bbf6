"""A server's own words of a failure, as logs and errors may tell them. Many servers repeat what they were sent."""

from collections.abc import Iterable

SHOWN_CHARACTERS = 300
QUOTED_CHARACTERS = 20
"""So much of a text in a row is no accident; of a shorter text it is all of it, unless that is a word that is
anywhere."""
LEAST_CHARACTERS = 4
QUOTES = "its words repeat what it was sent, and are left out"


def server_words(exc: Exception, *, sent: Iterable[str], secret: str | None = None) -> str:
    """What the exception says, in one line, at most so long, and without the secret; not where it quotes what was
    `sent`.
    """
    said = _in_one_line(str(exc))
    if any(_quotes(said, _in_one_line(text)) for text in sent):
        return QUOTES
    return (said.replace(secret, "***") if secret else said)[:SHOWN_CHARACTERS]


def _quotes(said: str, text: str) -> bool:
    length = min(QUOTED_CHARACTERS, len(text))
    # Each stretch of the words is looked for in the text, which may be a hundred times as long.
    return length >= LEAST_CHARACTERS and any(said[at : at + length] in text for at in range(len(said) - length + 1))


def _in_one_line(text: str) -> str:
    return " ".join(text.split())
