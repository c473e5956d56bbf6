"""A plan carried out: records are sent, workers and servers are struck, and whoever ended is brought back."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, Message, Producer

from tests.chaos.audit import lags
from tests.chaos.outages import Outages
from tests.chaos.reader import Reader
from tests.chaos.workers import Supervisor
from tests.chaos.workload import SLEEPS_S, Blow, Expectation, Fault, Plan, Send, Sent, flip_version
from tests.conftest import Deployment

OVERRUN_S = 420.0
"""For what had to wait for its worker or server: loading the encoder takes 15 s of a core, and a busy machine has few.

What found nobody ready until then is left out, and the log says so: the run is judged by what it was through."""
DRAIN_WITHIN_S = 600.0
TICK_S = 0.01


@dataclass
class Publisher:
    """Sends the plan's records, with their timestamps counted from the start, and notes what the broker confirmed."""

    deployment: Deployment
    expectation: Expectation
    started_ms: int = field(default_factory=lambda: int(time.time() * 1000))
    failures: list[str] = field(default_factory=list)
    producer: Producer = field(init=False)

    def __post_init__(self) -> None:
        kafka = self.deployment.settings.kafka.confluent()
        self.producer = Producer(kafka | {"enable.idempotence": True, "delivery.timeout.ms": 600_000, "log_level": 0})

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
    """Times in the log are seconds after the start."""

    plan: Plan
    deployment: Deployment
    supervisor: Supervisor
    publisher: Publisher
    outages: Outages
    started: float = field(default_factory=time.monotonic)
    log: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    _told_of: int = 0

    def say(self, line: str) -> None:
        self.log.append(f"{time.monotonic() - self.started:6.1f} {line}")
        # Not to what `capsys` takes: with `pytest -s` this is a terminal's progress.
        print(self.log[-1], file=sys.__stdout__, flush=True)

    def carry_out(self) -> None:
        """Return when everything planned has happened, or was given up."""
        sends, blows, faults = list(self.plan.sends), list(self.plan.blows), list(self.plan.faults)
        give_up = self.plan.scale.sending_s + OVERRUN_S
        while sends or blows or faults or not self.outages.done() or self._anybody_asleep():
            now = time.monotonic() - self.started
            if now > give_up:
                self.left_out += [str(missed) for missed in (*blows, *faults)]
                blows, faults = [], []
                self.outages.stop()
            while sends and sends[0].at <= now:
                self.publisher.send(sends.pop(0))
            for blow in [blow for blow in blows if blow.at <= now]:
                if self.supervisor.workers[blow.worker].ready:
                    blows.remove(blow)
                    self._strike(blow)
            for fault in [fault for fault in faults if fault.at <= now]:
                if self._arm(fault):
                    faults.remove(fault)
            self.tick()
        self.supervisor.wake(asleep_s=0)
        assert self.publisher.producer.flush(60) == 0

    def tick(self) -> None:
        self.supervisor.wake(asleep_s=SLEEPS_S)
        self.supervisor.bring_back()
        for fault in self.supervisor.struck[self._told_of :]:
            self.say(f"{fault.action} at {fault.point}")
            if fault.document is not None:
                at = time.monotonic() - self.started
                self.publisher.send(flip_version(fault.document, 2, at=at))
            self._told_of += 1
        self.publisher.producer.poll(0)
        time.sleep(TICK_S)

    def drain(self, reader: Reader) -> list[str]:
        """Wait until all groups have acked everything, twice in a row, and every question is answered; what is missing
        then.
        """
        deadline, quiet = time.monotonic() + DRAIN_WITHIN_S, 0
        while quiet < 2:
            next_look = time.monotonic() + 1.0
            while time.monotonic() < next_look:
                self.tick()
            behind = {stage: lag for stage, lag in lags(self.deployment.settings).items() if lag}
            quiet = 0 if behind or reader.unanswered() else quiet + 1
            if time.monotonic() > deadline:
                return [f"stuck: after {DRAIN_WITHIN_S:.0f} s lags {behind}, unanswered {reader.unanswered()}"]
        return []

    def recoveries(self, reader: Reader) -> Iterator[tuple[str, float, float | None]]:
        """Of each outage: what it was, for how long the server didn't answer, and how long after that the next version
        went live (None: none was on its way).
        """
        for over in self.outages.over:
            after = (at for at in reader.settled_at if at > over.answered)
            name = f"{over.outage.harm} {over.outage.server}"
            yield name, over.answered - over.began, min((at - over.answered for at in after), default=None)

    def _anybody_asleep(self) -> bool:
        return any(worker.stopped_at for worker in self.supervisor.workers.values())

    def _strike(self, blow: Blow) -> None:
        self.say(f"{blow.action} {blow.worker} (planned for {blow.at:.1f})")
        self.supervisor.strike(blow.worker, blow.action)

    def _arm(self, fault: Fault) -> bool:
        if fault.document is None:
            return self.supervisor.arm(fault)
        # Its document's first version is live, and every stage is there: the second goes live within moments.
        changed = flip_version(fault.document, 1, at=time.monotonic() - self.started)
        if not self.supervisor.complete() or not self.supervisor.arm(fault, changed.key):
            return False
        self.publisher.send(changed)
        return True
