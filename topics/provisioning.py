"""Creates what is missing of the topics and leaves alone what is there."""

from collections.abc import Iterable
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from headrace.errors import Misconfigured
from topics.reaching import check_token, metadata
from topics.table import BY_NAME, TOPICS, UNTOLD, Names, Topic


def topic_config(topic: Topic) -> dict[str, str]:
    """The topic's settings as Kafka spells them."""
    config = {"cleanup.policy": topic.cleanup, "max.message.bytes": str(topic.max_bytes)}
    if topic.cleanup == "delete":
        config["retention.ms"] = str(-1 if topic.retention_ms is None else topic.retention_ms)
    if topic.retention_bytes is not None:
        config["retention.bytes"] = str(topic.retention_bytes)
    if topic.ahead_ms is not None:
        config["message.timestamp.after.max.ms"] = str(topic.ahead_ms)
    return config


def existing_topics(kafka: dict[str, Any], timeout: float = 10.0) -> dict[str, int]:
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
    answers, Misconfigured when one refuses.
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
    wanted = [
        NewTopic(name, num_partitions=partitions, replication_factor=replication, config=topic_config(topic))
        for name, topic in topics.items()
        if name not in there
    ]
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
