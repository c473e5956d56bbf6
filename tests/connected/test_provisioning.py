"""Topics that somebody else made are looked at before anything travels on them."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
)
from tenacity import Retrying, stop_after_delay, wait_fixed

from agents.worker import wait_for_topics
from headrace.config import Settings
from headrace.errors import Misconfigured
from tests.conftest import Deployment
from topics import BY_NAME, TOPICS
from topics.provisioning import create_topics, existing_topics, to_alter
from topics.settings import KafkaSettings

AS_A_BROKER_MAKES_IT = {"cleanup.policy": "delete", "max.message.bytes": "1048588"}


@pytest.fixture
def kafka(servers: Settings, tmp_path: Path) -> Iterator[KafkaSettings]:
    unique = f"t{uuid4().hex[:8]}"
    prefixes = {"topic_prefix": f"{unique}.", "group_prefix": f"{unique}-", "partitions": 2}
    settings = servers.model_copy(update={"kafka": servers.kafka.model_copy(update=prefixes)})
    yield settings.kafka
    Deployment({}, tmp_path, settings).drop_topics()


def test_a_topic_that_a_broker_made_by_itself_is_told_of_until_it_is_set_right(kafka: KafkaSettings) -> None:
    admin, raw = AdminClient(kafka.confluent()), kafka.names.topic("documents.raw")
    admin.create_topics([NewTopic(raw, 1, 1, config=AS_A_BROKER_MAKES_IT)])[raw].result()
    with pytest.raises(Misconfigured) as raised:
        create_topics(kafka.confluent(), kafka.names, partitions=2, replication=1)
    assert f"{raw} has 1 of 2 partitions" in str(raised.value)
    assert f"--entity-name {raw} --add-config cleanup.policy=compact,max.message.bytes=10485760" in str(raised.value)
    # The others are made all the same; a broker takes a moment to know of what it has made.
    for attempt in Retrying(wait=wait_fixed(0.1), stop=stop_after_delay(30), reraise=True):
        with attempt:
            assert {kafka.names.topic(topic.name) for topic in TOPICS} <= existing_topics(kafka.confluent()).keys()
    wait_for_topics(kafka, "embed")
    with pytest.raises(Misconfigured, match=r"cleanup.policy=delete,max.message.bytes=1048588"):
        wait_for_topics(kafka, "chunk")
    altered = [
        ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        for name, value in to_alter(BY_NAME["documents.raw"], AS_A_BROKER_MAKES_IT).items()
    ]
    resource = ConfigResource(ConfigResource.Type.TOPIC, raw, incremental_configs=altered)
    admin.incremental_alter_configs([resource])[resource].result()
    wait_for_topics(kafka, "chunk")
    assert create_topics(kafka.confluent(), kafka.names, partitions=1, replication=1) == []
