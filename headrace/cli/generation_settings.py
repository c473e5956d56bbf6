"""The settings of a generation, as workers get them and as people are told them."""

from collections.abc import Iterator, Mapping

import msgspec

from headrace.cli.flipping import display
from headrace.config import ENV_PREFIX, Settings
from headrace.encoders.settings import EncoderSettings
from schemas import Generations


def encoder_environment(environ: Mapping[str, str], encoder: EncoderSettings, generation: str) -> dict[str, str]:
    """Settings of this environment, with another encoder and generation. Every setting of the encoder is named, so that
    none is left of a file's. A worker of a name of its own would stay in its group after it has ended.
    """
    ours = {name: value for name, value in environ.items() if name.upper().startswith(ENV_PREFIX)}
    theirs = (f"{ENV_PREFIX}ENCODER", f"{ENV_PREFIX}GENERATION", f"{ENV_PREFIX}WORKER__INSTANCE_ID")
    kept = {name: value for name, value in ours.items() if not name.upper().startswith(theirs)}
    given = encoder.model_dump(mode="json")
    given["api_key"] = encoder.api_key.get_secret_value() if encoder.api_key is not None else None
    # A quote in it would be one too many for supervisord, which knows no way around it.
    said = msgspec.json.encode(given).decode().replace("'", "\\u0027")
    return {**kept, f"{ENV_PREFIX}ENCODER": said, f"{ENV_PREFIX}GENERATION__NAME": generation}


def _said(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """The generation and its encoder: section, name, value as TOML has it. No secrets."""
    yield "generation", "name", f'"{settings.generation.name}"'
    for name, value in settings.encoder.vectors().items():
        if name in ("backend", "model", "context") or value not in (None, False):
            yield "encoder", name, msgspec.json.encode(value).decode()


def settings_lines(settings: Settings) -> list[str]:
    """As headrace.toml has them."""
    generation, *encoder = (f"{name} = {value}" for _, name, value in _said(settings))
    return ["[generation]", generation, "[encoder]", *encoder]


def environment_of(settings: Settings) -> str:
    """As they stand before a command, for a shell."""
    return " ".join(
        f"{ENV_PREFIX}{section.upper()}__{name.upper()}={value}" for section, name, value in _said(settings)
    )


def not_live(settings: Settings, record: Generations) -> str | None:
    """What to set where these settings are of another generation than the one that is live; None where they aren't."""
    if settings.generation.name == record.live:
        return None
    said = [f'generation.name = "{record.live}"']
    if record.live in record.known:
        live = settings.of_generation(record.live, record.known[record.live].encoder)
        said = [f"{section}.{name} = {value}" for section, name, value in _said(live)]
    return (
        f"questions are answered from generation {display(record.live)}, and these settings are of generation "
        f"{display(settings.generation.name)}; set {', '.join(said)}"
    )
