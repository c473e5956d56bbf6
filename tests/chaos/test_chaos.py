"""Documents flow while workers and servers are killed, stopped and frozen: nothing is lost, stale or mixed, nobody ever
sees it so, and all of it goes on by itself.
"""

import sys
import time
from collections import Counter
from statistics import median

import pytest
from rich.console import Console
from rich.table import Table

from tests.chaos.audit import Findings, audit, dead_letter_faults, work_done_twice
from tests.chaos.outages import Outages
from tests.chaos.reader import SETTLED, Reader, faults_of
from tests.chaos.run import Publisher, Run
from tests.chaos.servers import OwnServers
from tests.chaos.workers import Supervisor
from tests.chaos.workload import LONG, POINTS, SHORT, Expectation, draw
from tests.conftest import Deployment

VERIFIED_AT_LEAST = 50
"""Answers with hits, below which the run has shown nothing."""


def test_nothing_is_lost_stale_or_mixed_whatever_is_killed(
    own_servers: OwnServers, own_deployment: Deployment, seed: int, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    begun, plan = time.monotonic(), draw(seed, LONG if form == "long" else SHORT)
    say(
        capsys,
        f"\nHEADRACE_CHAOS_SEED={seed} ({form}): {len(plan.sends)} records, {len(plan.blows)} blows,"
        f" {len(plan.faults)} faults, {len(plan.outages)} outages",
    )
    settings, expectation = own_deployment.settings, Expectation()
    supervisor = Supervisor(own_deployment, plan.scale)
    reader = Reader(settings.kafka.bootstrap_servers, settings.kafka.topic_prefix, seed)
    problems: list[str] = []
    run: Run | None = None
    try:
        supervisor.start_all()
        ready = time.monotonic()
        reader.start()
        outages = Outages(own_servers, f"{settings.stores.prefix}*", plan.outages, supervisor.complete, lambda _: None)
        run = Run(plan, own_deployment, supervisor, Publisher(own_deployment, expectation), outages)
        outages.say = run.say
        outages.start()
        run.carry_out()
        last_sent = time.monotonic()
        reader.stop_asking()
        problems += run.publisher.failures
        problems += run.drain(reader)
        drained_at = time.monotonic()
        problems += unverified(own_deployment)
        codes = supervisor.stop()
        reader.stop()
        problems += [f"{name} ended with {code} when told to stop" for name, code in codes.items() if code != 0]
        problems += [f"{type(part).__name__} broke: {part.broken!r}" for part in (reader, outages) if part.broken]
        findings = audit(settings, expectation)
        faults = [
            f"{fault} (asked at {asked.sent_at - run.started:.1f}, answered at {asked.answered_at - run.started:.1f})"
            for asked in reader.asked.values()
            for fault in faults_of(asked, expectation)
        ]
        problems += [*findings.lines(), *faults, *untold(reader, expectation), *unstruck(run)]
        problems += dead_letter_faults(settings, [send for send in plan.sends if send.mark is not None])
        verified = sum(bool(asked.answer and asked.answer["hits"]) for asked in reader.asked.values())
        if verified < VERIFIED_AT_LEAST:
            problems.append(f"only {verified} answers had hits")
        say(capsys, summary(run, reader, expectation, findings, faults))
        say(
            capsys,
            f"ready after {ready - begun:.0f} s, sent and struck for {last_sent - ready:.0f} s, drained in"
            f" {drained_at - last_sent:.0f} s, {time.monotonic() - begun:.0f} s in all\n",
        )
    except AssertionError as exc:
        problems.append(str(exc))
    finally:
        reader.stop()
        if run is not None:
            run.outages.stop()
        supervisor.wake(asleep_s=0)
    assert not problems, post_mortem(seed, form, problems, run, supervisor)


def say(capsys: pytest.CaptureFixture[str], line: str) -> None:
    """On the terminal, also when the test passes."""
    with capsys.disabled():
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def untold(reader: Reader, expectation: Expectation) -> list[str]:
    """Versions whose fate no event told, and events of versions that nobody sent."""
    statuses, faults = reader.statuses(), []
    sent = {(key, version) for key in expectation.keys for version in expectation.versions(key)}
    for key, version in sorted(sent):
        told = statuses.get((key, version), set()) - {"failed"}
        wanted = {*SETTLED, "unchanged"} if version == expectation.winner(key).version else told
        if not told & wanted:
            faults.append(f"untold: what became of {key} {version} (events: {sorted(told)})")
    for (key, version), told in statuses.items():
        if (key, version) not in sent and told != {"failed"}:
            faults.append(f"events {sorted(told)} of {key} {version}, which nobody sent")
    return faults


def unverified(deployment: Deployment) -> list[str]:
    """What `headrace verify` finds."""
    verified = deployment.run("verify", timeout=600)
    return (
        [] if verified.returncode == 0 else [f"headrace verify: {verified.stdout.decode()}{verified.stderr.decode()}"]
    )


def unstruck(run: Run) -> list[str]:
    """Narrow places at which no worker died: the run hasn't shown what it is for."""
    died = {fault.point for fault in run.supervisor.struck if fault.action == "SIGKILL"}
    return [f"nobody died at {point}" for points in POINTS.values() for point in points if point not in died]


def summary(run: Run, reader: Reader, expectation: Expectation, findings: Findings, faults: list[str]) -> str:
    console = Console(width=110, file=None, color_system=None)
    with console.capture() as captured:
        console.print(_harm(run, reader))
        console.print(_outcome(run, reader, expectation, findings, faults))
    return captured.get()


def _harm(run: Run, reader: Reader) -> Table:
    """Every kind of harm: how often, and how long until the struck worker was ready, or the next version went live."""
    table = Table("harm", "times", "recovered after, s (least / median / most)", box=None, pad_edge=False)
    times: dict[str, list[float]] = {}
    counts: Counter[str] = Counter()
    for end in run.supervisor.ends:
        counts[
            f"{end.blow} ({end.worker.rpartition('-')[0]})" if end.blow else f"{end.worker} by itself ({end.code})"
        ] += 1
    for (stage, blow), seconds in run.supervisor.recoveries.items():
        times[f"{blow} ({stage})"] = seconds
    for fault in run.supervisor.struck:
        if fault.action == "SIGSTOP":
            counts[f"SIGSTOP at {fault.point}"] += 1
    for blow in run.plan.blows:
        if blow.action == "SIGSTOP":
            counts[f"SIGSTOP ({blow.worker.rpartition('-')[0]})"] += 1
    for name, _, seconds_after in run.recoveries(reader):
        counts[name] += 1
        times.setdefault(name, [])
        if seconds_after is not None:
            times[name].append(seconds_after)
    for name in sorted(counts):
        of = sorted(times.get(name, ()))
        table.add_row(name, str(counts[name]), f"{of[0]:.1f} / {median(of):.1f} / {of[-1]:.1f}" if of else "")
    return table


def _outcome(run: Run, reader: Reader, expectation: Expectation, findings: Findings, faults: list[str]) -> Table:
    kinds = Counter(send.kind for send in run.plan.sends)
    answers = [asked.answer for asked in reader.asked.values() if asked.answer is not None]
    statuses = Counter(status for told in reader.statuses().values() for status in told)
    table = Table(box=None, pad_edge=False, show_header=False)
    again = sum(asked.replies - 1 for asked in reader.asked.values() if asked.replies)
    rows = {
        "documents": len(expectation.keys),
        "versions": sum(len(expectation.versions(key)) for key in expectation.keys),
        "sent": dict(kinds),
        **{name: len(sentences) for name, sentences in vars(findings).items()},
        "answers": len(answers),
        "  with hits": sum(bool(answer["hits"]) for answer in answers),
        "  with an error": dict(Counter(answer["error"]["code"] for answer in answers if answer["error"])),
        "  without": dict(Counter(part for answer in answers for part in answer["degraded"])),
        "  given again": again,
        "  faulty": len(faults),
        "events": f"{len(reader.events)} for {dict(statuses)}",
        "messages (said again)": work_done_twice(run.deployment.settings),
        "not carried out": run.left_out or "nothing",
    }
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


def post_mortem(seed: int, form: str, problems: list[str], run: Run | None, supervisor: Supervisor) -> str:
    shown = problems[:40] + ([f"... and {len(problems) - 40} more"] if len(problems) > 40 else [])
    schedule = run.log if run is not None else []
    ends = [f"{end.worker} ended with {end.code} ({end.blow or 'by itself'})" for end in supervisor.ends]
    return "\n".join(
        (
            f"HEADRACE_CHAOS_SEED={seed} HEADRACE_CHAOS_FORM={form} gives this run again",
            *shown,
            "--- the schedule",
            *schedule,
            "--- the ends",
            *ends,
            supervisor.log_tails(),
        )
    )
