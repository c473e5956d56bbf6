"""A new generation beside the live one: made, held against Kafka, and what the flip does to a real deployment."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import msgspec
from confluent_kafka import KafkaError, Message, Producer
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from headrace import wiring
from headrace.cli.console import err
from headrace.cli.deadletters import read_dead_letter
from headrace.cli.dropping import SESSION_MARGIN_S
from headrace.cli.filling import Estimate, Filling, Seen, duration
from headrace.cli.flipping import Marks, display
from headrace.cli.flow import Flow
from headrace.cli.generation_settings import encoder_environment
from headrace.cli.generation_workers import GenerationWorkers
from headrace.cli.groups import GroupReader, Groups
from headrace.cli.kafka import QUIET, oldest_first, raw_headers, raw_key, raw_value, translated, watermarks
from headrace.cli.lacking import delete_again, is_deletion, lacking, stands
from headrace.cli.steps import Shown, steps
from headrace.cli.verify import repaired
from headrace.cli.verifying import Report, Verifier
from headrace.cli.worktable import WorkTable
from headrace.config import ENV_PREFIX, Settings
from headrace.errors import HeadraceError, Transient
from headrace.stores import ManifestStore
from schemas import Key, Revision
from schemas.generations import LEASE_S, Generations
from topics.generations import Change
from topics.provisioning import create_topics, create_untold
from topics.table import DEAD_MAX_BYTES, DOCUMENT_STAGES, LANES, UNTOLD

LOOK_EVERY_S = 1.0
SOON_S, NEARLY_S = 60.0, 5.0
"""So near to its end the rest is waited for stage by stage."""
LINE_EVERY_S = 15.0
STILL_S = 10.0
"""What waits and doesn't move for so long may be marks of transactions, which no stage works on."""
STILL_THERE_S = 30.0
"""So often a run makes sure that no other has begun."""
SETTLE_S = 30.0
REPAIR_RATE = 100.0
UNCONFIRMED_KB = 65_536
T = TypeVar("T")
WAITS = "no work is lost; the same command goes on where this one was"


class NotVerified(HeadraceError):
    """The new generation lacks something; nothing was flipped."""


class StandsStill(Transient):
    """Nothing of the new generation moves."""

    def __init__(self, why: str) -> None:
        super().__init__("the document workers", why)


class Missing(NamedTuple):
    """A document that the new generation doesn't have, or whose deletion it doesn't know of, and why."""

    key: str
    deleted: bool
    why: str


@dataclass(frozen=True, kw_only=True)
class Side:
    """One generation: its settings, and what is asked of it."""

    name: str
    settings: Settings
    flow: Flow


class Reindexing:
    """What one run works with. It is the `World` of `flipping`.

    `idle_s` is how long nothing of the new generation may move; `rate` is in documents a second, 0 without a limit;
    `workers` keeps the new generation's workers, None where others run them.
    """

    def __init__(
        self,
        change: Change,
        old: Settings,
        new: Settings,
        *,
        idle_s: float,
        rate: float,
        workers: GenerationWorkers | None,
        say: Callable[[str], None],
    ) -> None:
        self.change = change
        self.idle_s = idle_s
        self.say = say
        self._shown: Shown | None = None
        kafka = new.kafka
        made = create_topics(kafka.confluent(), kafka.names, partitions=kafka.partitions, replication=kafka.replication)
        for settings in (old, new):
            names = settings.kafka.names
            made += create_untold(kafka.confluent(), names, partitions=kafka.partitions, replication=kafka.replication)
        if made:
            say(f"created {len(made)} topics")
        self._sides = {
            settings.generation.name: Side(name=settings.generation.name, settings=settings, flow=Flow(settings.kafka))
            for settings in (old, new)
        }
        self.new = self._sides[new.generation.name]
        self.old = self._sides[old.generation.name]
        self.workers = workers
        self._rate = rate

    # The new generation is made.

    def start_workers(self) -> None:
        """Those of the new generation, where nobody else runs them."""
        if self.workers is None:
            return
        settings = self.new.settings
        stages = self._stages_for(self.workers)
        if not stages:
            self.workers = None
            return
        environment = encoder_environment(os.environ, settings.encoder, self.new.name)
        environment[f"{ENV_PREFIX}GENERATION__RATE"] = str(self._rate)
        self.workers.start(stages, environment, drain_s=settings.worker.drain_timeout_s, say=self.say)

    def _stages_for(self, workers: GenerationWorkers) -> list[str]:
        """Those that have none, or these already. A worker that ended without a word is listed in its group for as long
        as its session lasts.
        """
        reader, ours = GroupReader(self.new.settings.kafka), workers.stages()
        give_up = time.monotonic() + self.new.settings.worker.session_timeout_s + SESSION_MARGIN_S
        while True:
            groups = self._patiently(reader.read).groups
            stages = [stage for stage in DOCUMENT_STAGES if stage in ours or not groups[stage].workers]
            if len(stages) == len(DOCUMENT_STAGES) or time.monotonic() > give_up:
                return stages
            time.sleep(LOOK_EVERY_S)

    def fill(self) -> None:
        """Return when the new generation has, but for moments, all that Kafka has.

        Raises StandsStill when nothing moves, and HeadraceError when a worker doesn't come up or another run begins.
        """
        started = sure_at = time.monotonic()
        reader, filling = GroupReader(self.new.settings.kafka), Filling()
        with self._showing():
            while True:
                groups = self._patiently(reader.read)
                now = time.monotonic()
                estimate = filling.add(seen(groups, now))
                self._show(f"making generation {display(self.new.name)}", estimate)
                self._watch_workers()
                still_s = now - (filling.moved_at or now)
                if self.change.record.lease_s != LEASE_S and _within(estimate, SOON_S):
                    # Those who go by the longer lease have forgotten it by the time that it matters.
                    self._write_on(lease_s=LEASE_S)
                if (_within(estimate, NEARLY_S) or still_s > STILL_S) and self._patiently(self._nearly_passed):
                    break
                if still_s > self.idle_s:
                    raise StandsStill(_standstill(groups, estimate, self.new.name, self.idle_s))
                if now - sure_at > STILL_THERE_S:
                    self._write_on()
                    sure_at = now
                time.sleep(LOOK_EVERY_S)
        self.say(
            f"generation {display(self.new.name)} has what Kafka has: {estimate.of:,} records in "
            f"{duration(time.monotonic() - started)}"
        )

    def verify(self) -> tuple[WorkTable, Report]:
        """What `headrace verify` finds of the new generation, after what it mends by `--repair`."""
        table = WorkTable()
        with self._showing() as shown:
            verifier = Verifier(self.new.settings, None, shown)
            report = verifier.verify(table, SETTLE_S)
        if not report.fine and table.redeliveries() + sum(1 for _ in table.sweeps()):
            self.say(f"mending {sum(report.differences.values()):,} differences")
            table, report, _, _ = repaired(
                verifier, table, report, settle_s=SETTLE_S, rate=self._rate or REPAIR_RATE, idle_s=self.idle_s
            )
        return table, report

    def missing(self) -> list[Missing]:
        """What the live generation goes by and the new one lacks: it can't process it, or Kafka no longer has it. After
        the flip such documents would be gone, or in an older version; a deleted one would be back, so what was deleted
        is deleted again before.
        """
        with self._showing() as shown:
            old, new = (wiring.build_manifests(side.settings) for side in (self.old, self.new))
            suspects: dict[Key, Revision] = {}
            looked_at = 0
            for tenant in old.tenants():
                for page in old.scan(tenant):
                    known = {one.key: revision for one in page if (revision := stands(one)) is not None}
                    suspects |= dict(lacking(new, known))
                    looked_at += len(page)
                    shown.show("looking for documents that are missing", looked_at)
            lacks = self._still_lacking(new, suspects)
            if deleted := {key: revision for key, revision in lacks.items() if is_deletion(revision)}:
                delete_again(self.new.settings, new, deleted, self.say)
                lacks = self._still_lacking(new, lacks)
            reasons = self._reasons() if lacks else {}
        return [
            Missing(str(key), is_deletion(revision), reasons.get(str(key), "it is not in Kafka (any more)"))
            for key, revision in lacks.items()
        ]

    def _still_lacking(self, manifests: ManifestStore, suspects: dict[Key, Revision]) -> dict[Key, Revision]:
        """Those that the new generation lacks when what had come by now is worked on: they will not come."""
        if suspects and not self.passed(self.new.name, within_s=self.idle_s):
            raise StandsStill(f"generation {display(self.new.name)} did not do what was at work; {WAITS}")
        return dict(lacking(manifests, suspects))

    def _reasons(self) -> dict[str, str]:
        """Of what the new generation could not process, by key."""
        kafka = self.new.settings.kafka
        own = kafka.names.untold("documents.dead")
        with closing(oldest_first(kafka.confluent(), own)) as messages:
            letters = [read_dead_letter(message) for message in messages]
        return {letter.key: f"{letter.code} at {letter.stage}: {letter.message}" for letter in letters if letter.key}

    # The flip's world.

    def write(self, record: Generations) -> None:
        self.change.write(record)

    def until_known(self) -> None:
        with self._showing() as shown:
            self.change.wait_until_known(shown.seconds("until every worker knows"))

    def marks(self, generation: str) -> Marks:
        return self._bounds(generation, lambda bounds: bounds[1])

    def beginnings(self, generation: str) -> Marks:
        return self._bounds(generation, lambda bounds: bounds[0])

    def passed(self, generation: str, *, within_s: float | None = None) -> bool:
        limit = math.inf if within_s is None else within_s
        with self._showing() as shown:

            def show(left: int) -> None:
                shown.show(f"messages at work in generation {display(generation)}", left)
                if generation == self.new.name:
                    self._watch_workers()

            return self._sides[generation].flow.passed(idle_s=limit, within_s=limit, show=show)

    def tell(self, record: Generations) -> Generations:
        kafka = self.new.settings.kafka
        names = self._sides[record.live].settings.kafka.names
        marks: Marks = {}
        told = 0
        with translated(kafka.confluent()):
            producer = _producer(kafka.confluent())
            failures: list[KafkaError] = []
            for name in UNTOLD:
                own = names.untold(name)
                begins = {int(number): offset for number, offset in record.marks.get(own, {}).items()}
                with closing(oldest_first(kafka.confluent(), own, begins=begins)) as messages:
                    for message in messages:
                        _pass_on(producer, names.topic(name), message, failures)
                        begins[message.partition() or 0] = (message.offset() or 0) + 1
                        told += 1
                marks[own] = {str(number): offset for number, offset in begins.items()}
            while len(producer):
                producer.poll(0.1)
        if failures:
            raise Transient("kafka", f"{len(failures)} events were not taken: {failures[0].str()}")
        if told:
            self.say(f"told {told:,} events and letters that generation {display(record.live)} had kept to itself")
        return msgspec.structs.replace(record, marks=marks)

    def _bounds(self, generation: str, of: Callable[[tuple[int, int]], int]) -> Marks:
        settings = self._sides[generation].settings.kafka
        return {
            topic: {str(number): of(bounds) for number, bounds in watermarks(settings.confluent(), topic).items()}
            for topic in map(settings.names.untold, UNTOLD)
        }

    # While it goes.

    def _nearly_passed(self) -> bool:
        return self.new.flow.passed(idle_s=STILL_S, within_s=STILL_S)

    def _write_on(self, **changes: Any) -> None:
        """What a write that got no answer has left behind counts."""
        self._patiently(lambda: self.change.write(msgspec.structs.replace(self.change.settle(), **changes)))

    def _patiently(self, ask: Callable[[], T]) -> T:
        """What takes hours shouldn't end because a broker is away for a moment, as after topics were made."""
        patient = Retrying(
            retry=retry_if_exception_type(Transient),
            stop=stop_after_delay(self.idle_s),
            wait=wait_fixed(LOOK_EVERY_S),
            reraise=True,
        )
        return patient(ask)

    def _watch_workers(self) -> None:
        if self.workers is None:
            return
        if not self.workers.running():
            raise HeadraceError(f"somebody has stopped the workers of generation {display(self.new.name)}; {WAITS}")
        if (failed := self.workers.failed()) is not None:
            raise HeadraceError(f"{failed}; {WAITS}")

    @contextmanager
    def _showing(self) -> Iterator[Shown]:
        """One bar at a time, also where one step is within another."""
        if self._shown is not None:
            yield self._shown
            return
        with steps(err(), line_every_s=LINE_EVERY_S) as shown:
            self._shown = shown
            try:
                yield shown
            finally:
                self._shown = None

    def _show(self, what: str, estimate: Estimate) -> None:
        if self._shown is None:
            return
        left = "" if estimate.seconds is None else f" · {duration(estimate.seconds)} left"
        waiting = f" · {estimate.waiting:,} messages wait, the most for {estimate.slowest}" if estimate.waiting else ""
        count = f"{estimate.fraction:.0%} · {estimate.documents:,} of {estimate.of:,} records cut{waiting}{left}"
        self._shown.show(what, round(1000 * estimate.fraction), 1000, count=count)


def seen(groups: Groups, at: float) -> Seen:
    """Of the stages from `chunk` to `commit`. What is between them began with the generation, so its offsets count."""
    done, waiting = {}, {}
    for stage in DOCUMENT_STAGES:
        topics = {topic for lane in LANES for topic in groups.topics[stage][lane]}
        ends = {place: end for place, end in groups.ends.items() if place[0] in topics}
        behind = sum(groups.lag(stage).values())
        first = sum(groups.begins[place] for place in ends) if stage == DOCUMENT_STAGES[0] else 0
        done[stage], waiting[stage] = sum(ends.values()) - behind - first, behind
    return Seen(at=at, done=done, waiting=waiting)


def _within(estimate: Estimate, seconds: float) -> bool:
    return estimate.seconds is not None and estimate.seconds < seconds


def _standstill(groups: Groups, estimate: Estimate, generation: str, idle_s: float) -> str:
    missing = [stage for stage in DOCUMENT_STAGES if not groups.groups[stage].workers]
    nobody = f"; nobody works for {', '.join(missing)}" if missing else ""
    return (
        f"nothing of generation {display(generation)} has moved for {duration(idle_s)}, and {estimate.waiting:,} "
        f"messages wait{nobody}; {WAITS}"
    )


def _producer(kafka: dict[str, Any]) -> Producer:
    return Producer(
        {
            **kafka,
            **QUIET,
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "message.max.bytes": DEAD_MAX_BYTES,
            "compression.type": "none",
            "queue.buffering.max.kbytes": UNCONFIRMED_KB,
        }
    )


def _pass_on(producer: Producer, topic: str, message: Message, failures: list[KafkaError]) -> None:
    """As it is, to where everybody reads."""

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failures.append(error)

    headers: list[tuple[str, str | bytes | None]] = list(raw_headers(message))
    while True:
        try:
            producer.produce(
                topic,
                raw_value(message),
                raw_key(message),
                headers=headers,
                timestamp=max(1, message.timestamp()[1]),
                on_delivery=delivered,
            )
            break
        except BufferError:
            producer.poll(0.1)
    producer.poll(0)
