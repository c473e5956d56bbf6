"""A real Kafka, and topics of this run alone, which are deleted at its end."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest
from confluent_kafka.admin import AdminClient

from headrace.cli.kafka import QUIET
from headrace.config import Settings
from topics.provisioning import create_topics, existing_topics
from topics.settings import KafkaSettings


@pytest.fixture(scope="session")
def kafka(servers: Settings) -> Iterator[KafkaSettings]:
    """Shared by all tests: what one has sent is there for the next."""
    with topics_of_a_run(servers) as settings:
        yield settings


@pytest.fixture
def fresh_kafka(servers: Settings) -> Iterator[KafkaSettings]:
    """Topics and groups that nobody has used."""
    with topics_of_a_run(servers) as settings:
        yield settings


@contextmanager
def topics_of_a_run(servers: Settings) -> Iterator[KafkaSettings]:
    run = f"test-cli-{uuid4().hex[:8]}-"
    settings = servers.kafka.model_copy(update={"topic_prefix": run, "group_prefix": run, "partitions": 4})
    config = {**settings.confluent(), **QUIET}
    create_topics(config, settings.names, partitions=settings.partitions, replication=1)
    yield settings
    mine = [topic for topic in existing_topics(config) if topic.startswith(run)]
    admin = AdminClient(config)
    for deleted in admin.delete_topics(mine).values():
        deleted.result()


@pytest.fixture
def environment(kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> KafkaSettings:
    """The command line's settings, as its users give them."""
    monkeypatch.setenv("HEADRACE_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("HEADRACE_KAFKA__TOPIC_PREFIX", kafka.topic_prefix)
    monkeypatch.setenv("HEADRACE_KAFKA__GROUP_PREFIX", kafka.group_prefix)
    monkeypatch.setenv("HEADRACE_KAFKA__PARTITIONS", str(kafka.partitions))
    return kafka
