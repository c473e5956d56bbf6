"""What the program as a whole promises: help, exit codes, one line for each known error."""

import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping

import pytest
from pydantic import SecretStr

from headrace.cli import main
from headrace.cli.config import MASK, nested, settings_of, toml
from headrace.cli.worker import run_together
from headrace.config import ENV_PREFIX, Settings
from topics.settings import KafkaSettings

COMMANDS = [
    "ask",
    "config",
    "dead",
    "delete",
    "demo",
    "document",
    "down",
    "evaluate",
    "publish",
    "schema",
    "status",
    "top",
    "topics",
    "up",
    "verify",
    "worker",
]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out, said.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert "Usage" in out


def test_the_help_lists_every_command_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(f" {command} " in out for command in COMMANDS)
    assert "misconfigured" in out


def test_help_needs_none_of_the_heavy_libraries() -> None:
    heavy = "pymilvus opensearchpy torch faust numpy confluent_kafka pydantic msgspec"
    program = (
        "import sys, contextlib, io\n"
        "from headrace.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main(['--help'])\n"
        f"print([name for name in {heavy!r}.split() if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["publish"],
        ["publish", "-", "--tenant", "Not OK"],
        ["publish", "a.jsonl", "--doc-id", "x"],
        ["publish", "a.txt", "b.txt", "--doc-id", "x"],
        ["delete"],
        ["delete", ""],
        ["delete", "--all"],
        ["delete", "--all", "--tenant", "x", "doc"],
        ["delete", "--all", "--tenant", "x", "--version", "3"],
        ["verify", "--yes"],
        ["verify", "--dry-run"],
        ["ask", ""],
        ["ask", "x", "--filter", "author=y"],
        ["ask", "x", "--filters", "["],
        ["ask", "x", "--filters", "[]"],
        ["ask", "x", "--top-k", "101"],
        ["worker", "chunks"],
        ["worker", "all", "--port", "9000"],
        ["top", "--every", "0"],
        ["top", "--metrics", "ftp://x"],
        ["dead", "show", "12"],
        ["dead", "list", "--since", "yesterday"],
        ["dead", "replay"],
        ["dead", "replay", "0:1", "--all"],
        ["dead", "replay", "0:1", "--code", "bad_json"],
        ["dead", "replay", "--all", "--state", "replayed"],
        ["dead", "park", "x"],
        ["dead", "drop", "--all"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "Usage" in err


def test_impossible_settings_exit_with_3_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_KAFKA__PARTITIONS", "0")
    code, out, err = run(capsys, "topics", "show")
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert "kafka.partitions" in err


def test_a_server_that_is_away_exits_with_4_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("headrace.cli.kafka.ANSWER_WITHIN_S", 1.0)
    monkeypatch.setenv("HEADRACE_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    code, out, err = run(capsys, "dead", "list")
    assert (code, out, err.count("\n")) == (4, "", 1)
    assert "127.0.0.1:1" in err


def test_config_says_what_is_set_and_by_whom() -> None:
    kafka = KafkaSettings.model_construct(partitions=3, sasl_password=SecretStr("hush-hush"), bootstrap_servers="b:1")
    environ: Mapping[str, str] = {"headrace_kafka__partitions": "3"}
    in_file = {"kafka": {"bootstrap_servers": "b:1"}}
    settings = Settings.model_construct(kafka=kafka)
    found = [*settings_of(settings, ENV_PREFIX, environ, in_file, "headrace.toml")]
    lines = toml(found).splitlines()
    assert "partitions = 3  # HEADRACE_KAFKA__PARTITIONS" in lines
    assert 'bootstrap_servers = "b:1"  # headrace.toml' in lines
    assert f'sasl_password = "{MASK}"' in lines
    assert "replication = 1" in lines
    assert "# sasl_username is not set" in lines
    assert "hush-hush" not in toml(found)
    assert nested(found)["kafka"]["partitions"] == 3


def test_config_shows_tables_of_settings_without_their_secrets() -> None:
    settings = Settings.model_validate(
        {
            "tracing": {"headers": {"authorization": "Bearer abc"}},
            "query": {"tiers": {"premium": {"per_second": 5, "burst": 20}}},
        }
    )
    effective = list(settings_of(settings, "HEADRACE_"))
    read = tomllib.loads(toml(effective))
    assert read["tracing"]["headers"] == nested(effective)["tracing"]["headers"] == {"authorization": MASK}
    assert read["query"]["tiers"] == {"premium": {"per_second": 5, "burst": 20}}


def test_config_can_be_read_as_settings_again() -> None:
    found = [*settings_of(Settings(), ENV_PREFIX)]
    Settings.model_validate(tomllib.loads(toml(found)))
    assert {setting.variable for setting in found} >= {
        "HEADRACE_KAFKA__BOOTSTRAP_SERVERS",
        "HEADRACE_STORES__MILVUS__URI",
    }


def test_the_first_worker_that_ends_stops_the_others_and_gives_the_exit_code() -> None:
    started = time.monotonic()
    code = run_together(
        {"short": [sys.executable, "-c", "raise SystemExit(3)"], "long": ["sleep", "60"]}, stop_within_s=10
    )
    assert code == 3
    assert time.monotonic() - started < 10


def test_a_signal_is_passed_on_to_every_worker() -> None:
    child = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'asked\\n'), sys.exit(0)))\n"
        "os.write(1, b'up\\n')\n"
        "time.sleep(60)"
    )
    parent = (
        "import sys\n"
        "from headrace.cli.worker import run_together\n"
        f"line = [sys.executable, '-c', {child!r}]\n"
        "sys.exit(run_together({'a': line, 'b': line}, stop_within_s=10))"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["up\n"] * 2
        process.terminate()
        assert process.stdout.read() == "asked\n" * 2
        assert process.wait() == 0
