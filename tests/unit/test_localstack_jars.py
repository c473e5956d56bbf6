from pathlib import Path

import pytest

from headrace.errors import Misconfigured
from headrace.localstack import jars as fetching

POM = (
    """<project xmlns="http://maven.apache.org/POM/4.0.0"><artifactId>x</artifactId><version>1.2</version></project>"""
)
MAVEN = """#!/bin/sh
echo run >> "{log}"
for argument; do case "$argument" in -DoutputDirectory=*) folder="${{argument#*=}}";; esac; done
mkdir -p "$folder"
touch "$folder/a.jar"
exit {code}
"""


@pytest.fixture
def poms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "poms").mkdir()
    (tmp_path / "poms" / "x.xml").write_text(POM)
    return tmp_path / "poms"


def use_maven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int = 0) -> Path:
    maven, log = tmp_path / "mvn", tmp_path / "runs"
    maven.write_text(MAVEN.format(log=log, code=code))
    maven.chmod(0o755)
    monkeypatch.setattr(fetching, "find_maven", lambda: maven)
    return log


def test_jars_are_fetched_once_and_again_when_the_pom_changes(
    poms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = use_maven(tmp_path, monkeypatch)
    said: list[str] = []
    for _ in range(2):
        folder = fetching.jars("x", tmp_path / "jars", said.append, poms=poms)
    assert folder == tmp_path / "jars" / "x-1.2"
    assert (folder / "a.jar").is_file()
    assert log.read_text() == "run\n"
    assert said == ["fetching the jars of x-1.2 with Maven"]
    (poms / "x.xml").write_text(POM.replace("<artifactId>x", "<artifactId>y"))
    fetching.jars("x", tmp_path / "jars", said.append, poms=poms)
    assert log.read_text() == "run\nrun\n"


def test_a_fetch_that_failed_is_not_taken_for_whole(
    poms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_maven(tmp_path, monkeypatch, code=1)
    with pytest.raises(Misconfigured, match="Maven could not fetch the jars of x"):
        fetching.jars("x", tmp_path / "jars", lambda _: None, poms=poms)
    log = use_maven(tmp_path, monkeypatch)
    log.unlink()
    fetching.jars("x", tmp_path / "jars", lambda _: None, poms=poms)
    assert log.read_text() == "run\n"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("[ERROR] Failed: a.jar: No space left on device\n", "the disk is full: free some space"),
        (
            "\x1b[1m[ERROR]\x1b[m \n[ERROR] Could not transfer artifact a:b:1\n[ERROR] more",
            "Could not transfer artifact a:b:1 (",
        ),
        ("", "it said nothing"),
    ],
)
def test_a_failing_maven_is_one_line_that_says_what_to_do(output: str, expected: str) -> None:
    line = fetching.why_maven_failed("kafka", output)
    assert expected in line
    assert "\n" not in line


def test_the_poms_that_are_shipped_have_a_version() -> None:
    for name in ("kafka", "opensearch"):
        assert fetching._version(fetching.POMS / f"{name}.xml")
