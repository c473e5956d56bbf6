"""Which settings a topic must have, whoever made it."""

import pytest

from topics import BY_NAME, TOPICS
from topics.provisioning import to_alter, topic_config
from topics.table import Topic

OF_A_BROKER = {"cleanup.policy": "delete", "max.message.bytes": "1048588", "retention.ms": "604800000"}
"""What a broker gives to a topic that it makes because a client asked for it."""


@pytest.mark.parametrize(
    ("topic", "altered"),
    [
        ("documents.raw", {"cleanup.policy": "compact", "max.message.bytes": "10485760"}),
        ("documents.generations", {"cleanup.policy": "compact"}),
        ("documents.dead", {"max.message.bytes": "10551296"}),
        ("documents.chunks", {}),
    ],
)
def test_a_topic_as_a_broker_makes_it_by_itself_loses_documents(topic: str, altered: dict[str, str]) -> None:
    assert to_alter(BY_NAME[topic], OF_A_BROKER) == altered


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_a_topic_as_it_is_created_here_is_left_alone(topic: Topic) -> None:
    assert to_alter(topic, topic_config(topic)) == {}


def test_batches_of_one_document_must_not_be_compacted_to_the_last() -> None:
    compacted = {"cleanup.policy": "compact", "max.message.bytes": "1048588"}
    assert to_alter(BY_NAME["documents.chunks"], compacted) == {"cleanup.policy": "delete"}


def test_what_an_owner_may_choose_is_left_to_them() -> None:
    generous = {"cleanup.policy": "compact,delete", "max.message.bytes": "20000000", "retention.ms": "1"}
    assert to_alter(BY_NAME["documents.raw"], generous) == {}
    assert to_alter(BY_NAME["documents.raw"], {}) == {}, "some brokers tell less"


@pytest.mark.parametrize(("replication", "told"), [(1, None), (2, None), (3, "2"), (5, "2")])
def test_a_record_waits_for_two_copies_where_one_broker_may_still_go(replication: int, told: str | None) -> None:
    assert topic_config(BY_NAME["documents.raw"], replication).get("min.insync.replicas") == told
