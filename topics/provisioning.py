"""Creates what is missing of the topics, and says what is wrong with those that are there."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic  # type: ignore[attr-defined]

from headrace.errors import Misconfigured
from topics.reaching import check_token, metadata
from topics.table import BY_NAME, GROUPS, TOPICS, UNTOLD, Names, Topic

ANSWER_WITHIN_S = 10.0
SAFE_REPLICATION = 3
"""With so many copies a broker may go and each record still waits for two of them; with fewer, writing would stop."""


def topic_config(topic: Topic, replication: int = 1) -> dict[str, str]:
    """The topic's settings as Kafka spells them."""
    config = {"cleanup.policy": topic.cleanup, "max.message.bytes": str(topic.max_bytes)}
    if topic.cleanup == "delete":
        config["retention.ms"] = str(-1 if topic.retention_ms is None else topic.retention_ms)
    if topic.retention_bytes is not None:
        config["retention.bytes"] = str(topic.retention_bytes)
    if topic.ahead_ms is not None:
        config["message.timestamp.after.max.ms"] = str(topic.ahead_ms)
    if replication >= SAFE_REPLICATION:
        config["min.insync.replicas"] = "2"
    return config


def to_alter(topic: Topic, config: Mapping[str, str]) -> dict[str, str]:
    """What has to be set otherwise, or documents are lost or stages stand still: a topic that somebody else made, or a
    broker when a client asked for it. What only costs time or space is left to its owner.
    """
    altered: dict[str, str] = {}
    if ("compact" in config.get("cleanup.policy", topic.cleanup)) != (topic.cleanup == "compact"):
        altered["cleanup.policy"] = topic.cleanup
    if int(config.get("max.message.bytes", topic.max_bytes)) < topic.max_bytes:
        altered["max.message.bytes"] = str(topic.max_bytes)
    return altered


def misfits(kafka: dict[str, Any], topics: Mapping[str, Topic]) -> list[str]:
    """What is wrong with these topics, each with what to do. What can't be asked for, or isn't there, is passed over:
    to see how a topic is set takes a right that a worker does without.
    """
    if not topics:
        return []
    admin = AdminClient({**kafka, "log_level": 0})
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in topics]
    asked = admin.describe_configs(resources, request_timeout=ANSWER_WITHIN_S)
    found = []
    for resource, future in asked.items():
        with suppress(KafkaException):
            config = {name: entry.value for name, entry in future.result().items() if entry.value is not None}
            if altered := to_alter(topics[resource.name], config):
                found.append(
                    f"topic {resource.name} has {_settings({name: config[name] for name in altered})}: delete it while"
                    " it is empty and run `headrace topics create`, or `kafka-configs.sh --alter --entity-type topics"
                    f" --entity-name {resource.name} --add-config {_settings(altered)}`"
                )
    return sorted(found)


def _settings(config: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in config.items())


def existing_topics(kafka: dict[str, Any], timeout: float = ANSWER_WITHIN_S) -> dict[str, int]:
    """Every topic of the cluster with its number of partitions.

    Raises Transient when no broker answers, Misconfigured when one refuses.
    """
    check_token(kafka)
    # Each connection that fails would be a line on stderr; what matters comes as an error with one clear line.
    found = metadata(AdminClient({**kafka, "log_level": 0}), kafka, timeout_s=timeout).topics
    return {name: len(metadata.partitions) for name, metadata in found.items()}


def create_topics(
    kafka: dict[str, Any], names: Names, *, partitions: int, replication: int, topics: Iterable[Topic] = TOPICS
) -> list[str]:
    """Create the topics that are missing and return their names. Safe to call from several places at once.

    A generation after the first one gets those for what it doesn't tell as well. Raises Transient when no broker
    answers, Misconfigured when one refuses, or a topic that is there can't be used as it is.
    """
    wanted = {names.topic(topic.name): topic for topic in topics}
    if names.generation:
        wanted |= {names.untold(name): BY_NAME[name] for name in UNTOLD}
    return _create(kafka, wanted, partitions=partitions, replication=replication)


def create_untold(kafka: dict[str, Any], names: Names, *, partitions: int, replication: int) -> list[str]:
    """Create what the generation writes to when it doesn't tell, and return what was missing. Raises as
    `create_topics` does.
    """
    wanted = {names.untold(name): BY_NAME[name] for name in UNTOLD}
    return _create(kafka, wanted, partitions=partitions, replication=replication)


def _create(kafka: dict[str, Any], topics: dict[str, Topic], *, partitions: int, replication: int) -> list[str]:
    there = existing_topics(kafka)
    created = _create_missing(
        kafka,
        [
            NewTopic(
                name, num_partitions=partitions, replication_factor=replication, config=topic_config(topic, replication)
            )
            for name, topic in topics.items()
            if name not in there
        ],
    )
    found = {name: topic for name, topic in topics.items() if name in there}
    problems = [
        f"topic {name} has {there[name]} of {partitions} partitions, and more workers than partitions have nothing to"
        f" read: `kafka-topics.sh --alter --topic {name} --partitions {partitions}`, or set kafka.partitions to what is"
        " there"
        for name, topic in found.items()
        if there[name] < partitions and not set(GROUPS).isdisjoint(topic.read_by)
    ]
    if problems := [*misfits(kafka, found), *problems]:
        raise Misconfigured("; ".join(problems))
    return created


def _create_missing(kafka: dict[str, Any], wanted: list[NewTopic]) -> list[str]:
    if not wanted:
        return []
    created = []
    admin = AdminClient(kafka)  # It has to outlive its futures.
    for name, future in admin.create_topics(wanted).items():
        try:
            future.result()
            created.append(name)
        except KafkaException as exc:
            if exc.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise Misconfigured(f"Kafka refuses to create topic {name}: {exc.args[0].str()}") from exc
    return created
