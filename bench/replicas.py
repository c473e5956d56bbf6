"""What KEDA would ask for now: the lag of each ScaledObject's groups on a running Kafka, and the pods that follow.

    python -m bench.replicas                       # of k8s/base
    python -m bench.replicas k8s/overlays/prod     # of an overlay

It asks the Kafka of the settings (`HEADRACE_KAFKA__...`), whose prefixes stand for those of the overlay. The number of
pods there are now is that of the group's members. Nothing is joined, committed or changed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from rich.table import Table

from bench.keda import Offsets, Reported, Scaled, Trigger, scaled_objects
from bench.overlays import K8S, built
from headrace.cli.condition import offsets
from headrace.cli.console import out
from headrace.cli.kafka import ANSWER_WITHIN_S, QUIET, Positions, translated
from headrace.config import load_settings
from headrace.errors import HeadraceError, Misconfigured
from topics import GROUPS, Names
from topics.provisioning import existing_topics
from topics.settings import KafkaSettings


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Of one ScaledObject: what its triggers tell, in their order, and the pods now and wanted."""

    scaled: Scaled
    told: list[Reported]
    now: int
    wanted: int

    @property
    def stage(self) -> str:
        return self.scaled.target.removeprefix("headrace-")


class Broker:
    """Reads what KEDA's kafka scaler reads. Raises what `headrace.cli.kafka` raises."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._config = {**kafka.confluent(), **QUIET}
        self._here = kafka.names
        with translated(self._config):
            self._admin = AdminClient(self._config)
        self._partitions = existing_topics(self._config)
        self._positions = Positions(self._config)

    def offsets(self, trigger: Trigger) -> Offsets:
        topic, group = self._topic(trigger.topic), self._group(trigger.group)
        if topic not in self._partitions:
            raise Misconfigured(f"missing topic: {topic} (`headrace topics create` makes it)")
        with translated(self._config):
            places = [TopicPartition(topic, number) for number in range(self._partitions[topic])]
            ends = offsets(self._admin, places, OffsetSpec.latest())
        committed = self._positions.committed(group, ends)
        return {partition: (committed.get((topic, partition)), end) for (_, partition), end in ends.items()}

    def members(self, group: str) -> int:
        name = self._group(group)
        with translated(self._config):
            asked = self._admin.describe_consumer_groups([name], request_timeout=ANSWER_WITHIN_S)
            return len(asked[name].result().members)

    def reading(self, scaled: Scaled) -> Reading:
        told = [trigger.reported(self.offsets(trigger)) for trigger in scaled.triggers]
        now = self.members(scaled.triggers[0].group)
        return Reading(scaled=scaled, told=told, now=now, wanted=scaled.pods(told, now))

    def _topic(self, name: str) -> str:
        return name if name.startswith(self._here.topic_prefix) else self._here.topic_prefix + name

    def _group(self, name: str) -> str:
        prefix = self._here.group_prefix
        return name if name.startswith(prefix) else prefix + name.removeprefix(Names().group_prefix)


def _place(reading: Reading) -> tuple[int, str]:
    """In travel order; what is no stage of the table, such as one of another generation, comes last."""
    return (GROUPS.index(reading.stage) if reading.stage in GROUPS else len(GROUPS), reading.stage)


def table(readings: Sequence[Reading]) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(("stage", "trigger", "lag", "lagThreshold", "pods now", "pods wanted")):
        shown.add_column(column, justify="right" if place > 1 else "left")
    for reading in readings:
        for number, (trigger, told) in enumerate(zip(reading.scaled.triggers, reading.told, strict=True)):
            pods = ("", "") if number else (f"{reading.now}", f"{reading.wanted}")
            shown.add_row(
                "" if number else reading.stage, trigger.name, f"{told.lag:,}", f"{trigger.lag_threshold:,}", *pods
            )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.replicas", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overlay", nargs="?", type=Path, default=K8S / "base", help="a folder that kustomize builds")
    parser.add_argument("--json", action="store_true", help="print what was read and follows as JSON")
    options = parser.parse_args()
    try:
        objects, _ = built(options.overlay)
        broker = Broker(load_settings().kafka)
        readings = sorted(map(broker.reading, scaled_objects(objects)), key=_place)
    except (HeadraceError, ValueError, FileNotFoundError) as exc:
        sys.exit(str(exc))
    if options.json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(readings)) + b"\n")
    else:
        out().print(table(readings))


if __name__ == "__main__":
    main()
