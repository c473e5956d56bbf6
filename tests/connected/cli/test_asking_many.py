"""Many questions on their way at once, against a responder that answers them in another order."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from confluent_kafka import Message, Producer

from headrace.cli.asking import CORRELATION_ID, REPLY_PARTITION, REPLY_TOPIC, Asker
from headrace.cli.kafka import Tail, headers_of, raw_value
from schemas import Answer, Query, decode, encode
from topics.settings import KafkaSettings

IN_FLIGHT = 4


@contextmanager
def backwards(kafka: KafkaSettings, *, silent: frozenset[str] = frozenset()) -> Iterator[list[int]]:
    """Waits for four questions, or for no more, and answers the last first. Yields how many it had each time."""
    had: list[int] = []
    stop, ready = threading.Event(), threading.Event()

    def run() -> None:
        producer = Producer(kafka.confluent())
        with Tail(kafka.confluent(), kafka.names.topic("queries")) as queries:
            ready.set()
            held: list[Message] = []
            while not stop.is_set():
                if (message := queries.poll(0.5)) is not None:
                    held.append(message)
                    if len(held) < IN_FLIGHT:
                        continue
                if held:
                    had.append(len(held))
                for one in reversed(held):
                    text = decode(raw_value(one) or b"", Query).query
                    headers = dict(headers_of(one))
                    if text not in silent:
                        producer.produce(
                            headers[REPLY_TOPIC].decode(),
                            encode(Answer(request_id=text)),
                            partition=int.from_bytes(headers[REPLY_PARTITION], "big"),
                            headers=[(CORRELATION_ID, headers[CORRELATION_ID])],
                        )
                producer.flush()
                held = []

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(30)
    try:
        yield had
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def questions() -> list[Query]:
    return [Query(query=str(number)) for number in range(10)]


def test_answers_come_in_the_order_of_the_questions_and_no_more_are_asked_at_once(
    kafka: KafkaSettings, questions: list[Query]
) -> None:
    counted: list[int] = []
    with backwards(kafka) as had, Asker(kafka) as asker:
        answers = asker.ask_many(questions, timeout_s=30, in_flight=IN_FLIGHT, answered=counted.append)
    assert [answer.request_id for answer in answers if answer is not None] == [str(number) for number in range(10)]
    assert max(had) <= IN_FLIGHT
    assert counted == list(range(1, 11))


def test_one_that_is_never_answered_holds_up_none_of_the_others(kafka: KafkaSettings, questions: list[Query]) -> None:
    with backwards(kafka, silent=frozenset({"2"})), Asker(kafka) as asker:
        answers = asker.ask_many(questions, timeout_s=5, in_flight=IN_FLIGHT)
    assert [number for number, answer in enumerate(answers) if answer is None] == [2]
