"""The command's settings: what the new generation's workers get, and what is said of them."""

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from xmlrpc.client import Fault

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from headrace.cli import app, reindex
from headrace.cli.choosing import encoder_of, sides
from headrace.cli.flipping import STATE_KEPT, closing, done, far, flipped, near, target_of, telling
from headrace.cli.generation_settings import encoder_environment, environment_of, not_live, settings_lines
from headrace.config import load_settings
from headrace.encoders.settings import STATIC_MODEL, EncoderSettings
from headrace.errors import HeadraceError, Misconfigured
from schemas import Generations
from topics.generations import Change, Overtaken

STATIC = EncoderSettings(backend="static", model=STATIC_MODEL)
STATIC_GIVEN = {"backend": "static"}
OTHER = {"backend": "static", "context": "none"}
ENDPOINT = {
    "backend": "openai",
    "model": "it's",
    "base_url": "http://127.0.0.1:1/v1",
    "dimension": 8,
    "max_tokens": 512,
    "api_key": "secret",
}


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A deployment whose encoder is set in a file and in the environment."""
    file = tmp_path / "headrace.toml"
    file.write_text('[encoder]\nbackend = "openai"\nmodel = "large"\ndimension = 3\n[chunking]\nmax_tokens = 200\n')
    monkeypatch.setenv("HEADRACE_CONFIG", str(file))
    monkeypatch.setenv("HEADRACE_ENCODER__TOKENIZER", "/tokenizer")
    monkeypatch.setenv("HEADRACE_KAFKA__TOPIC_PREFIX", "x.")
    return file


@pytest.mark.parametrize("encoder", [STATIC, EncoderSettings.model_validate(ENDPOINT)])
def test_nothing_of_the_old_encoder_is_left_in_the_new_workers_settings(
    given: Path, monkeypatch: pytest.MonkeyPatch, encoder: EncoderSettings
) -> None:
    environment = encoder_environment(
        {
            "HEADRACE_CONFIG": str(given),
            "HEADRACE_ENCODER__TOKENIZER": "/tokenizer",
            "HEADRACE_KAFKA__TOPIC_PREFIX": "x.",
        },
        encoder,
        "2",
    )
    monkeypatch.delenv("HEADRACE_ENCODER__TOKENIZER")
    for name, value in environment.items():
        assert "'" not in value
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.encoder == encoder
    assert (settings.generation.name, settings.kafka.topic_prefix, settings.chunking.max_tokens) == ("2", "x.", 200)


def test_other_variables_than_headraces_are_nobodys_business() -> None:
    assert "HOME" not in encoder_environment({"HOME": "/root"}, STATIC, "2")


def test_what_is_said_to_set_can_be_set_and_has_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    encoder = EncoderSettings.model_validate(ENDPOINT)
    settings = load_settings().of_generation("2").model_copy(update={"encoder": encoder})
    file = tmp_path / "headrace.toml"
    file.write_text("\n".join(settings_lines(settings)))
    said = tomllib.loads(file.read_text())
    assert said["generation"] == {"name": "2"}
    assert EncoderSettings.model_validate(said["encoder"]) == encoder.model_copy(update={"api_key": None})
    assert "secret" not in environment_of(settings)
    assert 'HEADRACE_ENCODER__MODEL="it\'s"' in environment_of(settings)


def test_how_the_encoder_is_run_stays_as_far_as_it_fits() -> None:
    settings = load_settings(encoder={"threads": 3, "precision": "bfloat16", "device": "cuda:1", "context": "none"})
    encoder = encoder_of(settings, {"backend": "static"})
    assert (encoder.model, encoder.threads, encoder.context) == (STATIC_MODEL, 3, "none")
    assert (encoder.precision, encoder.device) == ("float32", "auto")
    assert encoder_of(settings, {"backend": "static", "threads": 1, "context": "title"}).threads == 1


@pytest.mark.parametrize(
    ("encoder", "why"),
    [
        ({"backend": "cloud"}, "backend"),
        ({"backend": "static", "model": "mine"}, "not static"),
        ({"model": "/nowhere"}, "/nowhere"),
        ({"backend": "static", "modell": "x"}, "modell"),
    ],
)
def test_an_encoder_that_cannot_be_had_is_refused_before_anything_is_made(encoder: dict[str, Any], why: str) -> None:
    with pytest.raises(Misconfigured, match=why):
        encoder_of(load_settings(), encoder)


def test_the_first_change_makes_generation_2_and_notes_the_first_one() -> None:
    settings = load_settings()
    old, new, record = sides(settings, Generations(), STATIC_GIVEN, rollback=False)
    assert (old.generation.name, new.generation.name, record.phase, record.target) == ("", "2", "filling", "2")
    assert record.known[""].encoder == settings.encoder.vectors()
    assert record.known["2"].encoder == STATIC.vectors() == new.encoder.vectors()


def making() -> Generations:
    """Generation 2 is being made."""
    return sides(load_settings(), Generations(), STATIC_GIVEN, rollback=False)[2]


def held() -> Generations:
    """Generation 2 is about to be live."""
    return closing(near(making(), "2"), {})


def gone_over() -> Generations:
    """Generation 2 is live, and the first one is kept."""
    return done(telling(flipped(held(), "2")))


@pytest.mark.parametrize("given", [STATIC_GIVEN, None])
def test_the_same_command_goes_on_where_it_was_and_needs_not_say_with_what(given: dict[str, Any] | None) -> None:
    for record in (making(), held()):
        _, new, same = sides(load_settings(), record, given, rollback=False)
        assert (new.generation.name, new.encoder.vectors(), same) == ("2", STATIC.vectors(), record)


def test_a_rollback_goes_on_where_it_was_and_needs_not_say_so() -> None:
    *_, record = sides(load_settings(), gone_over(), None, rollback=True)
    for rollback in (True, False):
        old, new, same = sides(load_settings(), record, None, rollback=rollback)
        assert (old.generation.name, new.generation.name, same) == ("2", "", record)


def test_a_generation_that_was_kept_catches_up_and_goes_on_where_it_was() -> None:
    settings = load_settings().of_generation("2", STATIC.vectors())
    *_, record = sides(settings, gone_over(), load_settings().encoder.vectors(), rollback=False)
    assert (record.phase, target_of(record), set(record.known)) == ("filling", "", {"", "2"})
    assert sides(settings, record, None, rollback=False)[1].generation.name == ""
    assert far(record).known[""].state == STATE_KEPT


@pytest.mark.parametrize(
    ("record", "given", "rollback", "why"),
    [
        (making, OTHER, False, "is being made, of wordllama/l2_supercat_256 .* --drop 2"),
        (making, None, True, "take it away first"),
        (held, OTHER, False, "half done: end that first"),
        (lambda: flipped(held(), "2"), OTHER, False, "half done: end that first"),
    ],
)
def test_something_else_than_what_is_on_its_way_is_refused(
    record: Callable[[], Generations], given: dict[str, Any] | None, rollback: bool, why: str
) -> None:
    with pytest.raises(HeadraceError, match=why):
        sides(load_settings(), record(), given, rollback=rollback)


def test_the_encoder_that_is_live_is_refused() -> None:
    with pytest.raises(HeadraceError, match="has just these vectors"):
        sides(load_settings(), Generations(), {}, rollback=False)


def test_nobody_goes_back_to_where_nobody_was() -> None:
    with pytest.raises(HeadraceError, match="no generation to go back to"):
        sides(load_settings(), Generations(), None, rollback=True)


def test_after_the_flip_the_generation_that_is_left_is_the_one_before() -> None:
    old, new, _ = sides(load_settings(), flipped(held(), "2"), None, rollback=False)
    assert (old.generation.name, new.generation.name) == ("", "2")


def test_settings_of_another_generation_than_the_live_one_are_told_what_to_set() -> None:
    settings = load_settings()
    assert not_live(settings, Generations()) is None
    assert not_live(settings, making()) is None
    assert not_live(settings.of_generation("2", STATIC.vectors()), gone_over()) is None
    said = not_live(settings, gone_over())
    assert said is not None
    assert 'set generation.name = "2", encoder.backend = "static", encoder.model = "wordllama/' in said


@dataclass
class Record:
    """Stands for the right to change the record. `really` is what stands there, where that isn't known."""

    record: Generations
    really: Generations | None = None

    def settle(self) -> Generations:
        self.record = self.really or self.record
        return self.record

    def write(self, record: Generations) -> None:
        self.record = record


@pytest.mark.parametrize(
    "end",
    [KeyboardInterrupt(), HeadraceError(), OSError("the terminal is gone"), Fault(6, "SHUTDOWN_STATE"), SystemExit(1)],
    ids=lambda end: type(end).__name__,
)
def test_however_a_run_ends_before_the_flip_nothing_stays_held(end: BaseException) -> None:
    change = Record(held())
    with pytest.raises(type(end)), reindex._undoing(cast(Change, change), "2", None):
        raise end
    assert (change.record.held, change.record.phase, target_of(change.record)) == ([], "filling", "2")


def test_a_run_that_ends_after_the_flip_undoes_nothing_though_nobody_had_told_it_of_that() -> None:
    change = Record(held(), really=flipped(held(), "2"))
    with pytest.raises(KeyboardInterrupt), reindex._undoing(cast(Change, change), "2", None):
        raise KeyboardInterrupt
    assert (change.record.live, change.record.phase) == ("2", "flipped")


def test_a_run_that_another_one_has_ended_leaves_the_record_to_that_one() -> None:
    change = Record(held())
    with pytest.raises(Overtaken), reindex._undoing(cast(Change, change), "2", None):
        raise Overtaken
    assert change.record.held == [""]


def test_a_key_stays_a_secret_but_for_the_workers() -> None:
    encoder = EncoderSettings.model_validate(ENDPOINT)
    assert isinstance(encoder.api_key, SecretStr)
    assert "secret" not in json.dumps(encoder.vectors())
    assert json.loads(encoder_environment({}, encoder, "2")["HEADRACE_ENCODER"])["api_key"] == "secret"


def test_the_key_of_an_endpoint_that_is_still_to_come_can_be_there_before() -> None:
    settings = load_settings(encoder={"api_key": "secret"})
    endpoint = {name: value for name, value in ENDPOINT.items() if name != "api_key"}
    coming = settings.of_generation("2", EncoderSettings.model_validate(endpoint).vectors()).encoder
    assert coming.api_key is not None
    assert coming.api_key.get_secret_value() == "secret"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--backend", "static"], "there is no terminal to ask on: say --yes or --no-flip"),
        (["--rollback"], "there is no terminal to ask on"),
        (["--drop", "2", "--no-flip"], "there is no terminal to ask on"),
        (["--status", "--rollback"], "doesn't go with --status"),
        (["--encoder", "m", "--drop", "2", "--yes"], "doesn't go with --encoder"),
        (["--yes", "--tenant", "acme"], "goes with --judgements"),
        (["--yes", "--json"], "goes with --status"),
        (["--yes", "--encoder-settings", "/nowhere.toml"], "No such file"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(arguments: list[str], why: str) -> None:
    ended = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["reindex", *arguments])
    assert (ended.exit_code, why in ended.output) == (2, True), ended.output
