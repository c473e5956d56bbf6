"""Spring Kafka's ReplyingKafkaTemplate and SmallRye's KafkaRequestReply, as their users run them: neither knows of
headrace, and each gets what a plain Kafka client gets.
"""

import pytest

from tests.conftest import Deployment
from tests.interop.conftest import QUESTIONS, REFUSED, JavaClient, Reply, java_client


@pytest.fixture(scope="module", params=["spring", "smallrye"])
def client(
    request: pytest.FixtureRequest, pipeline: Deployment, tmp_path_factory: pytest.TempPathFactory
) -> JavaClient:
    return java_client(request.param, pipeline, tmp_path_factory.mktemp(request.param))


def test_a_plain_client_gets_hits_and_one_error(plain: list[Reply]) -> None:
    assert [reply.answer["hits"][0]["doc_id"] for reply in plain[:REFUSED]] == ["sluice", "turbine", "umlaut", "eel"]
    assert [reply.error for reply in plain] == [None] * REFUSED + ["bad_request"]


def test_replies_come_on_a_topic_shared_with_others(client: JavaClient, asked: Deployment, plain: list[Reply]) -> None:
    replies = client.ask(asked, QUESTIONS)
    assert [reply.said for reply in replies] == [reply.said for reply in plain]
    assert [reply.error for reply in replies] == [reply.error for reply in plain]


@pytest.mark.parametrize("partition", [0, 3])
def test_replies_come_on_the_partition_that_was_asked_for(
    client: JavaClient, asked: Deployment, plain: list[Reply], partition: int
) -> None:
    replies = client.ask(asked, QUESTIONS, partition)
    assert {reply.partition for reply in replies} == {partition}
    assert [reply.said for reply in replies] == [reply.said for reply in plain]


def test_an_error_is_told_by_its_header_and_in_the_answer(client: JavaClient, asked: Deployment) -> None:
    [refused] = client.ask(asked, [QUESTIONS[REFUSED]])
    assert refused.error == refused.answer["error"]["code"] == "bad_request"
    assert refused.answer["request_id"] == "refused"


def test_many_requests_in_flight_get_each_its_own_reply(client: JavaClient, asked: Deployment) -> None:
    many = [QUESTIONS[number % REFUSED] | {"request_id": str(number)} for number in range(40)]
    assert [reply.answer["request_id"] for reply in client.ask(asked, many, 1)] == [str(number) for number in range(40)]
