"""Which generation a run leaves and which one comes: what was asked for, held against the record."""

from datetime import UTC, datetime
from typing import Any

import typer
from pydantic import ValidationError

from headrace import wiring
from headrace.cli.flipping import display, goes_back, next_name, registered, target_of
from headrace.config import Settings
from headrace.encoders import encoder_identity
from headrace.encoders.settings import EncoderSettings
from headrace.errors import HeadraceError, Misconfigured
from schemas import Generations
from schemas.generations import HALF_DONE


def sides(
    settings: Settings, record: Generations, given: dict[str, Any] | None, *, rollback: bool
) -> tuple[Settings, Settings, Generations]:
    """The settings of the generation that is left and of the one that comes, and the record in which both stand.
    `given` are settings of the new one's encoder, None where none was named.

    Raises HeadraceError where that can't be done now, and Misconfigured where the new encoder can't be had.
    """
    live = live_side(settings, record)
    going = target_of(record)
    encoder = encoder_of(settings, given) if given is not None else None
    if going is not None:
        _check_under_way(record, going, encoder, rollback=rollback)
        # After the flip the one that is left is not the one that is live.
        left = record.previous if record.phase in ("flipped", "telling") and record.previous is not None else None
        old = live if left is None else _of(settings, record, left)
        return old, _with(_of(settings, record, going), encoder), record
    now = datetime.now(UTC)
    if rollback:
        if record.previous is None:
            raise HeadraceError("there is no generation to go back to")
        name, vectors = record.previous, record.known[record.previous].encoder
        new = _of(settings, record, name)
    else:
        if encoder is None:
            raise typer.BadParameter("which one?", param_hint="--encoder")
        vectors = encoder.vectors()
        if vectors == live.encoder.vectors():
            raise HeadraceError(f"generation {display(record.live)}, which is live, has just these vectors")
        kept = [name for name, info in record.known.items() if info.encoder == vectors]
        name = kept[-1] if kept else next_name(record)
        new = _with(settings.of_generation(name, vectors), encoder)
        wiring.build_tokenizer(new)
    return live, new, registered(record, name, vectors, live_encoder=live.encoder.vectors(), now=now)


def _check_under_way(record: Generations, going: str, encoder: EncoderSettings | None, *, rollback: bool) -> None:
    """Raises HeadraceError where what is under way is something else, and must be ended first."""
    of = encoder_name(record.known[going].encoder)
    if encoder is not None and encoder.vectors() != record.known[going].encoder:
        if record.phase in HALF_DONE:
            raise HeadraceError(
                f"going over to generation {display(going)}, of {of}, is half done: end that first, with "
                "`headrace reindex`"
            )
        raise HeadraceError(
            f"generation {display(going)} is being made, of {of}: go on with `headrace reindex`, or take it away with "
            f"`headrace reindex --drop {display(going)}`"
        )
    if rollback and record.phase not in HALF_DONE and not goes_back(record):
        raise HeadraceError(
            f"generation {display(going)} is being made: take it away first "
            f"(`headrace reindex --drop {display(going)}`)"
        )


def encoder_of(settings: Settings, given: dict[str, Any]) -> EncoderSettings:
    """How it is run is as now, as far as that fits, unless it is given, too. Raises Misconfigured."""
    try:
        EncoderSettings.model_validate(given)
        base = settings.encoder.of_vectors({"context": settings.encoder.context, **given})
        encoder = EncoderSettings.model_validate({**base.model_dump(), **given})
    except ValidationError as exc:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in error['loc']) or 'encoder'}: {error['msg']}" for error in exc.errors()
        )
        raise Misconfigured(f"impossible encoder: {problems}") from exc
    encoder_identity(encoder)
    return encoder


def live_side(settings: Settings, record: Generations) -> Settings:
    """Of the generation that questions are answered from. Raises Misconfigured where nobody knows its encoder."""
    if record.live in record.known:
        return _of(settings, record, record.live)
    if settings.generation.name != record.live:
        raise Misconfigured(
            f"generation.name is {settings.generation.name!r}, and generation {display(record.live)} is live: nobody "
            "knows its encoder"
        )
    return settings


def _of(settings: Settings, record: Generations, name: str) -> Settings:
    """Where the settings are this generation's own, they say more than the record."""
    if settings.generation.name == name and settings.encoder.vectors() == record.known[name].encoder:
        return settings
    return settings.of_generation(name, record.known[name].encoder)


def _with(settings: Settings, encoder: EncoderSettings | None) -> Settings:
    return settings if encoder is None else settings.model_copy(update={"encoder": encoder})


def encoder_name(encoder: dict[str, Any]) -> str:
    context = encoder.get("context", "none")
    return f"{encoder.get('model')} ({encoder.get('backend')}{'' if context == 'none' else f', with {context}'})"
