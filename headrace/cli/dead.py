"""`headrace dead`: list, show, replay, park, drop and reopen."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.console import complain, err, out, print_json
from headrace.cli.exits import Exit
from headrace.cli.options import Json, MaybeTenant

if TYPE_CHECKING:
    from confluent_kafka import Message

    from headrace.cli.deadletters import Column, DeadLetter, Group, Selection, State
    from headrace.cli.settling import Judge, Plan, Tally
    from schemas import Action, Settlement
    from topics.settings import KafkaSettings

PREVIEW_CHARACTERS = 2000
PRETTY_BYTES = 256 * 1024
"""Larger payloads are shown as they are, not indented."""
LINE_EVERY_S = 5.0

app = typer.Typer(
    no_args_is_help=True,
    help="What could not be processed (the topic documents.dead): look at it, and send it again, park it or drop it.",
)


class AnyState(StrEnum):
    OPEN = "open"
    REPLAYED = "replayed"
    PARKED = "parked"
    DROPPED = "dropped"
    ALL = "all"


class Undecided(StrEnum):
    OPEN = "open"
    PARKED = "parked"


class Decided(StrEnum):
    PARKED = "parked"
    DROPPED = "dropped"
    REPLAYED = "replayed"


class GroupBy(StrEnum):
    STAGE = "stage"
    CODE = "code"
    TENANT = "tenant"
    HOUR = "hour"


_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def moment(text: str) -> datetime:
    """RFC 3339, of this machine's time zone where it names none; or so long ago, e.g. 90m, 6h, 2d."""
    number, unit = text[:-1], text[-1:]
    try:
        if unit in _UNITS and number.isdecimal():
            return datetime.now(UTC) - timedelta(**{_UNITS[unit]: int(number)})
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as exc:
        raise typer.BadParameter("must be a date, a time such as 2026-05-01T06:00Z, or 90m, 6h or 2d ago") from exc


Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="As `dead list` shows them.")]
Stage = Annotated[str | None, typer.Option("--stage", help="Only what this stage refused.")]
Code = Annotated[str | None, typer.Option("--code", help="Only this reason.")]
Key = Annotated[str | None, typer.Option("--key", help="Only this key, e.g. default/pump-7.")]
Since = Annotated[
    datetime | None,
    typer.Option("--since", metavar="TIME", parser=moment, help="Only records from then on: a time, or 6h or 2d ago."),
]
Until = Annotated[
    datetime | None,
    typer.Option("--until", metavar="TIME", parser=moment, help="Only records from before then."),
]
All = Annotated[bool, typer.Option("--all", help="Every letter of that state.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Rate = Annotated[float | None, typer.Option("--rate", min=0.01, help="So many letters a second at most.")]
Reason = Annotated[str | None, typer.Option("--reason", help="Why; `dead show` tells it.")]


@app.command("list")
def list_(
    stage: Stage = None,
    code: Code = None,
    tenant: MaybeTenant = None,
    key: Key = None,
    since: Since = None,
    until: Until = None,
    state: Annotated[AnyState, typer.Option("--state", help="Only letters of this state.")] = AnyState.OPEN,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="So many at most, the newest.")] = 50,
    group_by: Annotated[
        list[GroupBy] | None,
        typer.Option("--group-by", "-g", help="Count all of them by this instead; repeatable."),
    ] = None,
    json: Json = False,
) -> None:
    """The newest dead letters, or how many there are of each kind. Times are those of the original records."""
    from headrace.cli.deadletters import grouped, newest, selected
    from headrace.config import load_settings

    selection = _selection(None, state.value, stage, code, tenant, key, since, until)
    kafka = load_settings().kafka
    if group_by:
        columns: list[Column] = [column.value for column in dict.fromkeys(group_by)]
        with _progress("looking") as looked_at:
            letters = (letter for letter, _ in selected(kafka, selection, lambda _: looked_at(1)))
            groups = grouped(letters, columns)
        if json:
            print_json(groups)
        else:
            _print_groups(groups, columns)
        return
    found, whole = newest(kafka, selection, limit)
    if json:
        print_json(found)
    elif not found:
        out().print("No dead letters." if state == AnyState.ALL else f"No {state.value} dead letters.")
    else:
        _print_letters(found)
        err().print("`headrace dead show ID` shows one whole, --group-by code counts all.", style="dim")
    if not whole:
        complain("there are more letters than half a minute is enough to look at: --group-by looks at all of them")


@app.command()
def show(
    position: Annotated[str, typer.Argument(metavar="ID", help="partition:offset, as `dead list` shows it.")],
    raw: Annotated[bool, typer.Option("--raw", help="Write the payload's bytes to stdout, nothing else.")] = False,
    json: Json = False,
) -> None:
    """One dead letter: its headers, its key, what was decided about it, and its payload."""
    from headrace.cli.deadletters import history, read_dead_letter
    from headrace.cli.kafka import raw_value, read_one
    from headrace.config import load_settings

    [place] = _places([position])
    kafka = load_settings().kafka
    message = read_one(kafka.confluent(), kafka.names.topic("documents.dead"), *place)
    if message is None:
        complain(f"there is no dead letter {position}")
        raise typer.Exit(Exit.FAILED)
    if raw:
        sys.stdout.buffer.write(raw_value(message) or b"")
        sys.stdout.buffer.flush()
        return
    decisions = history(kafka, place)
    letter = read_dead_letter(message, {place: decisions[-1]} if decisions else {})
    if json:
        print_json(_whole(letter, message, decisions))
    else:
        _print_letter(letter, message, decisions)


@app.command()
def replay(
    ids: Ids = None,
    stage: Stage = None,
    code: Code = None,
    tenant: MaybeTenant = None,
    key: Key = None,
    since: Since = None,
    until: Until = None,
    state: Annotated[
        Undecided, typer.Option("--state", help="`parked` sends again what was parked, whatever --max-replays says.")
    ] = Undecided.OPEN,
    everything: All = False,
    max_replays: Annotated[
        int, typer.Option("--max-replays", min=1, help="Park what was sent again so often and died again.")
    ] = 1,
    own_token: Annotated[
        bool,
        typer.Option("--own-token", help="Send documents under auth.token, not under the token that they came with."),
    ] = False,
    rate: Rate = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Send letters again, each to the topic it came from, as they came: for after what broke them is mended.

    A record keeps its timestamp, so a version that came since wins. Whenever this is stopped or killed, each letter is
    either still open or was sent once; run it again for the rest. Only one run settles letters: the next ends it.
    """
    from headrace.auth import Bearer
    from headrace.cli.settling import replayed
    from headrace.config import load_settings

    selection = _selection(ids, state.value, stage, code, tenant, key, since, until, everything=everything)
    settings = load_settings()
    kafka, bearer = settings.kafka, Bearer(settings.auth) if own_token else None
    if bearer is not None and not bearer.headers():
        raise typer.BadParameter("there is no token: set auth.token or auth.token_file", param_hint="--own-token")
    judge = replayed(
        kafka.names,
        max_replays=max_replays if state == Undecided.OPEN else None,
        now_ms=time.time_ns() // 1_000_000,
        bearer=bearer,
    )
    plan = _plan(kafka, selection, judge)
    if dry_run:
        _print_plan(plan, json=json)
        return
    if len(plan.places) > 1 and sys.stdin.isatty() and not yes:
        _print_plan(plan, json=False)
        typer.confirm(f"Send {len(plan.places):,} letters again?", abort=True, err=True)
    _settle(kafka, plan, selection, judge, rate=rate, json=json)


@app.command()
def park(
    ids: Ids = None,
    stage: Stage = None,
    code: Code = None,
    tenant: MaybeTenant = None,
    key: Key = None,
    since: Since = None,
    until: Until = None,
    everything: All = False,
    reason: Reason = None,
    json: Json = False,
) -> None:
    """Put open letters aside: they are listed with --state parked only, and can be sent again later."""
    selection = _selection(ids, "open", stage, code, tenant, key, since, until, everything=everything)
    _decide(selection, "parked", reason, json=json)


@app.command()
def drop(
    ids: Ids = None,
    stage: Stage = None,
    code: Code = None,
    tenant: MaybeTenant = None,
    key: Key = None,
    since: Since = None,
    until: Until = None,
    state: Annotated[Undecided, typer.Option("--state", help="Only letters of this state.")] = Undecided.OPEN,
    everything: All = False,
    reason: Reason = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Settle letters that nobody wants any more; asks first. Their bytes stay until retention takes them."""
    if not yes and not sys.stdin.isatty():
        raise typer.BadParameter("there is no terminal to ask on: say --yes", param_hint="--yes")
    selection = _selection(ids, state.value, stage, code, tenant, key, since, until, everything=everything)
    _decide(selection, "dropped", reason, json=json, ask=not yes)


@app.command()
def reopen(
    ids: Ids = None,
    stage: Stage = None,
    code: Code = None,
    tenant: MaybeTenant = None,
    key: Key = None,
    since: Since = None,
    until: Until = None,
    state: Annotated[Decided, typer.Option("--state", help="Only letters of this state.")] = Decided.PARKED,
    everything: All = False,
    reason: Reason = None,
    json: Json = False,
) -> None:
    """Make parked letters (or, with --state, dropped or replayed ones) open again."""
    selection = _selection(ids, state.value, stage, code, tenant, key, since, until, everything=everything)
    _decide(selection, "reopened", reason, json=json)


# Which letters


def _selection(
    ids: list[str] | None,
    state: str,
    stage: str | None,
    code: str | None,
    tenant: str | None,
    key: str | None,
    since: datetime | None,
    until: datetime | None,
    *,
    everything: bool | None = None,
) -> "Selection":
    """With `everything` given, a selection of all letters has to be meant: it is for commands that change something."""
    from headrace.cli.deadletters import STATES, Selection

    states: list[State] = [one for one in STATES if state in (one, "all")]
    filters = Selection(
        stage=stage, code=code, tenant=tenant, key=key, since=since, until=until, states=frozenset(states)
    )
    if everything is not None and [bool(ids), not filters.everything, everything].count(True) != 1:
        raise typer.BadParameter("say which letters: IDs, or filters, or --all", param_hint="ID")
    if not ids:
        return filters
    return Selection(states=filters.states, places=tuple(dict.fromkeys(_places(ids))))


def _places(ids: list[str]) -> list[tuple[int, int]]:
    from headrace.cli.deadletters import parse_place

    try:
        return [parse_place(name) for name in ids]
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="ID") from exc


# Deciding


def _decide(selection: "Selection", action: "Action", reason: str | None, *, json: bool, ask: bool = False) -> None:
    from headrace.cli.settling import decided
    from headrace.config import load_settings

    kafka = load_settings().kafka
    judge = decided(action, reason)
    plan = _plan(kafka, selection, judge)
    if ask and plan.places:
        _print_plan(plan, json=False)
        typer.confirm(f"Drop {len(plan.places):,} letters?", abort=True, err=True)
    _settle(kafka, plan, selection, judge, rate=None, json=json)


def _plan(kafka: "KafkaSettings", selection: "Selection", judge: "Judge") -> "Plan":
    from headrace.cli.settling import plan

    with _progress("looking") as looked_at:
        return plan(kafka, selection, judge, lambda: looked_at(1))


def _settle(
    kafka: "KafkaSettings",
    plan: "Plan",
    selection: "Selection",
    judge: "Judge",
    *,
    rate: float | None,
    json: bool,
) -> None:
    from headrace.cli.settling import settle

    tally = plan.tally
    if plan.places:
        with _progress("settling", len(plan.places)) as settled_some:
            tally = settle(kafka, plan, selection, judge, rate=rate, settled_some=settled_some)
        # What was refused was so when the run was planned, and is not looked at again.
        tally.refused = plan.tally.refused
    if json:
        print_json(tally)
    else:
        _print_tally(tally)
    for problem in plan.problems:
        complain(problem)
    if plan.problems or tally.refused:
        raise typer.Exit(Exit.FAILED)


@contextmanager
def _progress(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line now and then elsewhere; call what it gives with the number of letters done."""
    console = err()
    if not console.is_terminal:
        yield _lines(what, total)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def _lines(what: str, total: int | None) -> Callable[[int], None]:
    done, shown_at = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, shown_at
        done += count
        if time.monotonic() - shown_at >= LINE_EVERY_S:
            complain(f"{what}: {done:,} letters" + (f" of {total:,}" if total is not None else ""))
            shown_at = time.monotonic()

    return advance


# Showing


def _local(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _print_letters(letters: "list[DeadLetter]") -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("id", "at", "state", "key", "stage", "code", "bytes"):
        table.add_column(heading, no_wrap=heading in ("id", "at"), justify="right" if heading == "bytes" else "left")
    table.add_column("why", ratio=1)
    for letter in letters:
        key, state = "(none)" if letter.key is None else letter.key, letter.state or ""
        cells = (
            letter.id,
            _local(letter.at),
            state,
            key,
            letter.stage,
            letter.code,
            f"{letter.size:,}",
            letter.message,
        )
        table.add_row(*(Text(cell) for cell in cells))
    out().print(table)


def _print_groups(groups: "list[Group]", columns: "list[Column]") -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    table.add_column("letters", justify="right")
    for heading in ("first", "last"):
        table.add_column(heading, no_wrap=True)
    for group in groups:
        cells = (*group.by.values(), f"{group.letters:,}", _local(group.first), _local(group.last))
        table.add_row(*(Text(cell) for cell in cells))
    out().print(table)


def _print_letter(letter: "DeadLetter", message: "Message", decisions: "list[Settlement]") -> None:
    from rich.table import Table
    from rich.text import Text

    from headrace.cli.deadletters import readable_headers
    from headrace.cli.kafka import raw_value

    table = Table(box=None, pad_edge=False, show_header=False)
    rows = [
        ("key", "(none)" if letter.key is None else letter.key),
        ("at", _local(letter.at)),
        ("state", str(letter.state)),
        ("replays before", str(letter.replays)),
        *((decision.action, _said(decision)) for decision in decisions),
        *readable_headers(message),
    ]
    for name, shown in rows:
        table.add_row(Text(name, style="bold"), Text(shown))
    console = out()
    console.print(table)
    console.print()
    value = raw_value(message)
    if value is None:
        console.print("No value.")
        return
    text = pretty(value)
    console.print(Text(text[:PREVIEW_CHARACTERS]))
    if len(text) > PREVIEW_CHARACTERS:
        err().print(f"… {len(value):,} bytes in all; --raw writes them.", style="dim")


def _said(decision: "Settlement") -> str:
    return f"{_local(decision.at)} by run {decision.run}" + (f": {decision.reason}" if decision.reason else "")


def pretty(value: bytes) -> str:
    """The payload indented where it is JSON; else as it came. May be cut off, past what a preview shows."""
    import msgspec

    if len(value) <= PRETTY_BYTES:
        try:
            return msgspec.json.format(value, indent=2).decode()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
    return value[: 4 * PREVIEW_CHARACTERS + 4].decode(errors="backslashreplace")


def _whole(letter: "DeadLetter", message: "Message", decisions: "list[Settlement]") -> dict[str, Any]:
    import base64

    from headrace.cli.deadletters import readable_headers
    from headrace.cli.kafka import raw_key, raw_value

    def exact(value: bytes | None) -> str | None:
        return None if value is None else base64.b64encode(value).decode()

    return {
        "id": letter.id,
        "timestamp": message.timestamp()[1],
        "state": letter.state,
        "replays": letter.replays,
        "history": decisions,
        "key": letter.key,
        "key_base64": exact(raw_key(message)),
        "headers": readable_headers(message),
        "value_base64": exact(raw_value(message)),
    }


def _print_plan(plan: "Plan", *, json: bool) -> None:
    if json:
        print_json({"would": plan.tally, "first": plan.samples, "problems": plan.problems})
        return
    if plan.samples:
        _print_letters(plan.samples)
        if len(plan.places) > len(plan.samples):
            out().print(f"… and {len(plan.places) - len(plan.samples):,} more")
        out().print()
    _print_tally(plan.tally)
    for problem in plan.problems:
        complain(problem)


def _print_tally(tally: "Tally") -> None:
    """What was done under its run's name, or without one what would be."""
    would = "" if tally.run else "would be "
    lines = [f"{count:,} {would}{action}" for action, count in tally.settled.items()]
    lines += [f"  {count:,} to {topic}" for topic, count in tally.sent.items()]
    lines += [f"{tally.passed_over:,} passed over: gone, or settled meanwhile"] if tally.passed_over else []
    for line in lines or ["nothing to do"]:
        out().print(line, markup=False, soft_wrap=True)
    for why, count in tally.refused.items():
        complain(f"{count:,} left as they are: {why}")
