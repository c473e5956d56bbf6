"""`headrace reindex`: another encoder, beside the one in use, and then instead of it."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.console import complain, err, out, print_json
from headrace.cli.options import Json, check_tenant

if TYPE_CHECKING:
    from headrace.cli.reindexing import Reindexing
    from headrace.config import Settings
    from headrace.encoders.settings import EncoderSettings
    from headrace.evaluation import Question, Report
    from schemas import Generations
    from topics.generations import Change

WAYS = ("dense", "default")
DIFFERENCES_SHOWN = 5
IN_FLIGHT = 16
QUESTION_S = 60.0


def reindex(
    encoder: Annotated[
        str | None,
        typer.Option("--encoder", metavar="MODEL", help="The new encoder's model: a folder, or a name on a hub."),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend", metavar="torch|onnx|static|openai", help="Where that is not torch. static needs no --encoder."
        ),
    ] = None,
    encoder_settings: Annotated[
        Path | None,
        typer.Option(
            "--encoder-settings",
            metavar="FILE",
            help="A TOML file whose [encoder] has them, as in headrace.toml: context, base_url, dimension, ….",
        ),
    ] = None,
    judgements: Annotated[
        Path | None,
        typer.Option(
            "--judgements",
            metavar="FILE",
            help="As `headrace evaluate` takes them: measure both generations with these questions before the flip.",
        ),
    ] = None,
    tenant: Annotated[
        str | None,
        typer.Option("--tenant", "-t", help="With --judgements: whose documents.", callback=check_tenant),
    ] = None,
    rate: Annotated[
        float,
        typer.Option("--rate", min=0, help="So many documents a second at most into the new generation; 0: no limit."),
    ] = 0,
    workers: Annotated[
        bool,
        typer.Option(
            "--workers/--no-workers",
            help="Run the new generation's document workers here, or leave that to deployments of your own "
            "(generation.name says for which one a worker works).",
        ),
    ] = True,
    flip: Annotated[
        bool,
        typer.Option("--flip/--no-flip", help="Go over to the new generation when it is ready, or only make it."),
    ] = True,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    without_missing: Annotated[
        bool,
        typer.Option(
            "--without-missing",
            help="Go over although the new generation lacks documents that the live one has: it can't process them, "
            "or Kafka no longer has them.",
        ),
    ] = False,
    catch_up: Annotated[
        float,
        typer.Option(
            "--catch-up",
            min=1,
            help="Go over only if the new generation catches up within so many seconds: for as long, no document "
            "becomes searchable.",
        ),
    ] = 120,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="Give up when nothing has moved for so many seconds.")
    ] = 600,
    status: Annotated[bool, typer.Option("--status", help="Say which generations there are, and no more.")] = False,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Go back to the generation that was live before, in the same way.")
    ] = False,
    drop: Annotated[
        str | None,
        typer.Option(
            "--drop",
            metavar="NAME",
            help="Take away a generation that is not live: its collections, indexes, topics and groups; asks first.",
        ),
    ] = None,
    stop_workers: Annotated[
        bool, typer.Option("--stop-workers", help="End the workers that earlier runs have started here.")
    ] = False,
    json: Json = False,
) -> None:
    """Change the encoder without a moment without answers: everything that Kafka has is embedded anew, beside what is
    in use, and questions go over to it in one step.

    Documents that come meanwhile land in both, no answer mixes the two, and no event is lost. Whenever this is stopped
    or killed, the same command goes on where it was. Only one run changes generations: the next ends it. The old
    generation stays until --drop, and --rollback goes back to it.
    """
    makes = encoder is not None or backend is not None or encoder_settings is not None
    ways = {"--encoder": makes, "--status": status, "--rollback": rollback, "--drop": drop is not None}
    said = [way for way, wanted in {**ways, "--stop-workers": stop_workers}.items() if wanted]
    if len(said) > 1:
        raise typer.BadParameter(f"doesn't go with {said[0]}", param_hint=said[1])
    if (judgements is None) != (tenant is None):
        raise typer.BadParameter("goes with --judgements, which needs it", param_hint="--tenant")
    if json and not status:
        raise typer.BadParameter("goes with --status", param_hint="--json")
    if stop_workers:
        _stop_workers()
    elif status:
        _status(json=json)
    elif not yes and not sys.stdin.isatty() and (flip or drop is not None):
        raise typer.BadParameter("there is no terminal to ask on: say --yes or --no-flip", param_hint="--yes")
    elif drop is not None:
        _drop("" if drop == "1" else drop, yes=yes)
    else:
        wanted = _Wanted(
            encoder=_encoder_given(encoder, backend, encoder_settings) if makes else None,
            rollback=rollback,
            questions=_questions(judgements),
            tenant=tenant or "",
            rate=rate,
            own_workers=workers,
            flip=flip,
            yes=yes,
            without_missing=without_missing,
            catch_up_s=catch_up,
            idle_s=timeout,
        )
        _reindex(wanted)


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """What the command line says. `encoder` are settings, None where none was named."""

    encoder: dict[str, Any] | None
    rollback: bool
    questions: "list[Question]"
    tenant: str
    rate: float
    own_workers: bool
    flip: bool
    yes: bool
    without_missing: bool
    catch_up_s: float
    idle_s: float


def _encoder_given(model: str | None, backend: str | None, file: Path | None) -> dict[str, Any]:
    import tomllib

    given: dict[str, Any] = {}
    if file is not None:
        try:
            given = tomllib.loads(file.read_text())
        except OSError as exc:
            raise typer.BadParameter(f"{file}: {exc.strerror}", param_hint="--encoder-settings") from exc
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise typer.BadParameter(f"{file} is no TOML: {exc}", param_hint="--encoder-settings") from exc
        given = given.get("encoder", {})
        if not isinstance(given, dict) or not given:
            raise typer.BadParameter(f"{file} has no [encoder]", param_hint="--encoder-settings")
    named = {"model": model, "backend": backend}
    return {**given, **{name: value for name, value in named.items() if value is not None}}


def _questions(file: Path | None) -> "list[Question]":
    from headrace.errors import HeadraceError
    from headrace.evaluation import read_judgements

    try:
        return read_judgements(file) if file is not None else []
    except ValueError as exc:
        raise HeadraceError(str(exc)) from exc


# Which generation


def _sides(settings: "Settings", record: "Generations", wanted: _Wanted) -> "tuple[Settings, Settings, Generations]":
    """The settings of the generation that is left and of the one that comes, and the record in which both stand.

    Raises HeadraceError where that isn't what was asked for, and Misconfigured where the new encoder can't be had.
    """
    from headrace import wiring
    from headrace.cli.flipping import display, next_name, registered, target_of
    from headrace.errors import HeadraceError
    from schemas.generations import HALF_DONE

    live = _live(settings, record)
    going = target_of(record)
    encoder = _encoder(settings, wanted.encoder) if wanted.encoder is not None else None
    if going is not None:
        if encoder is not None and encoder.vectors() != record.known[going].encoder:
            raise HeadraceError(
                f"generation {display(going)} is being made, of {_encoder_name(record.known[going].encoder)}: go on "
                f"with `headrace reindex`, or take it away with `headrace reindex --drop {display(going)}`"
            )
        if wanted.rollback and record.phase not in HALF_DONE and going != record.previous:
            raise HeadraceError(
                f"generation {display(going)} is being made: take it away first "
                f"(`headrace reindex --drop {display(going)}`)"
            )
        # After the flip the one that is left is not the one that is live.
        left = record.previous if record.phase in ("flipped", "telling") and record.previous is not None else None
        old = live if left is None else _of(settings, record, left)
        return old, _with(_of(settings, record, going), encoder), record
    if wanted.rollback:
        if record.previous is None:
            raise HeadraceError("there is no generation to go back to")
        return live, _of(settings, record, record.previous), record
    if encoder is None:
        raise typer.BadParameter("which one?", param_hint="--encoder")
    if encoder.vectors() == live.encoder.vectors():
        raise HeadraceError(f"generation {display(record.live)}, which is live, has just these vectors")
    kept = [name for name, info in record.known.items() if info.encoder == encoder.vectors()]
    name = kept[-1] if kept else next_name(record.known, record.live)
    new = _with(settings.of_generation(name, encoder.vectors()), encoder)
    wiring.build_tokenizer(new)
    now = datetime.now(UTC)
    return live, new, registered(record, name, encoder.vectors(), live_encoder=live.encoder.vectors(), now=now)


def _encoder(settings: "Settings", given: dict[str, Any]) -> "EncoderSettings":
    """How it is run is as now, as far as that fits, unless it is given, too. Raises Misconfigured."""
    from pydantic import ValidationError

    from headrace.encoders import encoder_identity
    from headrace.encoders.settings import EncoderSettings
    from headrace.errors import Misconfigured

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


def _with(settings: "Settings", encoder: "EncoderSettings | None") -> "Settings":
    return settings if encoder is None else settings.model_copy(update={"encoder": encoder})


def _live(settings: "Settings", record: "Generations") -> "Settings":
    from headrace.cli.flipping import display
    from headrace.errors import Misconfigured

    if record.live in record.known:
        return _of(settings, record, record.live)
    if settings.generation.name != record.live:
        raise Misconfigured(
            f"generation.name is {settings.generation.name!r}, and generation {display(record.live)} is live: nobody "
            "knows its encoder"
        )
    return settings


def _of(settings: "Settings", record: "Generations", name: str) -> "Settings":
    """Where the settings are this generation's own, they say more than the record."""
    if settings.generation.name == name and settings.encoder.vectors() == record.known[name].encoder:
        return settings
    return settings.of_generation(name, record.known[name].encoder)


def _encoder_name(encoder: dict[str, Any]) -> str:
    context = encoder.get("context", "none")
    return f"{encoder.get('model')} ({encoder.get('backend')}{'' if context == 'none' else f', with {context}'})"


# Making it, and going over to it


def _reindex(wanted: _Wanted) -> None:
    from headrace.config import load_settings
    from topics.generations import changing_generations

    settings = load_settings()
    signal.signal(signal.SIGTERM, _interrupt)
    with changing_generations(settings.kafka) as change:
        old, new, record = _sides(settings, change.record, wanted)
        _carry_out(change, record, old, new, wanted)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _carry_out(change: "Change", record: "Generations", old: "Settings", new: "Settings", wanted: _Wanted) -> None:
    from headrace.cli.flipping import display, flip
    from headrace.cli.reindexing import Reindexing
    from schemas.generations import HALF_DONE

    target = new.generation.name
    run = Reindexing(
        change,
        old,
        new,
        idle_s=wanted.idle_s,
        rate=wanted.rate,
        own_workers=wanted.own_workers,
        say=complain,
    )
    if record != change.record:
        change.write(record)
        complain(f"generation {display(target)} is made, of {_encoder_name(new.encoder.vectors())}")
    with _undoing(run):
        run.start_workers()
        if change.record.phase not in HALF_DONE:
            _make(run, wanted)
            if not wanted.flip or not _agreed(run, wanted):
                return
        flip(change.record, target, run, catch_up_s=wanted.catch_up_s)
    _say_flipped(run)


@contextmanager
def _undoing(run: "Reindexing") -> Iterator[None]:
    """However this ends: before the flip nothing stays held, and the new workers end; after it they go on."""
    from headrace.cli.flipping import display, far
    from headrace.errors import HeadraceError
    from topics.generations import Overtaken

    change, target = run.change, run.new.name
    try:
        yield
    except Overtaken:
        raise  # Whoever has begun goes on with the same workers.
    except (HeadraceError, KeyboardInterrupt, typer.Abort):
        if change.record.live == target:
            complain("the flip is half done: run `headrace reindex` again, which ends it")
            raise
        _leave(run, far(change.record))
        raise
    else:
        if change.record.live != target:
            _leave(run, far(change.record))
            complain(
                f"Generation {display(target)} is there, and generation {display(change.record.live)} goes on. The "
                "same command goes over to it."
            )


def _leave(run: "Reindexing", record: "Generations") -> None:
    from headrace.errors import HeadraceError

    if record != run.change.record:
        try:
            run.change.write(record)
        except HeadraceError as exc:
            complain(
                f"what is held could not be let go ({exc}): until you run `headrace reindex` again, documents wait"
            )
    run.stop_workers()


def _make(run: "Reindexing", wanted: _Wanted) -> None:
    """Until it has everything, and is found to have it."""
    from headrace.cli.flipping import near

    run.fill()
    run.change.write(near(run.change.record, run.new.name))
    _verify(run)
    _look_for_missing(run, accepted=wanted.without_missing)
    if wanted.questions:
        _evaluate(run, wanted)


def _verify(run: "Reindexing") -> None:
    from headrace.cli.flipping import display
    from headrace.cli.reindexing import NotVerified, environment_of
    from headrace.cli.verify import print_differences, summary

    table, report = run.verify()
    complain(f"generation {display(run.new.name)}: {summary(report)}")
    if not report.fine:
        print_differences(report, table, DIFFERENCES_SHOWN)
        raise NotVerified(
            f"generation {display(run.new.name)} is not what Kafka has, and can't be mended from it; all differences "
            f"are listed by\n{environment_of(run.new.settings)} headrace verify"
        )


def _look_for_missing(run: "Reindexing", *, accepted: bool) -> None:
    from headrace.cli.flipping import display
    from headrace.cli.reindexing import NotVerified

    missing = run.missing()
    for key, why in missing[:DIFFERENCES_SHOWN]:
        complain(f"  {key}: {why}")
    if missing and not accepted:
        raise NotVerified(
            f"generation {display(run.new.name)} lacks {len(missing):,} documents that generation "
            f"{display(run.old.name)} has: publish them again, or say --without-missing"
        )


def _evaluate(run: "Reindexing", wanted: _Wanted) -> None:
    """Both generations, asked in this process; one after the other, so that one model is in memory at a time."""
    from headrace.cli.evaluation_tables import print_comparison
    from headrace.evaluation import compare

    before, after = (_report(side.settings, wanted) for side in (run.old, run.new))
    print_comparison(
        out(), compare(after, before), title=f"{before.encoder} → {after.encoder}, {before.questions:,} questions"
    )


def _report(settings: "Settings", wanted: _Wanted) -> "Report":
    from headrace.cli.direct_asking import DirectAsker
    from headrace.cli.evaluating import Interview
    from headrace.cli.steps import steps
    from headrace.encoders import encoder_identity
    from headrace.evaluation import Report, parse_setting

    recipe = encoder_identity(settings.encoder).recipe
    with DirectAsker(settings) as asker, steps(err()) as shown:
        interview = Interview(
            asker=asker,
            tenant=wanted.tenant,
            in_flight=IN_FLIGHT,
            timeout_s=QUESTION_S,
            show=lambda what, answered, of: shown.show(f"asking {recipe}, {what}", answered, of),
        )
        reports = [interview.measure(parse_setting(way), wanted.questions) for way in WAYS]
    return Report(
        name=f"tenant {wanted.tenant}",
        documents=f"tenant {wanted.tenant}",
        encoder=recipe,
        chunking="as published",
        questions=len(wanted.questions),
        settings=reports,
    )


def _agreed(run: "Reindexing", wanted: _Wanted) -> bool:
    from headrace.cli.flipping import display

    old, new = display(run.old.name), display(run.new.name)
    return wanted.yes or typer.confirm(f"Answer questions from generation {new} instead of {old}?", err=True)


def _say_flipped(run: "Reindexing") -> None:
    from headrace.cli.flipping import display
    from headrace.cli.reindexing import settings_lines

    new, old = display(run.new.name), display(run.old.name)
    say = out().print
    say(f"Generation {new} is live. Generation {old} is kept: `headrace reindex --rollback` goes back to it, ")
    say(f"`headrace reindex --drop {old}` takes it away.")
    say("Set for all workers, where their settings are:")
    for line in settings_lines(run.new.settings):
        say(f"  {line}", markup=False, soft_wrap=True)
    if run.own_workers:
        say(
            f"The workers that were started here for generation {new} go on. `headrace up` with these settings takes "
            "over from them, and `headrace reindex --stop-workers` ends them once yours run.",
            soft_wrap=True,
        )


# The rest


def _stop_workers() -> None:
    from headrace.cli.generation_workers import all_of
    from headrace.config import load_settings

    running = [workers for workers in all_of(load_settings().worker.data_dir) if workers.running()]
    for workers in running:
        workers.stop()
        complain(f"stopped the workers of generation {workers.name}")
    if not running:
        complain("there are none")


def _drop(name: str, *, yes: bool) -> None:
    from headrace.cli.dropping import Dropping
    from headrace.cli.flipping import display, without
    from headrace.cli.generation_workers import GenerationWorkers
    from headrace.cli.steps import steps
    from headrace.config import load_settings
    from headrace.errors import HeadraceError
    from topics.generations import changing_generations

    settings = load_settings()
    with changing_generations(settings.kafka) as change:
        record = without(change.record, name)
        GenerationWorkers(settings.worker.data_dir, name).stop()
        dropping = Dropping(settings.of_generation(name))
        remains = dropping.look()
        if remains.nothing and name not in change.record.known:
            raise HeadraceError(f"there is no generation {display(name)}")
        complain(f"generation {display(name)} has {remains}")
        if not yes:
            typer.confirm("Take all of it away?", abort=True, err=True)
        with steps(err()) as shown:
            if record != change.record:
                change.write(record)
                # Query workers let go of it first: a search in what is being taken away would be half of an answer.
                change.wait_until_known(
                    lambda left_s: shown.show("until every worker knows", 0, count=f"{left_s:.0f} s")
                )
            dropping.drop(remains, shown.show)
    out().print(f"generation {display(name)} is gone")


def _status(*, json: bool) -> None:
    from headrace.cli.generation_status import generation_status
    from headrace.config import load_settings

    found = generation_status(load_settings())
    if json:
        print_json(found)
        return
    from rich.table import Table
    from rich.text import Text

    console = out()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("generation", "state", "encoder", "since", "waiting", "workers"):
        table.add_column(heading, justify="right" if heading == "waiting" else "left")
    for one in found.generations:
        waiting = "" if one.waiting is None else f"{one.waiting:,}"
        since = "" if one.since is None else one.since.astimezone().strftime("%Y-%m-%d %H:%M")
        missing = [stage for stage, count in one.workers.items() if not count]
        workers = f"{sum(one.workers.values()):,}" + (f", none for {', '.join(missing)}" if missing else "")
        workers = workers if len(missing) < len(one.workers) else "none"
        cells = (one.name, one.state, _encoder_name(one.encoder), since, waiting, workers)
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
    if found.phase != "done":
        complain(f"on its way ({found.phase}): `headrace reindex` goes on with it")
