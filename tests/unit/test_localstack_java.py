from pathlib import Path

import pytest

from headrace.errors import Misconfigured
from headrace.localstack import java


@pytest.mark.parametrize(
    ("shown", "major"),
    [
        ('openjdk version "17.0.15" 2025-04-15\nOpenJDK Runtime Environment', 17),
        ('openjdk version "25" 2025-09-16 LTS', 25),
        ('openjdk version "22-ea" 2024-03-19', 22),
        ('java version "1.8.0_392"', 8),
        ('Picked up JAVA_TOOL_OPTIONS: -Xmx1g\nopenjdk version "21.0.2" 2024-01-16', 21),
        ("The operation couldn't be completed. Unable to locate a Java Runtime.", None),
    ],
)
def test_the_major_version_is_read_from_what_java_says(shown: str, major: int | None) -> None:
    assert java.parse_major(shown) == major


def fake_java(home: Path, version: str) -> Path:
    executable = home / "bin" / "java"
    executable.parent.mkdir(parents=True)
    executable.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    executable.chmod(0o755)
    return executable


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    monkeypatch.setattr(java, "INSTALLED_JVMS", tmp_path / "jvm")
    return tmp_path


def test_java_home_wins_if_it_is_new_enough(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = fake_java(machine / "home", "21.0.1")
    fake_java(machine / "jvm" / "newer", "25")
    monkeypatch.setenv("JAVA_HOME", str(machine / "home"))
    assert java.find_java(21, needed_by="OpenSearch") == java.Java(home, 21)


def test_an_old_java_home_does_not_hide_a_newer_installed_java(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java(machine / "home", "17.0.1")
    monkeypatch.setenv("JAVA_HOME", str(machine / "home"))
    fake_java(machine / "jvm" / "a", "17.0.15")
    newest = fake_java(machine / "jvm" / "b", "25")
    assert java.find_java(21, needed_by="OpenSearch") == java.Java(newest, 25)


def test_the_refusal_says_what_was_found_and_what_to_install(machine: Path) -> None:
    fake_java(machine / "jvm" / "a", "17.0.15")
    with pytest.raises(
        Misconfigured, match=r"^OpenSearch needs Java 21 or later; found only Java 17 .*install"
    ) as refused:
        java.find_java(21, needed_by="OpenSearch")
    assert "\n" not in str(refused.value)


def test_a_missing_maven_is_one_line(machine: Path) -> None:
    with pytest.raises(Misconfigured, match="Maven is needed once"):
        java.find_maven()
