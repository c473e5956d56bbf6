"""What is told of a server's own words."""

import json

import pytest

from headrace.quoting import QUOTES, SHOWN_CHARACTERS, server_words

QUESTION = "Which river drives the seventh turbine, and since when?"


def told(words: str, *sent: str, secret: str | None = None) -> str:
    return server_words(ValueError(words), sent=sent, secret=secret)


def test_they_are_one_line_of_bounded_length() -> None:
    assert told("no\n  such model") == "no such model"
    assert len(told("x" * 1000)) == SHOWN_CHARACTERS


def test_a_secret_is_taken_out_of_them() -> None:
    assert told("the key sk-1 is wrong", secret="sk-1") == "the key *** is wrong"


@pytest.mark.parametrize(
    "words",
    [
        f"max_tokens is too large for: {QUESTION}",
        "Error 400 - " + json.dumps({"input": [{"role": "user", "content": f"1. {QUESTION}"}]}),
        f"cut: {QUESTION[10:32]}...",
        "in lines: " + QUESTION.replace(" ", "\n"),
    ],
)
def test_not_when_they_repeat_what_was_sent(words: str) -> None:
    assert told(words, "another text", f"Passages\n\n{QUESTION}\n") == QUOTES


def test_a_short_text_is_repeated_only_as_a_whole() -> None:
    assert told("cannot embed 'seven'", "seven") == QUOTES
    assert told("cannot embed 7", "seven") == "cannot embed 7"
    assert told("cannot embed it", "it") == "cannot embed it"


def test_words_of_their_own_are_told_whatever_was_sent() -> None:
    said = "This model's maximum context length is 4096 tokens"
    assert told(said, QUESTION, "", " ") == said
