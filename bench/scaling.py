"""Workers of the embed stage come and go under load, as KEDA's formula asks for them: 1, then up to 3, then 1 again.

Batches of chunks are published at a steady rate, and once a backlog on top of it. The model is an endpoint of this
benchmark's own that takes its time over each request, so that a worker is slow without needing a core: three of them
are three times as fast even here. The formula is that of `bench/keda.py` with the ScaledObject of k8s/base, but for
three things: its times are divided, three pods are the most, and its threshold is what such a worker clears in some
seconds. The lag is read from Kafka as KEDA reads it.

Afterwards every record that was sent is looked for on the topic behind the stage: what is not there is lost, what is
there twice was done again. A pause is a time in which the whole stage wrote nothing though there was work.
"""

import base64
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import msgspec
import numpy as np
from confluent_kafka import Message, Producer

from bench import report, text
from bench.deployment import READY_WITHIN_S, Deployment, Samples, deployment, samples, value
from bench.keda import Autoscaler, Pace, Scaled, scaled_objects
from bench.overlays import K8S, built, kustomize
from bench.replicas import Broker
from bench.report import Options, Plot, Report, Table, Target
from headrace.cli.kafka import oldest_first, raw_key
from headrace.cli.publishing import producer_config
from headrace.cli.readiness import readiness, scrape
from headrace.cli.worker import command
from schemas import Chunk, ChunkBatch, Key, encode
from schemas.batches import Attributes
from schemas.revision import Revision
from topics import GROUPS

NAME = "scaling"
STAGE = "embed"
DIMENSION = 64
REQUEST_S, TEXTS = 0.4, 32
"""What the endpoint takes over a request of so many texts; a worker has one request open at a time."""
CLEARED_PER_S = TEXTS / REQUEST_S
STEADY_PER_S = CLEARED_PER_S / 2
MOST = 3
TICK_S = 0.05
BEGINS_S = 1.0
SHORT_S = 0.1
SETTLES_S = 5.0
"""After all are members, what belongs to their coming and going."""
PAUSE_BOUND_S = 5.0
"""Of a rebalance. Members hear of it with their next heartbeat, 3.3 s apart, and work until then; then each finishes
what it has in hand, all join, and fetch."""


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """How long what takes. In seconds, but for `divisor`, which KEDA's and the autoscaler's times are divided by."""

    divisor: float
    before_s: float
    backlog: int
    wait_s: float
    """That a message may wait: the threshold is what a worker clears in it."""
    after_s: float
    give_up_s: float


COURSE = Course(divisor=12, before_s=8, backlog=2_400, wait_s=8, after_s=8, give_up_s=150)
QUICK = Course(divisor=100, before_s=1, backlog=600, wait_s=3, after_s=1, give_up_s=60)


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """At `at` seconds: messages behind, workers that the formula asks for, and workers that are members."""

    at: float
    lag: int
    wanted: int
    members: int


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Of the number of workers, `at` seconds; `settled` is when as many are members."""

    at: float
    lag: int
    before: int
    after: int
    settled: float


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """`redone` are the times of what was done again, `rates` messages a second with a backlog by the number of workers,
    `pauses` (at, seconds) of the stage, the short ones left out, and `stalls` the seconds of each partition's longest
    one.
    """

    looks: list[Look]
    changes: list[Change]
    sent: int
    lost: int
    redone: list[float]
    rates: dict[int, float]
    pauses: list[tuple[float, float]]
    stalls: list[float]
    rebalances: int


def run(options: Options) -> Report:
    if kustomize() is None:
        sys.exit("no kustomize, kubectl or Go here, and the ScaledObject is built by one of them")
    course = QUICK if options.quick else COURSE
    with endpoint() as url, deployment(_environment(url)) as deployed:
        result = Trial(deployed, course).run()
    return _report(result, course)


def _environment(url: str) -> dict[str, str]:
    own = {
        "BACKEND": "openai",
        "MODEL": "sentence-transformers/all-MiniLM-L6-v2",
        "BASE_URL": url,
        "DIMENSION": str(DIMENSION),
        "CONCURRENCY": "1",
        "TEXTS_PER_REQUEST": str(TEXTS),
        "REUSE": "never",
    }
    environment = {f"HEADRACE_ENCODER__{name}": setting for name, setting in own.items()}
    return environment | {"HEADRACE_WORKER__BATCH_MESSAGES": str(TEXTS)}


@contextmanager
def endpoint() -> Iterator[str]:
    """Speaks OpenAI's embeddings, and takes `REQUEST_S` over each request."""
    vector = base64.b64encode(np.ones(DIMENSION, dtype="<f4").tobytes()).decode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            texts = json.loads(self.rfile.read(int(self.headers["content-length"])))["input"]
            time.sleep(REQUEST_S)
            data = [{"object": "embedding", "index": place, "embedding": vector} for place in range(len(texts))]
            usage = {"prompt_tokens": 0, "total_tokens": 0}
            body = json.dumps({"object": "list", "model": "slow", "data": data, "usage": usage}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def record(number: int) -> tuple[bytes, bytes]:
    """A batch of one short chunk, of a document of its own."""
    words = text.document(number % 50, median_words=30)
    key = Key(text.TENANT, f"scaling-{number:07}")
    batch = ChunkBatch(
        tenant=key.tenant,
        doc_id=key.doc_id,
        revision=Revision(version=1, timestamp=0, offset=number, fingerprint="bench"),
        total=1,
        first=0,
        attributes=Attributes(created_at=datetime(2026, 1, 1, tzinfo=UTC)),
        chunks=[Chunk(ordinal=0, text=words.text[:500], start=0, end=min(500, len(words.text)), tokens=60)],
    )
    return key.encode(), encode(batch)


class Load:
    """Publishes so many a second since it began, and more when asked to."""

    def __init__(self, deployed: Deployment, topic: str) -> None:
        self._topic = topic
        self._producer = Producer(producer_config(deployed.settings.kafka.confluent()))
        self._began = time.monotonic()
        self._steady = 0
        self.sent = 0

    def go_on(self) -> None:
        due = int((time.monotonic() - self._began) * STEADY_PER_S)
        self.add(due - self._steady)
        self._steady = due

    def add(self, count: int) -> None:
        for number in range(self.sent, self.sent + count):
            key, value = record(number)
            self._producer.produce(self._topic, value, key)
        self.sent += count
        self._producer.poll(0)

    def finish(self) -> None:
        if left := self._producer.flush(30):
            sys.exit(f"{left:,} records were not confirmed")


class Workers:
    """Of one stage, so many as asked for: the last to come is the first to go."""

    def __init__(self, deployed: Deployment) -> None:
        self._deployed = deployed
        self._leaving: list[subprocess.Popen[bytes]] = []
        self._started = 0
        self._running: list[str] = []

    @property
    def count(self) -> int:
        return len(self._running)

    def resize(self, count: int) -> None:
        while self.count < count:
            self._start()
        while self.count > count:
            name = self._running.pop()
            worker = self._deployed.workers[name]
            worker.terminate()
            self._leaving.append(worker)

    def _start(self) -> None:
        self._started += 1
        name = f"{STAGE}-{self._started}"
        # The other stages don't run, so their ports are free.
        port = self._deployed.settings.worker.port + (self._started - 1) % len(GROUPS)
        environment = {**self._deployed.environment, "HEADRACE_WORKER__DATA_DIR": f"{self._deployed.folder}/{name}"}
        with self._deployed.log(name).open("ab") as log:
            arguments = [*command(STAGE), "--port", str(port)]
            self._deployed.workers[name] = subprocess.Popen(arguments, stdout=log, stderr=log, env=environment)
        self._running.append(name)

    def url(self, path: str) -> str:
        """Of the first worker."""
        return f"http://127.0.0.1:{self._deployed.settings.worker.port}{path}"

    def metrics(self) -> Samples:
        """Of the first worker."""
        return samples(scrape(self.url("/metrics")) or "")

    def check(self) -> None:
        """Nobody ended unasked, and nobody who was asked to ended badly."""
        for name in self._running:
            if self._deployed.workers[name].poll() is not None:
                sys.exit(f"{name} has ended:\n{self._deployed.log(name).read_text()[-3000:]}")
        if bad := [worker.returncode for worker in self._leaving if worker.poll() not in {None, 0}]:
            sys.exit(f"a worker that was told to stop ended with {bad[0]}")


class Trial:
    """One run, from the first worker to the last message."""

    def __init__(self, deployed: Deployment, course: Course) -> None:
        self._deployed, self._course = deployed, course
        self.scaled = faster(_scaled_object(), course)
        self._broker = Broker(deployed.settings.kafka)
        self._workers = Workers(deployed)
        names = deployed.settings.kafka.names
        self._source, self._target = names.topic("documents.chunks"), names.topic("documents.embeddings")
        self._keda = Autoscaler(self.scaled, pods=1)
        self._began = 0.0
        self._looks = [Look(at=0, lag=0, wanted=1, members=1)]

    def run(self) -> Run:
        course = self._course
        self._workers.resize(1)
        self._wait_for_the_first()
        self._began = time.time()
        load = Load(self._deployed, self._source)
        backlogged, rested_at = False, None
        while rested_at is None or self._now() - rested_at < course.after_s:
            self._give_up_in_time()
            load.go_on()
            if not backlogged and self._now() > course.before_s:
                load.add(course.backlog)
                backlogged = True
            self._look_in_time()
            if backlogged and rested_at is None and self._peaked():
                rested_at = self._now()
            time.sleep(TICK_S)
        load.finish()
        rebalances = round(value(self._workers.metrics(), "headrace_rebalances_total"))
        while self._looks[-1].lag:
            self._give_up_in_time()
            self._look_in_time()
            time.sleep(TICK_S)
        self._workers.resize(0)
        return self._counted(load.sent, rebalances)

    def _peaked(self) -> bool:
        return self._workers.count == 1 and any(look.wanted > 1 for look in self._looks)

    def _now(self) -> float:
        return time.time() - self._began

    def _give_up_in_time(self) -> None:
        if self._now() > self._course.give_up_s:
            sys.exit(f"after {self._now():.0f} s there are {self._workers.count} workers, and {self._looks[-1]}")

    def _wait_for_the_first(self) -> None:
        give_up = time.monotonic() + READY_WITHIN_S
        while not readiness(self._workers.url("/readyz"))[0]:
            self._workers.check()
            if time.monotonic() > give_up:
                sys.exit("the first worker does not come up")
            time.sleep(0.1)

    def _look_in_time(self) -> None:
        # Not before there is something to do: to KEDA, what was never active may go at once.
        if self._now() < max(BEGINS_S, self._looks[-1].at + self.scaled.polling_s):
            return
        self._workers.check()
        told = [trigger.reported(self._broker.offsets(trigger)) for trigger in self.scaled.triggers]
        members = self._broker.members(self.scaled.triggers[0].group)
        at = self._now()
        self._workers.resize(self._keda.look(at, told))
        look = Look(at=at, lag=sum(one.lag for one in told), wanted=self._workers.count, members=members)
        self._looks.append(look)

    def _counted(self, sent: int, rebalances: int) -> Run:
        came = {raw_key(one) or b"": (one.partition() or 0, self._at(one)) for one in self._read(self._source)}
        done: dict[bytes, float] = {}
        redone: list[float] = []
        for one in self._read(self._target):
            key = raw_key(one) or b""
            if key in done:
                redone.append(self._at(one))
            done[key] = min(self._at(one), done.get(key, self._at(one)))
        by_partition = [
            pauses(
                *_times([(at, done[key]) for key, (place, at) in came.items() if place == partition and key in done])
            )
            for partition in {place for place, _ in came.values()}
        ]
        return Run(
            looks=self._looks,
            changes=changes(self._looks),
            sent=sent,
            lost=sent - len(done),
            redone=redone,
            rates={workers: rate(self._looks, [*done.values()], workers) for workers in (1, MOST)},
            pauses=[
                (at, seconds)
                for at, seconds in pauses(*_times([(at, done[key]) for key, (_, at) in came.items() if key in done]))
                if seconds >= SHORT_S
            ],
            stalls=[max(seconds for _, seconds in found) for found in by_partition],
            rebalances=rebalances,
        )

    def _read(self, topic: str) -> Iterator[Message]:
        return oldest_first(self._deployed.settings.kafka.confluent(), topic)

    def _at(self, message: Message) -> float:
        return message.timestamp()[1] / 1000 - self._began


def _scaled_object() -> Scaled:
    objects, _ = built(K8S / "base")
    [stage] = [one for one in scaled_objects(objects) if one.target == f"headrace-{STAGE}"]
    return stage


def faster(scaled: Scaled, course: Course) -> Scaled:
    """With this course's threshold, at most `MOST` pods, and all times divided."""

    def pace(its: Pace) -> Pace:
        policies = [(pods, period_s / course.divisor) for pods, period_s in its.policies]
        return Pace(stabilization_s=its.stabilization_s / course.divisor, policies=policies)

    threshold = round(CLEARED_PER_S * course.wait_s)
    return msgspec.structs.replace(
        scaled,
        most=MOST,
        polling_s=scaled.polling_s / course.divisor,
        cooldown_s=scaled.cooldown_s / course.divisor,
        up=pace(scaled.up),
        down=pace(scaled.down),
        triggers=[msgspec.structs.replace(trigger, lag_threshold=threshold) for trigger in scaled.triggers],
    )


def _times(of_records: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return sorted(came for came, _ in of_records), sorted(done for _, done in of_records)


def pauses(came: Sequence[float], done: Sequence[float]) -> list[tuple[float, float]]:
    """When nothing was done though there was work: (from, seconds), for each record that was done.

    Both are times in order: of what came, and of what was done of it.
    """
    before = [came[0], *done]
    starts = [max(idle, there) for idle, there in zip(before, came, strict=False)]
    return [(start, max(0.0, end - start)) for start, end in zip(starts, done, strict=True)]


def changes(looks: Sequence[Look]) -> list[Change]:
    found = []
    for place, (before, after) in enumerate(pairwise(looks), 1):
        if before.wanted != after.wanted:
            settled = next((one.at for one in looks[place:] if one.members == after.wanted), looks[-1].at)
            found.append(Change(at=after.at, before=before.wanted, after=after.wanted, settled=settled, lag=after.lag))
    return found


def longest(found: Sequence[tuple[float, float]], begin: float, end: float) -> float:
    """The longest pause of which a part is in this time, in seconds."""
    return max((seconds for at, seconds in found if at < end and at + seconds > begin), default=0.0)


def rate(looks: Sequence[Look], done: Sequence[float], workers: int) -> float:
    """Messages a second while so many were members and had a lag of a second's work of theirs. `done` are times."""
    spans = [
        (look.at, after.at)
        for look, after in pairwise(looks)
        if look.members == after.members == workers and min(look.lag, after.lag) > workers * CLEARED_PER_S
    ]
    count = sum(begin <= at < end for at in done for begin, end in spans)
    return count / sum(end - begin for begin, end in spans) if spans else 0.0


def _report(result: Run, course: Course) -> Report:
    threshold = round(CLEARED_PER_S * course.wait_s)
    rebalancing = [(change.at, change.settled + SETTLES_S) for change in result.changes]
    elsewhere = [
        (at, seconds)
        for at, seconds in result.pauses
        if not any(at < end and at + seconds > begin for begin, end in rebalancing)
    ]
    changed = [
        [
            f"{change.before} to {change.after}",
            f"{change.at:.0f}",
            f"{change.lag:,}",
            f"{change.settled - change.at:.1f}",
            f"{longest(result.pauses, change.at, change.settled + SETTLES_S):.2f}",
        ]
        for change in result.changes
    ]
    changed.append(["none", "", "", "", f"{max((seconds for _, seconds in elsewhere), default=0.0):.2f}"])
    counted = [
        ["sent", f"{result.sent:,}"],
        ["lost", f"{result.lost:,}"],
        ["done again", f"{len(result.redone):,}"],
        ["highest lag", f"{max(look.lag for look in result.looks):,}"],
        ["messages/s of 1 worker with a backlog, while others start beside it", f"{result.rates[1]:,.0f}"],
        [f"messages/s of {MOST} workers with a backlog", f"{result.rates[MOST]:,.0f}"],
        ["rebalances that the first worker saw", f"{result.rebalances:,}"],
        ["longest that a partition waited for its turn, s", f"{max(result.stalls):.1f}"],
    ]
    worst = max(longest(result.pauses, change.at, change.settled + SETTLES_S) for change in result.changes)
    lags = [(look.at, float(look.lag)) for look in result.looks]
    what = f"messages/s of {MOST} workers over the most that one can do"
    faster_by = Target(what, "at least", 2, result.rates[MOST] / CLEARED_PER_S)
    return Report(
        name=NAME,
        what="Workers of a stage come and go under load, as KEDA's formula asks for them.",
        tables=[
            Table("Messages", ["", ""], counted),
            Table(
                "Workers",
                ["workers", "at, s", "lag then", "all members after, s", "longest pause of the stage, s"],
                changed,
            ),
        ],
        figures={"course": course, "run": result},
        targets=[
            Target("messages lost", "at most", 0, result.lost),
            Target("messages done again", "at most", 0, len(result.redone)),
            Target("pause of a rebalance", "at most", PAUSE_BOUND_S, worst, " s"),
            # Three workers have work for a second or two in a quick run.
            *([faster_by] if course is COURSE else []),
        ],
        notes=[
            (
                f"The model is an endpoint that takes {REQUEST_S:g} s over {TEXTS} texts: a worker does"
                f" {CLEARED_PER_S:.0f} messages/s at most and needs no core for it. {STEADY_PER_S:.0f} a second come"
                f" all the time, and {course.backlog:,} at once."
            ),
            (
                f"`lagThreshold` is {threshold:,}, KEDA's and the autoscaler's times are those of `k8s/base` divided by"
                f" {course.divisor:g}, and {MOST} pods are the most."
            ),
        ],
        plots=[
            Plot(
                title=f"{STAGE}: lag and workers",
                x="seconds",
                y="messages behind",
                lines={"lag": lags},
                below={
                    "asked for": [(look.at, float(look.wanted)) for look in result.looks],
                    "members of the group": [(look.at, float(look.members)) for look in result.looks],
                },
                y_below="workers",
            )
        ],
    )


if __name__ == "__main__":
    report.main(NAME, __doc__, run)
