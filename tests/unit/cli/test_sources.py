import gzip
import io
import re
from pathlib import Path

import msgspec
import pytest

from headrace.cli.publishing import Outgoing, outgoing
from headrace.cli.sources import Found, Labels, Problem, Reading, Skipped, read_paths, title_of
from schemas import Key, encode
from schemas.document import Deletion, Document, read_document
from topics import RAW_MAX_BYTES

NO_LABELS = Labels()


def read(*paths: object, labels: Labels = NO_LABELS, stdin: bytes = b"") -> list[Reading]:
    return list(read_paths([str(path) for path in paths], labels, io.BytesIO(stdin)))


def found(reading: Reading) -> Found:
    assert isinstance(reading, Found), reading
    return reading


def sent(reading: Reading) -> Document | Deletion:
    """The message as a reader of the topic decodes it."""
    record = outgoing(reading)
    assert isinstance(record, Outgoing)
    return read_document(record.value)


def test_a_file_is_a_document_named_after_it(tmp_path: Path) -> None:
    file = tmp_path / "notes.md"
    file.write_bytes(b"\xef\xbb\xbf# Title #\r\n\r\nText\r\n")
    [reading] = read(file, labels=Labels(tags=("a", "b")))
    assert found(reading).key == Key("default", "notes.md")
    assert sent(reading) == Document(
        text="# Title #\r\n\r\nText\r\n",
        title="Title",
        content_type="text/markdown",
        source=file.as_uri(),
        tags=["a", "b"],
    )


def test_a_folder_is_read_in_order_with_paths_as_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    (tmp_path / "sub" / "b.HTM").write_text("<title>B &amp; C</title>")
    (tmp_path / "a.txt").write_text("A")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / "lines.ndjson").write_text('{"id": 7, "text": "seven"}\n')
    readings = read(tmp_path, labels=Labels(tenant="t"))
    assert [str(found(one).key) for one in readings if isinstance(one, Found)] == ["t/a.txt", "t/7", "t/sub/b.HTM"]
    assert [one.where for one in readings if isinstance(one, Skipped)] == [str(tmp_path / "image.png")]
    last = sent(readings[-1])
    assert isinstance(last, Document)
    assert (last.content_type, last.title) == ("text/html", "B & C")


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9")
    (tmp_path / "big.txt").write_bytes(b"x" * (RAW_MAX_BYTES + 1))
    (tmp_path / "fine.txt").write_text("fine")
    bad, big, fine = read(tmp_path)
    assert isinstance(bad, Problem)
    assert "not UTF-8" in bad.why
    assert "byte 3" in bad.why
    assert isinstance(big, Problem)
    assert "too large" in big.why
    assert found(fine).key.doc_id == "fine.txt"


def test_paths_that_are_not_there_or_of_another_kind_are_problems(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    readings = read(tmp_path / "a.pdf", tmp_path / "none.txt", tmp_path / "none.jsonl", tmp_path / "none")
    assert all(isinstance(one, Problem) for one in readings)
    assert len(readings) == 4


def test_two_files_never_silently_become_one_document(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(folder)
    first, second = read(tmp_path / "one", tmp_path / "two")
    assert found(first).key.doc_id == "a.txt"
    assert isinstance(second, Problem)
    assert "one/a.txt" in second.why


LINES = b"""\
{"doc_id": "a", "text": "A", "tenant": "t1", "tags": ["x"], "unknown": [1], "metadata": {"year": 2019}, "version": 5}

{"id": 2, "text": "B", "chunking": {"strategy": "sentence"}}
{"id": "c", "doc_id": "d", "text": ""}
{"doc_id": "e", "op": "delete", "version": 9}
"""


def test_json_lines_are_documents_of_the_contract() -> None:
    readings = read("-", labels=Labels(tags=("x", "y")), stdin=LINES)
    assert [str(found(one).key) for one in readings] == ["t1/a", "default/2", "default/d", "default/e"]
    first = sent(readings[0])
    assert first == Document(text="A", tags=["x", "y"], metadata={"year": 2019}, version=5)
    assert sent(readings[3]) == Deletion(version=9)
    assert b'"id"' not in encode(found(readings[1]).document)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"not json", "JSON"),
        (b"[1]", "object"),
        (b'{"id": "1"}', "text"),
        (b'{"text": "x"}', "doc_id"),
        (b'{"id": "", "text": "x"}', "empty"),
        (b'{"id": "1", "text": 5}', "text"),
        (b'{"id": "1", "text": "x", "tenant": "Not OK"}', "tenant"),
        (b'{"id": "1", "text": "x", "op": "purge"}', "op"),
        (b'{"id": "1", "text": "\\ud800"}', "no document"),
        (b'{"id": "\xff", "text": "x"}', "UTF-8|utf-8"),
        (b'{"id": "' + b"x" * 513 + b'", "text": "x"}', "513"),
    ],
)
def test_a_line_that_is_no_document_is_named_and_the_rest_goes_on(line: bytes, why: str) -> None:
    problem, fine = read("-", stdin=line + b'\n{"id": "1", "text": "x"}')
    assert isinstance(problem, Problem)
    assert problem.where == "stdin:1"
    assert re.search(why, problem.why)
    assert found(fine).where == "stdin:2"


def test_a_line_of_another_tenant_than_the_option_is_refused() -> None:
    [problem] = read("-", labels=Labels(tenant="a"), stdin=b'{"id": "1", "text": "x", "tenant": "b"}')
    assert isinstance(problem, Problem)
    assert "--tenant" in problem.why


def test_compressed_lines_are_read_and_a_cut_file_is_a_problem(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"id": "1", "text": "x"}\n' * 3)
    (tmp_path / "whole.jsonl.gz").write_bytes(packed)
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[:-9])
    assert [found(one).where for one in read(tmp_path / "whole.jsonl.gz")] == [
        f"{tmp_path}/whole.jsonl.gz:{line}" for line in (1, 2, 3)
    ]
    assert isinstance(read(tmp_path / "cut.jsonl.gz")[-1], Problem)


def test_stdin_with_a_doc_id_is_the_text_itself() -> None:
    [reading] = read("-", labels=Labels(doc_id="d"), stdin=b'{"not": "parsed"}')
    assert found(reading).key == Key("default", "d")
    assert sent(reading) == Document(text='{"not": "parsed"}')


def test_a_record_counts_with_its_key_and_its_framing() -> None:
    def line(length: int) -> bytes:
        return msgspec.json.encode({"id": "k", "text": "x" * length})

    [reading] = read("-", stdin=line(100))
    record = outgoing(reading)
    assert isinstance(record, Outgoing)
    room = RAW_MAX_BYTES - record.size + 100
    [largest], [beyond] = read("-", stdin=line(room)), read("-", stdin=line(room + 1))
    fits = outgoing(largest)
    assert isinstance(fits, Outgoing)
    assert fits.size == RAW_MAX_BYTES
    refused = outgoing(beyond)
    assert isinstance(refused, Problem)
    assert "10,485,760" in refused.why


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# One\n# Two", "One"),
        ("text\n\n### Deep *one* ##", "Deep *one*"),
        ("```sh\n# a comment\n```\n## Heading", "Heading"),
        ("#hashtag\ntext", None),
        ("", None),
    ],
)
def test_markdown_is_titled_by_its_first_heading(text: str, title: str | None) -> None:
    assert title_of(text, "text/markdown") == title


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("<TITLE>\n A\n B </TITLE><h1>C</h1>", "A B"),
        ("<h1 class='x'>A <b>&lt;B&gt;</b></h1>", "A <B>"),
        ("<title> </title>", None),
        ("<p>x</p>", None),
    ],
)
def test_html_is_titled_by_its_title_or_first_h1(text: str, title: str | None) -> None:
    assert title_of(text, "text/html") == title


def test_plain_text_has_no_title() -> None:
    assert title_of("# x", "text/plain") is None
