"""The command's settings: what the new generation's workers get, and what is said of them."""

import json
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from headrace.cli import app, reindex
from headrace.cli.flipping import registered
from headrace.cli.reindexing import encoder_environment, environment_of, settings_lines
from headrace.config import load_settings
from headrace.encoders.settings import STATIC_MODEL, EncoderSettings
from headrace.errors import HeadraceError, Misconfigured
from schemas import Generations

STATIC = EncoderSettings(backend="static", model=STATIC_MODEL)
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


def wanted(encoder: dict[str, Any] | None = None, *, rollback: bool = False) -> reindex._Wanted:
    return reindex._Wanted(
        encoder=encoder,
        rollback=rollback,
        questions=[],
        tenant="",
        rate=0,
        own_workers=True,
        flip=True,
        yes=True,
        without_missing=False,
        catch_up_s=1,
        idle_s=1,
    )


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
    encoder = reindex._encoder(settings, {"backend": "static"})
    assert (encoder.model, encoder.threads, encoder.context) == (STATIC_MODEL, 3, "none")
    assert (encoder.precision, encoder.device) == ("float32", "auto")
    assert reindex._encoder(settings, {"backend": "static", "threads": 1, "context": "title"}).threads == 1


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
        reindex._encoder(load_settings(), encoder)


def test_the_first_change_makes_generation_2_and_notes_the_first_one() -> None:
    settings = load_settings()
    old, new, record = reindex._sides(settings, Generations(), wanted({"backend": "static"}))
    assert (old.generation.name, new.generation.name, record.phase) == ("", "2", "filling")
    assert record.known[""].encoder == settings.encoder.vectors()
    assert record.known["2"].encoder == STATIC.vectors() == new.encoder.vectors()


def test_the_same_command_goes_on_where_it_was_and_needs_not_say_with_what() -> None:
    settings = load_settings()
    _, _, record = reindex._sides(settings, Generations(), wanted({"backend": "static"}))
    for again in (wanted({"backend": "static"}), wanted()):
        _, new, same = reindex._sides(settings, record, again)
        assert (new.generation.name, new.encoder.vectors(), same) == ("2", STATIC.vectors(), record)


@pytest.mark.parametrize(
    ("of", "why"),
    [
        (wanted({"backend": "static", "context": "none"}), "is being made, of wordllama/l2_supercat_256"),
        (wanted(rollback=True), "take it away first"),
    ],
)
def test_something_else_than_what_is_on_its_way_is_refused(of: reindex._Wanted, why: str) -> None:
    settings = load_settings()
    _, _, record = reindex._sides(settings, Generations(), wanted({"backend": "static"}))
    with pytest.raises(HeadraceError, match=why):
        reindex._sides(settings, record, of)


def test_the_encoder_that_is_live_is_refused() -> None:
    with pytest.raises(HeadraceError, match="has just these vectors"):
        reindex._sides(load_settings(), Generations(), wanted({}))


def test_nobody_goes_back_to_where_nobody_was() -> None:
    with pytest.raises(HeadraceError, match="no generation to go back to"):
        reindex._sides(load_settings(), Generations(), wanted(rollback=True))


def test_after_the_flip_the_generation_that_is_left_is_the_one_before() -> None:
    settings = load_settings()
    at = datetime(2026, 5, 1, tzinfo=UTC)
    record = registered(Generations(), "2", STATIC.vectors(), live_encoder=settings.encoder.vectors(), now=at)
    record = Generations(live="2", telling=None, previous="", known=record.known, phase="flipped")
    old, new, _ = reindex._sides(settings, record, wanted())
    assert (old.generation.name, new.generation.name) == ("", "2")


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
