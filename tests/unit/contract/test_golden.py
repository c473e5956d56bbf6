"""What an earlier version wrote must be read for ever: one message of each type, kept as it was written then.

A golden file is never changed. A new version adds a folder of its own.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas import Manifest, decode, encode
from schemas.document import Deletion, Document, read_document
from tests.unit.contract.contract_examples import EXAMPLES
from topics.contract import MESSAGES

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
TYPES = {name: type(example) for name, example in EXAMPLES.items()}
FILES = sorted(GOLDEN.glob("*/*.json"))


def holds(now: Any, then: Any) -> bool:
    """Whether everything that was written then is still there; fields may have been added since."""
    if isinstance(then, dict) and isinstance(now, dict):
        return all(name in now and holds(now[name], value) for name, value in then.items())
    if isinstance(then, list) and isinstance(now, list):
        return len(now) == len(then) and all(map(holds, now, then))
    return type(now) is type(then) and bool(now == then)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_message_of_an_earlier_version_is_read_and_written_alike(file: Path) -> None:
    value = file.read_bytes()
    message = decode(value, TYPES[file.stem])
    assert holds(json.loads(encode(message)), json.loads(value))
    if isinstance(message, Document | Deletion):
        assert read_document(value) == message


def test_every_message_type_and_the_manifest_has_a_golden_file() -> None:
    assert {*MESSAGES, Manifest} == set(TYPES.values())
    assert {file.stem for file in GOLDEN.glob("v0.1/*.json")} == set(TYPES)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_golden_files_of_this_version_are_the_examples(name: str) -> None:
    message: msgspec.Struct = decode((GOLDEN / "v0.1" / f"{name}.json").read_bytes(), TYPES[name])
    assert message == EXAMPLES[name]
