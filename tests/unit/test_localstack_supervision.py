import configparser
from pathlib import Path

import pytest

from headrace.errors import Misconfigured
from headrace.localstack import supervision
from headrace.localstack.supervision import Program, render_main, render_program, socket_path

PROGRAM = Program(name="chunk", address="127.0.0.1:9100", command=["headrace", "worker", "chunk"])


def as_supervisord_reads(text: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"), strict=False)
    parser.read_string(text)
    return parser


def test_a_program_comes_back_by_itself_and_is_given_time_to_stop(tmp_path: Path) -> None:
    section = as_supervisord_reads(render_program(PROGRAM, tmp_path, "workers"))["program:chunk"]
    assert section["command"] == "headrace worker chunk"
    assert section["autorestart"] == "true"
    assert section["stopwaitsecs"] == "30"
    assert section["stdout_logfile"] == str(tmp_path / "logs" / "chunk.log")
    assert section["stdout_logfile_maxbytes"] == "20MB"


def test_workers_are_stopped_before_servers(tmp_path: Path) -> None:
    of = {
        group: int(as_supervisord_reads(render_program(PROGRAM, tmp_path, group))["program:chunk"]["priority"])
        for group in supervision.GROUPS
    }
    assert of["workers"] > of["servers"]


@pytest.mark.parametrize("value", ["plain", "100%", 'a"b', "a'b", "a,b=c", '["a", "b"]', "", "two words"])
def test_an_environment_value_comes_through_as_it_was(value: str, tmp_path: Path) -> None:
    from supervisor.datatypes import dict_of_key_value_pairs  # type: ignore[import-untyped]

    program = Program(name="x", address="", command=["x"], environment={"HEADRACE_A": value, "B": "2"})
    written = as_supervisord_reads(render_program(program, tmp_path, "workers"))["program:x"]["environment"]
    # supervisord expands %(name)s after it has parsed the pairs.
    read = {name: text % {} for name, text in dict_of_key_value_pairs(written).items()}
    assert read == {"HEADRACE_A": value, "B": "2"}


@pytest.mark.parametrize("value", ["a\nb", "a ;b", "a #b", "'\"", '"a"'])
def test_what_the_format_cannot_hold_is_refused(value: str, tmp_path: Path) -> None:
    program = Program(name="x", address="", command=["x"], environment={"A": value})
    with pytest.raises(Misconfigured, match="cannot hold"):
        render_program(program, tmp_path, "workers")


def test_the_command_is_quoted_as_a_shell_would_read_it(tmp_path: Path) -> None:
    program = Program(name="x", address="", command=["a b", "c%d"])
    assert as_supervisord_reads(render_program(program, tmp_path, "servers"))["program:x"]["command"] == "'a b' c%%d"


def test_the_socket_lies_in_the_root_where_its_path_is_short_enough(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    assert socket_path(Path("/srv/h")) == Path("/srv/h/supervisor.sock")
    outside = socket_path(deep)
    assert not outside.is_relative_to(deep)
    assert len(str(outside)) <= supervision.SOCKET_PATH_LIMIT
    assert socket_path(deep) == outside
    assert socket_path(tmp_path / ("y" * 100)) != outside


def test_supervisord_listens_only_on_a_socket_of_its_owner(tmp_path: Path) -> None:
    config = as_supervisord_reads(render_main(tmp_path))
    assert config["unix_http_server"]["chmod"] == "0700"
    assert "inet_http_server" not in config
