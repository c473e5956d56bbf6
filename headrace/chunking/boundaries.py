"""Where paragraphs and sentences begin."""

import re
from array import array

import numpy as np
import sentencex  # type: ignore[import-untyped]  # it ships no types

from headrace.chunking.tokens import Boundaries

WINDOW_CHARACTERS = 2048
"""What is searched for sentences at once: the time is quadratic in it on text without spaces or full of brackets. A
sentence longer than this would be cut anyway."""

_blank_lines = re.compile(r"\n[^\S\n]*\n\s*")


def paragraph_starts(text: str) -> Boundaries:
    """Ascending offsets of the text after each blank line."""
    return np.fromiter((match.end() for match in _blank_lines.finditer(text)), np.uint32)


def sentence_starts(text: str) -> Boundaries:
    """Ascending offsets where sentences begin,
    found by rules that suit English and know the full stops of most scripts.
    """
    starts = array("I")
    at = 0
    while at < len(text):
        window = text[at : at + WINDOW_CHARACTERS]
        sentences = sentencex.segment("en", window)
        lengths = [len(sentence) for sentence in sentences]
        # Sentences have no offsets of their own here, but are the whole window in order: cheaper, and exact for what
        # repeats.
        if sum(lengths) != len(window):
            raise AssertionError(f"sentencex lost text in the window at {at}")
        ends = (np.cumsum(lengths) + at).tolist()
        starts.extend(ends[:-1])
        if len(ends) == 1 or at + len(window) == len(text):
            at += len(window)
        else:
            at = ends[-2]  # the last sentence may go on behind the window
    return np.frombuffer(starts, dtype=np.uint32)
