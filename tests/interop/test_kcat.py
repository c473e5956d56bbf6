"""The line of docs/contract.md that asks with kcat, run as it stands there."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Deployment
from tests.interop.conftest import QUESTIONS, Reply

CONTRACT = Path(__file__).parents[2] / "docs" / "contract.md"


@pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat is not installed (Debian: apt-get install kcat)")
def test_the_line_for_a_shell_gets_what_a_plain_client_gets(asked: Deployment, plain: list[Reply]) -> None:
    line = next(line for line in CONTRACT.read_text().splitlines() if "| kcat -P" in line)
    for here, there in (
        ("127.0.0.1:9092", asked.settings.kafka.bootstrap_servers),
        ("-t queries", f"-t {asked.topic('queries')}"),
        ("-t replies", f"-t {asked.topic('replies')}"),
        ('{"query": "How is hepcidin released?"}', json.dumps(QUESTIONS[1])),
    ):
        assert here in line
        line = line.replace(here, there)
    done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    headers, value = done.stdout.decode().split(" ", 1)
    assert headers.startswith("kafka_correlationId=")
    assert Reply(0, None, json.loads(value)).said == plain[1].said
