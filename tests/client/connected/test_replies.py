"""What the client makes of replies as they come when workers die, err and repeat themselves.

Kafka is real; the replies are those of workers that this test plays.
"""

import json
import struct
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

import headrace_client
import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from headrace_client import (
    Answer,
    AnswerFailed,
    Client,
    Delta,
    Found,
    NoReply,
    Piece,
    RateLimited,
    Reset,
    Unavailable,
    UnreadableReply,
)

from tests.conftest import PARTITIONS, Deployment

HIT = {
    "rank": 1, "score": 1.0, "doc_id": "a", "chunk_id": "a-0", "ordinal": 0, "version": 1, "text": "ice", "start": 0, "end": 3,
}  # fmt: skip


@dataclass
class Worker:
    """Takes questions from the topic and sends what it is told to."""

    deployment: Deployment

    def __post_init__(self) -> None:
        servers = {"bootstrap.servers": self.deployment.settings.kafka.bootstrap_servers}
        self.producer = Producer(servers)
        self.reader = Consumer({**servers, "group.id": uuid.uuid4().hex, "enable.auto.commit": False})
        topic = self.deployment.topic("queries")
        self.reader.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])

    def take(self) -> Message:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            message = self.reader.poll(0.5)
            if message is not None and not message.error():
                return message
        raise AssertionError("no question came")

    def reply(self, asked: Message, value: Any, **headers: str) -> None:
        """`headers` have `_` for `-`."""
        wanted = dict(asked.headers() or [])
        [partition] = struct.unpack(">i", wanted["kafka_replyPartition"])
        self.producer.produce(
            wanted["kafka_replyTopic"].decode(),
            value if isinstance(value, bytes) else json.dumps(value).encode(),
            asked.key(),
            headers=[
                ("kafka_correlationId", wanted["kafka_correlationId"]),
                *((name.replace("_", "-"), text.encode()) for name, text in headers.items()),
            ],
            partition=partition,
        )
        self.producer.flush(10)

    def stream(self, asked: Message, name: str, deltas: Sequence[str], *, only: Sequence[int] | None = None) -> None:
        """A whole stream, or the replies with these indexes alone."""
        text = {"text": "".join(deltas), "citations": [], "model": "m"}
        values = [{"hits": [HIT]}, *({"delta": delta} for delta in deltas), {"hits": [HIT], "answer": text}]
        for index in range(len(values)) if only is None else only:
            last = "true" if index == len(values) - 1 else "false"
            self.reply(asked, values[index], stream_id=name, stream_index=str(index), stream_last_message=last)

    def close(self) -> None:
        self.reader.close()


@pytest.fixture
def worker(deployment: Deployment) -> Iterator[Worker]:
    made = Worker(deployment)
    yield made
    made.close()


@pytest.fixture
def client(deployment: Deployment) -> Iterator[Client]:
    kafka = deployment.settings.kafka
    with Client(kafka.bootstrap_servers, topic_prefix=kafka.topic_prefix) as made:
        yield made


def told(pieces: Sequence[Piece]) -> list[str]:
    words = []
    for piece in pieces:
        match piece:
            case Found():
                words.append(f"{len(piece.hits)} hits")
            case Delta():
                words.append(piece.delta)
            case Reset():
                words.append(f"!{piece.reason}")
            case Answer():
                words.append(f"={piece.answer.text if piece.answer else None}")
    return words


def test_each_error_code_is_an_error_of_its_own_with_the_time_to_try_again(client: Client, worker: Worker) -> None:
    for code in (
        "bad_request",
        "unauthorized",
        "forbidden",
        "rate_limited",
        "deadline_exceeded",
        "unavailable",
        "internal",
    ):
        pending = client.ask("why?")
        error = {"code": code, "message": "so", "retry_after_ms": 1500 if code == "rate_limited" else None}
        worker.reply(worker.take(), {"error": error})
        with pytest.raises(AnswerFailed) as failed:
            pending.result(30)
        assert type(failed.value) is getattr(headrace_client, "".join(part.title() for part in code.split("_")))
        assert failed.value.code == code
        assert failed.value.retry_after_ms == (1500 if isinstance(failed.value, RateLimited) else None)


def test_a_worker_that_dies_in_the_middle_is_followed_by_another_and_nothing_is_mixed(
    client: Client, worker: Worker
) -> None:
    stream = client.stream("why?")
    asked = worker.take()
    worker.stream(asked, "one", ["Ice ", "sinks."], only=[0, 1])
    assert told([next(stream), next(stream)]) == ["1 hits", "Ice "]
    assert stream.text == "Ice "
    worker.stream(asked, "two", ["Ice ", "floats."])
    assert told(list(stream)) == ["!another_stream", "1 hits", "Ice ", "floats.", "=Ice floats."]
    assert stream.text == "Ice floats."


def test_a_worker_that_dies_in_the_middle_and_has_no_successor_is_an_error_and_never_half_an_answer(
    client: Client, worker: Worker
) -> None:
    stream = client.stream("why?", timeout_s=10)
    worker.stream(worker.take(), "one", ["Ice ", "sinks."], only=[0, 1])
    assert told([next(stream), next(stream)]) == ["1 hits", "Ice "]
    with pytest.raises(NoReply):
        next(stream)
    with pytest.raises(NoReply):
        stream.whole.result()


def test_a_missing_piece_is_noticed_and_the_whole_is_whole(client: Client, worker: Worker) -> None:
    stream = client.stream("why?")
    worker.stream(worker.take(), "one", ["a", "b", "c"], only=[0, 1, 3, 4])
    assert told(list(stream)) == ["1 hits", "a", "!missing_piece", "=abc"]


def test_replies_that_come_twice_count_once(client: Client, worker: Worker) -> None:
    stream = client.stream("why?")
    asked = worker.take()
    worker.stream(asked, "one", ["a", "b"], only=[0, 0, 1, 1, 2, 2, 3, 3])
    worker.stream(asked, "one", ["a", "b"])
    assert told(list(stream)) == ["1 hits", "a", "b", "=ab"]
    pending = client.ask("why?")
    asked = worker.take()
    for n in range(3):
        worker.reply(asked, {"request_id": str(n)})
    assert pending.result(30).request_id == "0"
    after = client.ask("and then?")
    worker.reply(worker.take(), {"request_id": "then"})
    assert after.result(30).request_id == "then"


def test_an_error_after_some_text_is_raised(client: Client, worker: Worker) -> None:
    stream = client.stream("why?")
    asked = worker.take()
    worker.stream(asked, "one", ["a", "b"], only=[0, 1])
    error = {"code": "unavailable", "message": "llm", "retry_after_ms": 10}
    worker.reply(asked, {"error": error}, stream_id="one", stream_index="2", stream_last_message="true")
    assert told([next(stream), next(stream)]) == ["1 hits", "a"]
    with pytest.raises(Unavailable):
        next(stream)


def test_a_reply_that_can_t_be_read_is_told_as_that(client: Client, worker: Worker) -> None:
    for value in (b"not json", {"hits": [{"rank": "first"}]}):
        pending = client.ask("why?")
        worker.reply(worker.take(), value)
        with pytest.raises(UnreadableReply):
            pending.result(30)


def test_fields_that_are_not_known_yet_are_passed_over(client: Client, worker: Worker) -> None:
    pending = client.ask("why?")
    worker.reply(worker.take(), {"request_id": "x", "mood": "fine", "hits": [HIT | {"colour": "red"}]})
    assert pending.result(30).hits[0].text == "ice"


def test_a_token_and_headers_go_with_each_question_and_a_call_s_own_win(deployment: Deployment, worker: Worker) -> None:
    kafka = deployment.settings.kafka
    tokens = iter(["one", "two", "three"])
    with Client(
        kafka.bootstrap_servers,
        topic_prefix=kafka.topic_prefix,
        token=lambda: next(tokens),
        headers={"traceparent": "00-a"},
    ) as client:
        client.ask("why?")
        client.stream("why?", headers={"traceparent": "00-b", "tracestate": "s"})
        client.ask("why?", headers={"authorization": "Bearer mine"})
        asked = [dict(worker.take().headers() or []) for _ in range(3)]
        asked.sort(key=lambda headers: headers["authorization"])
    assert [(h["authorization"], h["traceparent"], h.get("tracestate")) for h in asked] == [
        (b"Bearer mine", b"00-a", None),
        (b"Bearer one", b"00-a", None),
        (b"Bearer two", b"00-b", b"s"),
    ]
    assert {(h["kafka_replyTopic"], len(h["kafka_replyPartition"])) for h in asked} == {
        (deployment.topic("replies").encode(), 4)
    }
    assert len({h["kafka_correlationId"] for h in asked}) == 3


def test_a_question_that_is_given_up_is_forgotten_and_the_others_go_on(client: Client, worker: Worker) -> None:
    first = client.ask("first")
    worker.reply(worker.take(), {})
    first.result(30)
    given_up, stream, kept = client.ask("why?"), client.stream("why?"), client.ask("why?")
    assert given_up.cancel()
    stream.cancel()
    for asked in [worker.take() for _ in range(3)]:
        worker.reply(asked, {"request_id": "answered"})
    assert kept.result(30).request_id == "answered"
    assert given_up.cancelled()
    with pytest.raises(CancelledError):
        next(stream)
