"""Documents of any number, the same on every run, made of the examples' words as often as these use them.

Their lengths are log-normal, as the lengths of what people write are: many short ones, and a few very long ones.
"""

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.cli.publishing import Outgoing
from schemas import Document, Key, encode

CORPUS = Path(__file__).parents[1] / "examples" / "covidqa" / "corpus.jsonl.gz"
TENANT = "default"
MEDIAN_WORDS = 150
SIGMA = 1.0
"""Of the lengths' logarithms: one in six has 2.7 times the median, one in forty 7 times."""
LONGEST_WORDS = 20_000
SENTENCE_MEDIAN_WORDS = 18
SENTENCE_SIGMA = 0.5
TITLE_WORDS = (4, 12)
PARAGRAPH_SENTENCES = 5


def document(number: int, *, median_words: int = MEDIAN_WORDS) -> Document:
    """The same number is the same document in every process."""
    dice = np.random.default_rng([7, number])
    length = min(LONGEST_WORDS, max(3, round(median_words * float(dice.lognormal(sigma=SIGMA)))))
    title = " ".join(_words(dice, int(dice.integers(*TITLE_WORDS))))
    return Document(title=title.capitalize(), text=_prose(_words(dice, length), dice))


def records(numbers: range, *, name: str = "generated", median_words: int = MEDIAN_WORDS) -> Iterator[Outgoing]:
    for number in numbers:
        key = Key(TENANT, f"{name}-{number:07}")
        yield Outgoing(where=str(key), key=key, value=encode(document(number, median_words=median_words)))


def _words(dice: np.random.Generator, count: int) -> list[str]:
    words, rising = _vocabulary()
    return words[np.searchsorted(rising, dice.random(count))].tolist()  # type: ignore[no-any-return]


def _prose(words: list[str], dice: np.random.Generator) -> str:
    parts: list[str] = []
    place = sentences = 0
    while place < len(words):
        length = max(2, round(SENTENCE_MEDIAN_WORDS * float(dice.lognormal(sigma=SENTENCE_SIGMA))))
        sentence = " ".join(words[place : place + length])
        place, sentences = place + length, sentences + 1
        gap = " " if sentences % PARAGRAPH_SENTENCES else "\n\n"
        parts.append(f"{sentence[0].upper()}{sentence[1:]}.{gap}")
    return "".join(parts).rstrip()


@cache
def _vocabulary() -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """The words, and their shares of the examples added up."""
    with gzip.open(CORPUS, "rt", encoding="utf-8") as lines:
        text = " ".join(json.loads(line)["text"] for line in lines)
    counted = Counter(re.findall(r"[A-Za-z0-9][A-Za-z0-9'-]*", text))
    rising = np.cumsum(np.array(list(counted.values()), dtype=np.float64))
    return np.array(list(counted), dtype=object), rising / rising[-1]
