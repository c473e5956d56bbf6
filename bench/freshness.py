"""From publishing a document to its `indexed` event: idle, and on the urgent lane while a backlog drains.

Idle, one document at a time is published and waited for, with a pause of random length before each, so that no clock of
the servers is met always at the same place. Then 10,000 documents are published to the bulk lane, and while they drain
one after the other on the urgent lane, at a fixed rate, whether or not the one before has come out. The backlog of the
static encoder drains to its end; the default model's lasts longer than is measured.

Where the time goes is read from the records that the stages wrote: each carries the time at which it was sent.
"""

import argparse
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

import msgspec
from confluent_kafka import Producer

from bench import report, text
from bench.deployment import STATIC, Deployment, Silent, deployment
from bench.report import Options, Plot, Report, Table, Target, percentile
from headrace.cli.kafka import Tail, oldest_first, raw_key, raw_value
from headrace.cli.publishing import Outgoing, producer_config, publish, read_event
from schemas import Key, Receipt, decode, parse_key
from topics import Lane

NAME = "freshness"
IDLE, QUICK_IDLE = 120, 10
BACKLOG, QUICK_BACKLOG = 10_000, 1_000
MODEL_S = 60.0
PAUSE_S = 0.3
"""At most, before each document of the idle ones."""
URGENT_EVERY_S = {"static": 0.1, "default model": 0.5}
COMES_WITHIN_S = 120.0
HOPS = ("chunked", "embedded", "in Milvus", "in OpenSearch", "live and told", "read")
"""Both stores begin with what embed wrote, and commit with the later of the two."""
STORE_HOPS = {"milvus": "in Milvus", "opensearch": "in OpenSearch"}


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """A document's: when it was published, in seconds since the first of its kind, and the seconds until it came."""

    at_s: float
    seconds: float
    hops: dict[str, float] = {}


class Watched:
    """Documents that were published here, and the moment at which the `indexed` event of each was read."""

    def __init__(self, deployed: Deployment) -> None:
        kafka = deployed.settings.kafka
        self._names = kafka.names
        self._producer = Producer({**producer_config(kafka.confluent()), "linger.ms": 0})
        self._events = Tail(kafka.confluent(), kafka.names.topic("documents.events"))
        self.sent: dict[Key, float] = {}
        self.seen: dict[Key, float] = {}
        self.others = 0
        """Outcomes of documents that somebody else published."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._events.__exit__()

    def publish(self, record: Outgoing, topic: str) -> None:
        self.sent[record.key] = time.time()
        self._producer.produce(self._names.topic(topic), record.value, record.key.encode())
        self._producer.poll(0)

    def read_until(self, enough: Callable[[], bool], within_s: float) -> bool:
        """Read events until there are enough; whether that came in time."""
        give_up = time.monotonic() + within_s
        while not enough():
            left = give_up - time.monotonic()
            if left <= 0:
                return False
            if (message := self._events.poll(left)) is None:
                continue
            key, event = read_event(message)
            if key is None or event is None or event.status != "indexed":
                sys.exit(f"not indexed: {key}: {event}")
            if key in self.sent:
                self.seen.setdefault(key, time.time())
            else:
                self.others += 1
        return True

    def wait(self) -> None:
        if not self.read_until(lambda: len(self.seen) == len(self.sent), COMES_WITHIN_S):
            sys.exit(f"{len(self.sent) - len(self.seen)} documents did not come within {COMES_WITHIN_S:.0f} s")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--documents", type=int, help=f"idle; {IDLE} by themselves")
    parser.add_argument("--backlog", type=int, help=f"documents; {BACKLOG:,} by themselves")


def run(options: Options) -> Report:
    idle = options.documents or (QUICK_IDLE if options.quick else IDLE)
    backlog = options.backlog or (QUICK_BACKLOG if options.quick else BACKLOG)
    ways: dict[str, list[Way]] = {}
    notes = []
    # A quick run has no time for the transformer.
    idle_name = "idle, static encoder" if options.quick else "idle, default model"
    if not options.quick:
        with _running({}) as deployed:
            ways[idle_name] = _idle(deployed, idle)
            name = "urgent beside a backlog, default model"
            ways[name], _ = _urgent(deployed, backlog, URGENT_EVERY_S["default model"], MODEL_S)
    with _running(STATIC) as deployed:
        if options.quick:
            ways[idle_name] = _idle(deployed, idle)
        name = "urgent beside a backlog, static encoder"
        ways[name], drained_s = _urgent(deployed, backlog, URGENT_EVERY_S["static"], COMES_WITHIN_S * 10)
        notes.append(f"The static encoder's backlog of {backlog:,} documents drained in {drained_s:.0f} s.")
    return Report(
        name=NAME,
        what="Seconds from publishing a document to its `indexed` event.",
        tables=[_table(ways), _hops(ways)],
        figures={"ways": ways},
        targets=[
            Target("idle, p50", "at most", 1.5, _percentile(ways[idle_name], 0.5), " s"),
            Target("idle, p99", "at most", 2.5, _percentile(ways[idle_name], 0.99), " s"),
            *(
                Target(f"{name}, p99", "at most", 3.0, _percentile(of_kind, 0.99), " s")
                for name, of_kind in ways.items()
                if name.startswith("urgent")
            ),
        ],
        notes=notes,
        plots=[
            Plot(
                "Publish to indexed",
                "published after s",
                "s",
                {name: [(way.at_s, way.seconds) for way in of_kind] for name, of_kind in ways.items()},
            )
        ],
    )


@contextmanager
def _running(environment: Mapping[str, str]) -> Iterator[Deployment]:
    """All workers, with a tenant whose index and collection are there."""
    with deployment(environment) as deployed:
        deployed.start()
        deployed.wait()
        with Watched(deployed) as watched:
            for topic in ("documents.raw", "documents.urgent"):
                for record in text.records(range(2), name=f"first-{topic}"):
                    watched.publish(record, topic)
                    watched.wait()
        yield deployed


def _idle(deployed: Deployment, count: int) -> list[Way]:
    dice = random.Random(7)
    with Watched(deployed) as watched:
        for record in text.records(range(count), name="idle"):
            time.sleep(dice.uniform(0, PAUSE_S))
            watched.publish(record, "documents.raw")
            watched.wait()
    return _ways(deployed, watched, "bulk")


def _urgent(deployed: Deployment, backlog: int, every_s: float, within_s: float) -> tuple[list[Way], float]:
    """The ways of those that were published while the backlog drained, and how long that took or was watched."""
    records = text.records(range(sys.maxsize), name="urgent")
    with Watched(deployed) as watched:
        publish(text.records(range(backlog), name="backlog"), deployed.settings.kafka, Silent())
        following = started = time.monotonic()
        while watched.others < backlog and time.monotonic() - started < within_s:
            watched.publish(next(records), "documents.urgent")
            following += every_s
            watched.read_until(lambda: watched.others >= backlog, following - time.monotonic())
        drained_s = time.monotonic() - started
        watched.wait()
    return _ways(deployed, watched, "urgent"), drained_s


def _ways(deployed: Deployment, watched: Watched, lane: Lane) -> list[Way]:
    moments = _moments(deployed, watched, lane)
    first = min(watched.sent.values())
    ways = []
    for key, sent in watched.sent.items():
        at = moments[key]
        begun = {
            "chunked": sent,
            "embedded": at["chunked"],
            "in Milvus": at["embedded"],
            "in OpenSearch": at["embedded"],
            "live and told": max(at["in Milvus"], at["in OpenSearch"]),
            "read": at["live and told"],
        }
        at["read"] = watched.seen[key]
        hops = {hop: at[hop] - begun[hop] for hop in HOPS}
        ways.append(Way(at_s=sent - first, seconds=watched.seen[key] - sent, hops=hops))
    return ways


def _moments(deployed: Deployment, watched: Watched, lane: Lane) -> dict[Key, dict[str, float]]:
    """When the last record of each kind was sent, Unix seconds, by document."""
    kafka = deployed.settings.kafka
    end = ".urgent" if lane == "urgent" else ""
    topics = {f"documents.chunks{end}": "chunked", f"documents.embeddings{end}": "embedded"}
    topics |= {"documents.stored": "", "documents.events": "live and told"}
    moments: dict[Key, dict[str, float]] = defaultdict(dict)
    for topic, hop in topics.items():
        for message in oldest_first(kafka.confluent(), kafka.names.topic(topic)):
            key = parse_key(raw_key(message))
            if key not in watched.sent:
                continue
            name = hop or STORE_HOPS[decode(raw_value(message) or b"", Receipt).store]
            moments[key][name] = max(moments[key].get(name, 0.0), message.timestamp()[1] / 1000)
    return moments


def _table(ways: Mapping[str, Sequence[Way]]) -> Table:
    rows = [
        [name, f"{len(of_kind)}", *(f"{_percentile(of_kind, share):.2f}" for share in (0.5, 0.9, 0.99, 1.0))]
        for name, of_kind in ways.items()
    ]
    return Table("Seconds", ["", "documents", "p50", "p90", "p99", "longest"], rows)


def _hops(ways: Mapping[str, Sequence[Way]]) -> Table:
    rows = []
    for name, of_kind in ways.items():
        seconds = {hop: [way.hops[hop] for way in of_kind] for hop in HOPS}
        rows.append([name, *(f"{percentile(s, 0.5):.2f} / {percentile(s, 0.99):.2f}" for s in seconds.values())])
    return Table("Seconds of each hop, p50 / p99", ["", *HOPS], rows)


def _percentile(ways: Sequence[Way], share: float) -> float:
    return percentile([way.seconds for way in ways], share)


if __name__ == "__main__":
    report.main(NAME, __doc__, run, arguments)
