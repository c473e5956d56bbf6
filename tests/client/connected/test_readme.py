"""What the client's README shows is run as it stands there, but for the servers' address."""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mypy.api
import pytest
from headrace_client import Client, Document

from tests.conftest import Deployment

README = Path(__file__).parents[3] / "client" / "README.md"
ADDRESS = '"127.0.0.1:9092"'
TEXT = "Open the sluice at six. Close it at night. The sluice is painted green."
SHOWS = {
    "Ask": [r"\[1\]", r"sluice"],
    "Publish": [r"^\d+$", r"^(indexed|unchanged) \d{13}$", r"^deleted$", r"^note-4 (indexed|unchanged) $"],
    "Streams": [r"\d passages", r"\bsix\b", r"Citation\("],
    "Coroutines": [r"^sluices$"],
    "What can go wrong": [r"^bad_request .*colour.* None$"],
    "Settings": [r"'total': "],
}
"""What the examples of a section print, among other things."""


def examples() -> Iterator[Any]:
    for section in re.split(r"^## ", README.read_text(), flags=re.MULTILINE)[1:]:
        title = section.partition("\n")[0]
        blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
        if blocks:
            yield pytest.param(title, blocks, id=title)


@pytest.fixture(scope="module", autouse=True)
def sluices(client: Client) -> None:
    client.publish_and_wait(Document(doc_id="sluices", title="Sluices", text=TEXT, tags=["manual"])).result()


@pytest.mark.parametrize(("title", "blocks"), [*examples()])
def test_the_examples_run_and_print_what_they_promise(title: str, blocks: list[str], pipeline: Deployment) -> None:
    kafka = pipeline.settings.kafka
    here = f'"{kafka.bootstrap_servers}", topic_prefix="{kafka.topic_prefix}"'
    printed = io.StringIO()
    for block in blocks:
        assert ADDRESS in block
        with contextlib.redirect_stdout(printed):
            exec(block.replace(ADDRESS, here), {})
    for shown in SHOWS[title]:
        assert re.search(shown, printed.getvalue(), re.MULTILINE), printed.getvalue()


def test_the_examples_pass_a_strict_type_checker(tmp_path: Path) -> None:
    files = []
    for case in examples():
        for n, block in enumerate(case.values[1]):
            files.append(tmp_path / f"{case.id.lower().replace(' ', '_')}_{n}.py")
            files[-1].write_text(block)
    found, problems, status = mypy.api.run(["--strict", "--no-incremental", *map(str, files)])
    assert status == 0, found + problems


def test_every_section_with_examples_is_looked_at_and_each_example_is_short() -> None:
    assert {case.values[0] for case in examples()} == set(SHOWS)
    longest = max(len(block.splitlines()) for case in examples() for block in case.values[1])
    assert longest <= 14
