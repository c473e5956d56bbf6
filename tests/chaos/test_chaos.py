"""Workers are killed, stopped and put to sleep while documents flow: nothing is lost, stale or mixed, and nobody ever sees it so."""

import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest
from confluent_kafka import KafkaError, Message, Producer

from headrace.stores.manifests import OpenSearchManifestStore
from schemas import Key
from tests.chaos.audit import Findings, audit, dead_letter_faults, lags, work_done_twice
from tests.chaos.reader import SETTLED, Reader, faults_of
from tests.chaos.workers import Supervisor
from tests.chaos.workload import SENDING_S, SLEEPS_S, Blow, Expectation, Plan, Send, Sent, draw, flip_version
from tests.conftest import Deployment

OVERRUN_S = 60.0
"""For blows that had to wait for their worker: loading the encoder takes 15 s of a core, and a busy machine has few.

What found nobody ready until then is left out, and the log says so: the run is judged by what it was through."""
DRAIN_WITHIN_S = 240.0
FLIP_POLL_S = 0.003
"""A sweep takes longer."""
VERIFIED_AT_LEAST = 50
"""Answers with hits, below which the run has shown nothing."""


@dataclass
class Publisher:
    """Sends the plan's records, with their timestamps counted from the start, and notes what the broker confirmed."""

    deployment: Deployment
    expectation: Expectation
    started_ms: int = field(default_factory=lambda: int(time.time() * 1000))
    failures: list[str] = field(default_factory=list)
    producer: Producer = field(init=False)

    def __post_init__(self) -> None:
        self.producer = Producer({"bootstrap.servers": self.deployment.settings.kafka.bootstrap_servers})

    def send(self, send: Send) -> None:
        handed_over, timestamp = time.monotonic(), self.started_ms + send.timestamp

        def confirmed(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self.failures.append(f"the broker did not take {send.key}: {error}")
            elif send.kind != "poison":
                version = timestamp if send.version is None else send.version
                self.expectation.note(
                    Sent(
                        key=send.key,
                        version=version,
                        timestamp=timestamp,
                        offset=message.offset(),
                        text=send.text,
                        at=handed_over,
                    )
                )

        self.producer.produce(
            self.deployment.topic(send.topic),
            send.value,
            send.key,
            timestamp=timestamp,
            headers=[("mark", send.mark)] if send.mark else [],
            on_delivery=confirmed,
        )
        self.producer.poll(0)


@dataclass
class Run:
    """One plan carried out. Times in the log are seconds after the start."""

    plan: Plan
    deployment: Deployment
    supervisor: Supervisor
    publisher: Publisher
    manifests: OpenSearchManifestStore
    started: float = field(default_factory=time.monotonic)
    log: list[str] = field(default_factory=list)
    _flips: dict[int, int] = field(default_factory=dict)
    """Of each flip that is under way, the version that is waited for."""

    def carry_out(self) -> None:
        sends, blows = list(self.plan.sends), list(self.plan.blows)
        while sends or blows or self._flips or any(w.stopped_at for w in self.supervisor.workers.values()):
            now = time.monotonic() - self.started
            if now > SENDING_S + OVERRUN_S and (blows or self._flips):
                self.log.append(
                    f"{now:6.2f} given up: {blows}, flips {self._flips} (their workers were not ready in time)"
                )
                blows, self._flips = [], {}
            while sends and sends[0].at <= now:
                self.publisher.send(sends.pop(0))
            for blow in [blow for blow in blows if blow.at <= now]:
                if self._can_take(blow):
                    blows.remove(blow)
                    self._strike(blow, now)
            self.supervisor.wake(asleep_s=SLEEPS_S)
            self.supervisor.bring_back()
            self._kill_who_flipped(now)
            time.sleep(FLIP_POLL_S if self._flips else 0.01)
        self.supervisor.wake(asleep_s=0)
        assert self.publisher.producer.flush(30) == 0

    def _can_take(self, blow: Blow) -> bool:
        if blow.action == "flip":
            # Each stage is there, so the version goes live within moments.
            return not self._flips and self.supervisor.complete() and self._live(blow.number) == 1
        return self.supervisor.workers[blow.worker].ready

    def _strike(self, blow: Blow, now: float) -> None:
        self.log.append(f"{now:6.2f} {blow.action} {blow.worker or blow.number} (planned for {blow.at:.2f})")
        if blow.action == "flip":
            self._flips[blow.number] = 2
            self.publisher.send(flip_version(blow.number, 1, at=now))
        else:
            self.supervisor.strike(blow.worker, blow.action)

    def _kill_who_flipped(self, now: float) -> None:
        for number, version in list(self._flips.items()):
            if self._live(number) != version:
                continue
            for worker in self.supervisor.of("commit"):
                self.supervisor.strike(worker.name, "SIGKILL")
            self.log.append(f"{now:6.2f} SIGKILL commit-*, as flip {number} went live")
            self.publisher.send(flip_version(number, version, at=now))
            del self._flips[number]

    def _live(self, number: int) -> int | None:
        key = Key(*flip_version(number, 0, at=0).key.split("/", 1))
        live = self.manifests.read([key])[key].manifest.live
        return None if live is None else live.revision.version


def test_nothing_is_lost_stale_or_mixed_while_workers_die(
    deployment: Deployment, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    begun, plan = time.monotonic(), draw(seed)
    say(capsys, f"\nHEADRACE_CHAOS_SEED={seed}: {len(plan.sends)} records, {len(plan.blows)} blows")
    settings, expectation = deployment.settings, Expectation()
    supervisor = Supervisor(deployment)
    reader = Reader(settings.kafka.bootstrap_servers, settings.kafka.topic_prefix, seed)
    problems: list[str] = []
    run: Run | None = None
    try:
        supervisor.start_all()
        ready = time.monotonic()
        reader.start()
        run = Run(
            plan,
            deployment,
            supervisor,
            Publisher(deployment, expectation),
            OpenSearchManifestStore(settings.stores),
        )
        run.carry_out()
        last_sent = time.monotonic()
        reader.stop_asking()
        problems += run.publisher.failures
        problems += drained(run, reader)
        drained_at = time.monotonic()
        codes = supervisor.stop()
        reader.stop()
        problems += [f"{name} ended with {code} when told to stop" for name, code in codes.items() if code != 0]
        problems += [f"the reader broke: {reader.broken!r}"] if reader.broken is not None else []
        findings = audit(settings, expectation)
        faults = [fault for asked in reader.asked.values() for fault in faults_of(asked, expectation)]
        problems += [*findings.lines(), *faults, *untold(reader, expectation)]
        problems += dead_letter_faults(settings, [send for send in plan.sends if send.mark is not None])
        verified = sum(bool(asked.answer and asked.answer["hits"]) for asked in reader.asked.values())
        if verified < VERIFIED_AT_LEAST:
            problems.append(f"only {verified} answers had hits")
        say(capsys, summary(run, reader, findings, faults))
        say(
            capsys,
            f"ready after {ready - begun:.0f} s, sent and struck for {last_sent - ready:.0f} s, drained in"
            f" {drained_at - last_sent:.0f} s, {time.monotonic() - begun:.0f} s in all\n",
        )
    except AssertionError as exc:
        problems.append(str(exc))
    finally:
        reader.stop()
        supervisor.wake(asleep_s=0)
    assert not problems, post_mortem(seed, problems, run, supervisor)


def say(capsys: pytest.CaptureFixture[str], line: str) -> None:
    """On the terminal, also when the test passes."""
    with capsys.disabled():
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def drained(run: Run, reader: Reader) -> list[str]:
    """Wait until all groups have acked everything, twice in a row, and every question is answered; what is missing then."""
    deadline, quiet = time.monotonic() + DRAIN_WITHIN_S, 0
    while quiet < 2:
        run.supervisor.bring_back()
        behind = {stage: lag for stage, lag in lags(run.deployment.settings).items() if lag}
        quiet = 0 if behind or reader.unanswered() else quiet + 1
        if time.monotonic() > deadline:
            return [f"not drained after {DRAIN_WITHIN_S:.0f} s: lags {behind}, unanswered {reader.unanswered()}"]
        time.sleep(0.5)
    return []


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


def summary(run: Run, reader: Reader, findings: Findings, faults: list[str]) -> str:
    kinds = Counter(send.kind for send in run.plan.sends)
    ends = Counter(f"{end.blow or 'by itself'} -> {end.code}" for end in run.supervisor.ends)
    recoveries = {
        stage: f"{min(times):.0f}-{max(times):.0f} s" for stage, times in sorted(run.supervisor.recoveries.items())
    }
    answers = [asked.answer for asked in reader.asked.values() if asked.answer is not None]
    statuses = Counter(status for told in reader.statuses().values() for status in told)
    twice = work_done_twice(run.deployment.settings)
    found = ", ".join(f"{name} {len(sentences)}" for name, sentences in vars(findings).items())
    errors, degraded = sum(a["error"] is not None for a in answers), sum(bool(a["degraded"]) for a in answers)
    again = sum(asked.replies - 1 for asked in reader.asked.values() if asked.replies)
    lines = [
        f"sent: {dict(kinds)}",
        f"ends: {dict(ends)}; struck to ready again: {recoveries}",
        *run.log,
        found,
        f"questions: {len(reader.asked)}, with hits {sum(bool(a['hits']) for a in answers)}, errors {errors},",
        f"    degraded {degraded}, answered again {again}, faults {len(faults)}",
        f"done twice: {twice}; events: {len(reader.events)} for {dict(statuses)}",
    ]
    return "\n".join(lines)


def post_mortem(seed: int, problems: list[str], run: Run | None, supervisor: Supervisor) -> str:
    shown = problems[:40] + ([f"... and {len(problems) - 40} more"] if len(problems) > 40 else [])
    schedule = run.log if run is not None else []
    ends = [f"{end.worker} ended with {end.code} ({end.blow or 'by itself'})" for end in supervisor.ends]
    return "\n".join(
        (
            f"HEADRACE_CHAOS_SEED={seed} gives this run again",
            *shown,
            "--- the schedule",
            *schedule,
            "--- the ends",
            *ends,
            supervisor.log_tails(),
        )
    )
