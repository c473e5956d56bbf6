"""Our own client gets what a plain Kafka client gets."""

import json

from headrace_client import AnswerFailed, Client, Query

from schemas import encode
from tests.conftest import Deployment
from tests.interop.conftest import QUESTIONS, REFUSED, Reply


def test_the_python_client_gets_what_a_plain_client_gets(asked: Deployment, plain: list[Reply]) -> None:
    kafka = asked.settings.kafka
    with Client(kafka.bootstrap_servers, topic_prefix=kafka.topic_prefix) as client:
        pending = [client.ask(Query(**question)) for question in QUESTIONS]
        answers = [Reply(0, None, json.loads(encode(one.result()))) for one in pending[:REFUSED]]
        error = pending[REFUSED].exception()
    assert [answer.said for answer in answers] == [reply.said for reply in plain[:REFUSED]]
    assert isinstance(error, AnswerFailed)
    assert error.code == plain[REFUSED].error
