"""Generated documents: every process must make the same ones, or two sides of a ratio would not have the same work."""

import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from statistics import median

from bench import text

HASH = "import sys; from hashlib import sha256; from bench import text; print(sha256(text.document(7).text.encode()).hexdigest())"


def test_a_number_is_the_same_document_in_every_process() -> None:
    told = subprocess.run(
        [sys.executable, "-c", HASH], capture_output=True, text=True, check=True, cwd=Path(text.__file__).parents[1]
    )
    assert told.stdout.strip() == sha256(text.document(7).text.encode()).hexdigest()


def test_lengths_are_spread_as_those_of_what_people_write() -> None:
    words = [len(text.document(number).text.split()) for number in range(400)]
    assert 0.8 < median(words) / text.MEDIAN_WORDS < 1.25
    assert max(words) > 6 * median(words)


def test_every_document_is_another_one() -> None:
    assert len({text.document(number).text for number in range(50)}) == 50
