"""The facts of the topic table that the contract promises."""

import pytest

from topics import BY_NAME, GROUPS, LANES, TOPICS, Names
from topics.provisioning import topic_config
from topics.table import APPS, HOUR_MS, OPERATORS, PRODUCERS

PEOPLE = {PRODUCERS, OPERATORS, APPS}
WRITTEN_BY_PRODUCERS = {"documents.raw", "documents.urgent"}


def test_the_table_reads_in_travel_order() -> None:
    written: set[str] = {PRODUCERS, APPS}
    for topic in TOPICS:
        assert set(topic.written_by) <= written | {"query", "commit"}
        written |= set(topic.read_by)
    assert GROUPS == ("chunk", "embed", "upsert-milvus", "upsert-opensearch", "commit", "query")


def test_names_are_unique_and_each_stage_reads_something() -> None:
    assert len(BY_NAME) == len(TOPICS) == 13
    assert {stage for topic in TOPICS for stage in topic.read_by} - PEOPLE == set(GROUPS)
    assert {stage for topic in TOPICS for stage in topic.written_by} - PEOPLE == set(GROUPS)


def test_documents_letters_and_decisions_are_kept_and_everything_else_goes_in_time() -> None:
    compacted = {topic.name for topic in TOPICS if topic.cleanup == "compact"}
    assert compacted == {*WRITTEN_BY_PRODUCERS, "documents.dead.settled", "documents.generations"}
    assert {topic.name for topic in TOPICS if topic.retention_ms is None} == {*compacted, "documents.dead"}
    hours = {topic.name: topic.retention_ms / HOUR_MS for topic in TOPICS if topic.retention_ms is not None}
    assert (hours.pop("queries"), hours.pop("replies")) == (1, 1)
    assert set(hours.values()) == {7 * 24}


def test_a_dead_letter_holds_the_largest_record_and_its_headers() -> None:
    largest = max(topic.max_bytes for topic in TOPICS if topic.name != "documents.dead")
    assert BY_NAME["documents.dead"].max_bytes == largest + 64 * 1024
    assert {topic.name for topic in TOPICS if topic.max_bytes == largest} == WRITTEN_BY_PRODUCERS


def test_every_topic_of_the_urgent_lane_has_a_twin() -> None:
    urgent = [topic.name for topic in TOPICS if topic.lane == "urgent"]
    assert urgent == ["documents.urgent", "documents.chunks.urgent", "documents.embeddings.urgent"]
    for stage in GROUPS:
        lanes = {lane: Names().read_by(stage, lane) for lane in LANES}
        assert len(lanes["urgent"]) == (1 if stage in ("chunk", "embed", "upsert-milvus", "upsert-opensearch") else 0)
        assert len(lanes["bulk"]) == 1


def test_the_configuration_is_spelled_as_kafka_does() -> None:
    assert topic_config(BY_NAME["documents.raw"]) == {
        "cleanup.policy": "compact",
        "max.message.bytes": "10485760",
        "message.timestamp.after.max.ms": "3600000",
    }
    assert topic_config(BY_NAME["queries"]) == {
        "cleanup.policy": "delete",
        "max.message.bytes": "1000000",
        "retention.ms": "3600000",
    }


def test_a_dead_letter_of_an_old_record_is_kept() -> None:
    assert topic_config(BY_NAME["documents.dead"]) == {
        "cleanup.policy": "delete",
        "max.message.bytes": "10551296",
        "retention.ms": "-1",
        "retention.bytes": str(10 * 1024**3),
        "message.timestamp.after.max.ms": str(2**63 - 1),
    }


class TestNames:
    names = Names("staging.", "team-")

    def test_topics_and_groups_stand_behind_their_prefixes(self) -> None:
        assert self.names.topic("documents.raw") == "staging.documents.raw"
        assert self.names.group("embed") == "team-embed"
        assert self.names.read_by("embed", "urgent") == ["staging.documents.chunks.urgent"]

    def test_without_prefixes_of_its_own_a_deployment_has_the_tables_names(self) -> None:
        assert (Names().topic("queries"), Names().group("query")) == ("queries", "headrace-query")

    def test_an_apps_own_reply_topic_counts_as_replies(self) -> None:
        assert self.names.topic("replies.shop") == "staging.replies.shop"

    @pytest.mark.parametrize("name", ["documents", "replies2", "", "staging.documents.raw"])
    def test_a_topic_that_the_table_does_not_have_is_refused(self, name: str) -> None:
        with pytest.raises(KeyError):
            self.names.topic(name)

    def test_a_stage_that_does_not_exist_is_refused(self) -> None:
        with pytest.raises(KeyError):
            self.names.group("rerank")
