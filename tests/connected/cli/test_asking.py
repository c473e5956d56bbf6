"""`ask` against a responder that knows the contract and nothing else."""

import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from confluent_kafka import Message, Producer

from headrace.cli import main
from headrace.cli.asking import Asker
from headrace.cli.kafka import Tail, header, headers_of, raw_key, raw_value
from headrace.errors import Transient
from schemas import Answer, AnswerError, AnswerText, Citation, Delta, Hit, Query, decode, encode
from topics.settings import KafkaSettings

TEXT = "Hepcidin was first discovered in human urine. It is made by the liver."
HIT = Hit(
    rank=1,
    score=1.0,
    doc_id="1560",
    chunk_id="c-0",
    ordinal=0,
    version=1,
    text=TEXT,
    start=10,
    end=10 + len(TEXT),
    title="Hepcidin",
)
WHOLE = Answer(
    hits=[HIT],
    answer=AnswerText(
        text="In human urine [1].",
        citations=[Citation(marker="[1]", chunk_id="c-0", doc_id="1560", start=10, end=55)],
        model="extractive",
    ),
)
Reply = tuple[bytes, dict[str, str]]


@contextmanager
def responder(kafka: KafkaSettings, reply: Callable[[Query], list[Reply]]) -> Iterator[list[Message]]:
    """Answers every query with these records, each after one that belongs to somebody else."""
    asked: list[Message] = []
    stop, ready = threading.Event(), threading.Event()

    def run() -> None:
        producer = Producer(kafka.confluent())
        with Tail(kafka.confluent(), kafka.names.topic("queries")) as queries:
            ready.set()
            while not stop.is_set():
                if (message := queries.poll(0.1)) is None:
                    continue
                asked.append(message)
                headers = dict(headers_of(message))
                topic = headers["kafka_replyTopic"].decode()
                [partition] = struct.unpack(">i", headers["kafka_replyPartition"])
                for value, more in reply(decode(raw_value(message) or b"", Query)):
                    for correlation in (b"somebody else's", headers["kafka_correlationId"]):
                        producer.produce(
                            topic,
                            value,
                            raw_key(message),
                            partition=partition,
                            headers=[("kafka_correlationId", correlation), *more.items()],
                        )
                producer.flush()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(30)
    try:
        yield asked
    finally:
        stop.set()
        thread.join()


def stream(*pieces: Answer | Delta, stream_id: str = "s") -> list[Reply]:
    return [
        (
            encode(piece),
            {
                "stream-id": stream_id,
                "stream-index": str(index),
                "stream-last-message": "true" if index == len(pieces) - 1 else "false",
            },
        )
        for index, piece in enumerate(pieces)
    ]


def test_a_reply_comes_back_and_the_query_said_where_and_until_when(kafka: KafkaSettings) -> None:
    with responder(kafka, lambda _: [(encode(WHOLE), {})]) as asked, Asker(kafka) as asker:
        before = int(time.time() * 1000)
        assert asker.ask(Query(query="x"), timeout_s=20) == WHOLE
        assert asker.ask(Query(query="y"), timeout_s=20) == WHOLE
    deadline = header(asked[0], "headrace.deadline") or b""
    assert deadline.isdigit()
    assert before + 20_000 <= int(deadline) <= time.time() * 1000 + 20_000
    assert header(asked[0], "kafka_replyTopic") == kafka.names.topic("replies").encode()
    assert header(asked[0], "kafka_correlationId") != header(asked[1], "kafka_correlationId")


def test_a_streamed_reply_is_shown_in_pieces_and_is_whole_in_the_end(kafka: KafkaSettings) -> None:
    pieces: list[Answer | Delta] = []
    hits = Answer(hits=[HIT])
    replies = stream(hits, Delta(delta="In human "), Delta(delta="urine [1]."), WHOLE)
    with responder(kafka, lambda _: [replies[0], replies[1], replies[1], *replies[2:]]), Asker(kafka) as asker:
        assert asker.ask(Query(query="x", stream=True), timeout_s=20, on_piece=pieces.append) == WHOLE
    assert pieces == [hits, Delta(delta="In human "), Delta(delta="urine [1].")]


def test_a_stream_that_broke_off_is_followed_by_the_one_that_begins_again(kafka: KafkaSettings) -> None:
    pieces: list[Answer | Delta] = []
    hits = Answer(hits=[HIT])
    broken = stream(hits, Delta(delta="In"), WHOLE, stream_id="one")[:2]
    again = stream(hits, Delta(delta="In human"), WHOLE, stream_id="two")
    with responder(kafka, lambda _: [*broken, *again]), Asker(kafka) as asker:
        assert asker.ask(Query(query="x", stream=True), timeout_s=20, on_piece=pieces.append) == WHOLE
    assert pieces == [hits, Delta(delta="In"), hits, Delta(delta="In human")]


def test_no_reply_in_time_is_a_server_that_is_away(kafka: KafkaSettings) -> None:
    with Asker(kafka) as asker, pytest.raises(Transient, match="no reply within 1 s"):
        asker.ask(Query(query="x"), timeout_s=1)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out, said.err


def test_the_command_prints_the_answer_with_its_citation(
    environment: KafkaSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    with responder(environment, lambda _: [(encode(WHOLE), {})]) as asked:
        code, out, _ = run(capsys, "ask", "where?", "--filter", "tag=a", "--top-k", "3", "--tenant", "t")
    assert code == 0
    assert "In human urine [1]." in out
    assert "1560 · Hepcidin · characters 10–55" in out
    assert "“Hepcidin was first discovered in human urine.”" in out
    query = decode(raw_value(asked[0]) or b"", Query)
    assert (query.query, query.mode, query.top_k, query.tenant) == ("where?", "answer", 3, "t")
    assert query.filters == {"tags": {"all": ["a"]}}


def test_the_command_exits_with_1_for_an_error_and_prints_json_all_the_same(
    environment: KafkaSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    error = Answer(error=AnswerError(code="unavailable", message="milvus is away"))
    with responder(environment, lambda _: [(encode(error), {"headrace.error": "unavailable"})]):
        code, out, err = run(capsys, "ask", "x", "--search", "--json")
    assert code == 1
    assert decode(out.encode(), Answer) == error
    assert "milvus is away" in err
