"""`headrace reindex`: another encoder, beside the one in use, and then instead of it."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.console import complain, err, out, print_json
from headrace.cli.options import Json, check_tenant

if TYPE_CHECKING:
    from headrace.cli.generation_workers import GenerationWorkers
    from headrace.cli.reindexing import Reindexing
    from headrace.config import Settings
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


# Making it, and going over to it


def _reindex(wanted: _Wanted) -> None:
    from headrace.cli.choosing import sides
    from headrace.config import load_settings
    from topics.generations import changing_generations, read_generations

    settings = load_settings()
    _take_signals()
    # What can't be done should not end the run that is at work.
    sides(settings, read_generations(settings.kafka), wanted.encoder, rollback=wanted.rollback)
    with changing_generations(settings.kafka) as change:
        _carry_out(change, *sides(settings, change.record, wanted.encoder, rollback=wanted.rollback), wanted)


def _take_signals() -> None:
    """To be asked to end, and to lose the terminal, is as Ctrl-C, once; unless `nohup` says otherwise."""

    def interrupt(*_: object) -> None:
        for number in ended_by:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    ended_by = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is not signal.SIG_IGN]
    for number in ended_by:
        signal.signal(number, interrupt)


def _carry_out(change: "Change", old: "Settings", new: "Settings", record: "Generations", wanted: _Wanted) -> None:
    from headrace.cli.choosing import encoder_name
    from headrace.cli.flipping import display, flip, goes_back
    from headrace.cli.generation_workers import GenerationWorkers
    from headrace.cli.reindexing import Reindexing
    from headrace.errors import HeadraceError
    from schemas.generations import HALF_DONE

    target = new.generation.name
    workers = GenerationWorkers(new.worker.data_dir, target) if wanted.own_workers else None
    against_it = not wanted.flip or (wanted.rollback and not goes_back(record))
    begun = record.phase
    with _undoing(change, target, workers):
        if begun == "closing" and against_it:
            return
        run = Reindexing(change, old, new, idle_s=wanted.idle_s, rate=wanted.rate, workers=workers, say=complain)
        if record != change.record:
            before = target in change.record.known
            change.write(record)
            how = "is to catch up" if before else "is made"
            complain(f"generation {display(target)} {how}, of {encoder_name(new.encoder.vectors())}")
        run.start_workers()
        if begun not in HALF_DONE:
            _make(run, wanted)
            if not wanted.flip or not _agreed(run, wanted):
                return
        flip(change.record, target, run, catch_up_s=wanted.catch_up_s)
    _say_flipped(run)
    if begun in HALF_DONE and against_it:
        raise HeadraceError(
            "questions had gone over already, so that was ended; `headrace reindex --rollback` goes back"
        )


@contextmanager
def _undoing(change: "Change", target: str, workers: "GenerationWorkers | None") -> Iterator[None]:
    """However this ends: before the flip nothing stays held, and the new workers end; after it they go on."""
    from headrace.cli.flipping import display, target_of
    from topics.generations import Overtaken

    try:
        yield
    except Overtaken:
        raise  # Whoever has begun goes on with the same workers.
    except BaseException:
        _undo(change, target, workers)
        raise
    if change.record.live != target:
        _undo(change, target, workers)
        again = "headrace reindex" if target_of(change.record) == target else "headrace reindex --rollback"
        complain(
            f"Generation {display(target)} is there, and generation {display(change.record.live)} goes on. "
            f"`{again}` goes over to it."
        )


def _undo(change: "Change", target: str, workers: "GenerationWorkers | None") -> None:
    from headrace.cli.flipping import far
    from headrace.errors import Transient
    from schemas.generations import HALF_DONE

    try:
        record = change.settle()
        if record.live != target and far(record) != record:
            change.write(far(record))
    except Transient as exc:
        complain(f"what is held could not be let go ({exc}): documents may wait until you run `headrace reindex` again")
        return
    if record.live != target:
        if workers is not None:
            workers.stop()
    elif record.phase in HALF_DONE:
        complain("the flip is half done: run `headrace reindex` again, which ends it")


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
    from headrace.cli.generation_settings import environment_of
    from headrace.cli.reindexing import NotVerified
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
    for key, _, why in missing[:DIFFERENCES_SHOWN]:
        complain(f"  {key}: {why}")
    if deleted := sum(one.deleted for one in missing):
        raise NotVerified(
            f"generation {display(run.new.name)} did not take the deletions of {deleted:,} documents, which would be "
            "back: delete them, and run this again"
        )
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
    from headrace.cli.generation_settings import settings_lines

    new, old = display(run.new.name), display(run.old.name)
    say = out().print
    say(f"Generation {new} is live. Generation {old} is kept: `headrace reindex --rollback` goes back to it, ")
    say(f"`headrace reindex --drop {old}` takes it away.")
    say("Set for all workers, where their settings are:")
    for line in settings_lines(run.new.settings):
        say(f"  {line}", markup=False, soft_wrap=True)
    if run.workers is not None:
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
    from topics.generations import changing_generations, read_generations

    settings = load_settings()
    dropping, workers = Dropping(settings.of_generation(name)), GenerationWorkers(settings.worker.data_dir, name)
    # What can't be done should not end the run that is at work.
    record = read_generations(settings.kafka)
    without(record, name)
    remains = dropping.look()
    if remains.nothing and name not in record.known:
        raise HeadraceError(f"there is no generation {display(name)}")
    with steps(err()) as shown:
        dropping.wait_until_nobody_works(shown.seconds("until no worker is left"), but=workers.stages())
    complain(f"generation {display(name)} has {remains}")
    if not yes:
        typer.confirm("Take all of it away?", abort=True, err=True)
    with changing_generations(settings.kafka) as change, steps(err()) as shown:
        # Query workers let go of it first: a search in what is being taken away would be half of an answer.
        change.write(without(change.record, name))
        change.wait_until_known(shown.seconds("until every worker knows"))
        workers.stop()
        dropping.wait_until_nobody_works(shown.seconds("until no worker is left"))
        remains = dropping.look()
        # Another run that has begun meanwhile goes by what it has found.
        change.write(change.record)
        dropping.drop(remains, shown.show)
    out().print(f"generation {display(name)} is gone")


def _status(*, json: bool) -> None:
    from headrace.cli.choosing import encoder_name
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
        cells = (one.name, one.state, encoder_name(one.encoder), since, waiting, workers)
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
    if found.phase != "done":
        complain(f"on its way ({found.phase}): `headrace reindex` goes on with it")
