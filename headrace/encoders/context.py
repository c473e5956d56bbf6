"""What a passage is read together with. Pure."""

from collections.abc import Sequence
from typing import Literal

Context = Literal["none", "title", "title_headings"]


def context_of(context: Context, title: str | None, headings: Sequence[str], text: str) -> str:
    """What stands before the text of a chunk when it is embedded: its document's title, and the headings it stands
    under. What the text begins with anyway, and what is said already, is left out.
    """
    if context == "none":
        return ""
    parts: list[str] = []
    for part in (title, *(headings if context == "title_headings" else ())):
        said = " ".join((part or "").split())
        if said and said not in parts and not text.startswith(said):
            parts.append(said)
    return ". ".join(parts)
