"""Publishing and asking through the client, as a program would."""

import asyncio
import concurrent.futures
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from itertools import pairwise

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from headrace_client import (
    Answer,
    BadRequest,
    Client,
    Closed,
    Deletion,
    Delta,
    Document,
    DocumentFailed,
    Found,
    Invalid,
    KafkaRefused,
    KafkaUnavailable,
    NoReply,
    Query,
)
from headrace_client.records import DOCUMENT_MAX_BYTES, document_record

from tests.client.connected.conftest import Connect
from tests.conftest import PARTITIONS, Deployment

TENANT = "clients"
TEXTS = {
    "glaciers": "Glaciers move because ice deforms under its own weight. A surging glacier can advance tens of metres a day.",
    "sourdough": "Sourdough rises with wild yeast. The starter is fed with flour and water every day before baking.",
    "submarines": "Submarines dive by flooding their ballast tanks. Compressed air blows the water out again to surface.",
}


def question(text: str = "How do submarines dive?", **more: object) -> Query:
    return Query(query=text, tenant=TENANT, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def library(client: Client) -> None:
    documents = [Document(doc_id=doc_id, tenant=TENANT, text=text, tags=["all"]) for doc_id, text in TEXTS.items()]
    told = list(client.publish_many(documents, wait=True))
    assert [one.error for one in told] == [None] * len(documents)
    assert {one.outcome.status for one in told if one.outcome} <= {"indexed", "unchanged"}


def test_a_document_lives_as_its_outcomes_tell(client: Client) -> None:
    doc_id = uuid.uuid4().hex
    query = Query(query="the gate of the sluice", tenant="life", filters={"doc_id": [doc_id]})

    def found() -> list[str]:
        return [hit.text for hit in client.ask(query).result().hits]

    first = client.publish_and_wait(Document(doc_id=doc_id, tenant="life", text="The gate is open.")).result()
    assert (first.status, first.tenant, first.doc_id, first.chunks, first.error) == ("indexed", "life", doc_id, 1, None)
    assert found() == ["The gate is open."]
    same = client.publish_and_wait(Document(doc_id=doc_id, tenant="life", text="The gate is open.")).result()
    assert same.status == "unchanged"
    assert same.version > first.version
    second = client.publish_and_wait(
        Document(doc_id=doc_id, tenant="life", text="The gate is shut."), urgent=True
    ).result()
    assert second.status == "indexed"
    assert found() == ["The gate is shut."]
    gone = client.delete_and_wait(doc_id, tenant="life").result()
    assert gone.status == "deleted"
    assert found() == []


def test_versions_of_one_s_own_are_told_by_their_numbers(client: Client) -> None:
    doc_id = uuid.uuid4().hex

    def numbered(version: int) -> Document:
        return Document(doc_id=doc_id, tenant="life", text=f"Version {version}.", version=version)

    assert client.publish_and_wait(numbered(2)).result().status == "indexed"
    older = client.publish_and_wait(numbered(1)).result()
    assert (older.status, older.version) == ("superseded", 1)
    gone = client.publish_and_wait(Deletion(doc_id=doc_id, tenant="life", version=3)).result()
    assert (gone.status, gone.version) == ("deleted", 3)


def test_versions_are_in_the_order_of_the_calls_even_within_a_millisecond(connect: Connect) -> None:
    client, doc_id = connect(), uuid.uuid4().hex
    waiting = [
        client.publish_and_wait(Document(doc_id=doc_id, tenant="life", text=f"Draft {n}.")) for n in range(5)
    ]  # The first ones of this client: they wait for its reader of events.
    outcomes = [pending.result() for pending in waiting]
    assert all(a.version < b.version for a, b in pairwise(outcomes))
    assert outcomes[-1].status == "indexed"
    assert {outcome.status for outcome in outcomes} <= {"indexed", "superseded"}


def test_a_delivery_says_where_kafka_keeps_the_record(client: Client, pipeline: Deployment) -> None:
    document = Document(doc_id=uuid.uuid4().hex, tenant="life", text="Kept.", version=7)
    delivery = client.publish(document, headers={"traceparent": "00-ab-cd-01"}).result()
    assert (delivery.topic, delivery.version) == (pipeline.topic("documents.raw"), 7)
    message = read(pipeline, delivery.topic, delivery.partition, delivery.offset)
    assert message.key() == f"life/{document.doc_id}".encode()
    assert dict(message.headers() or []) == {"traceparent": b"00-ab-cd-01"}


def test_a_document_that_can_t_be_processed_raises_its_dead_letter_s_reason(client: Client) -> None:
    document = Document(doc_id=uuid.uuid4().hex, tenant="life", text="x", tags=["t" * 600])
    with pytest.raises(DocumentFailed) as failed:
        client.publish_and_wait(document).result()
    assert failed.value.outcome.status == "failed"
    assert failed.value.outcome.error is not None
    assert failed.value.outcome.error.code == "attributes_too_large"
    [told] = client.publish_many([document], wait=True)
    assert isinstance(told.error, DocumentFailed)
    assert told.outcome == told.error.outcome or told.outcome is not None
    assert told.delivery is not None


def test_many_documents_are_told_one_by_one_and_a_bad_one_does_not_stop_the_others(client: Client) -> None:
    documents = [
        Document(doc_id=f"many-{n}", tenant="many", text="x" * DOCUMENT_MAX_BYTES if n == 7 else f"Note {n}.")
        for n in range(300)
    ]
    told = list(client.publish_many(documents, in_flight=50))
    assert [one.document.doc_id for one in told] == [document.doc_id for document in documents]
    assert [n for n, one in enumerate(told) if one.error] == [7]
    assert isinstance(told[7].error, Invalid)
    assert all(one.delivery for one in told if not one.error)
    for _ in client.publish_many([Deletion(doc_id=one.doc_id, tenant="many") for one in documents]):
        pass


def test_more_than_the_queue_takes_is_sent_all_the_same(connect: Connect) -> None:
    client = connect(kafka={"queue.buffering.max.messages": 5})
    documents = [Document(doc_id=f"queue-{n % 3}", tenant="queue", text=f"Note {n}.") for n in range(60)]
    told = list(client.publish_many(documents))
    assert all(one.delivery and not one.error for one in told)
    waited = list(client.publish_many(documents[:20], wait=True))
    assert [one.error for one in waited] == [None] * 20


@pytest.mark.usefixtures("library")
def test_an_answer_cites_what_it_found(client: Client) -> None:
    answer = client.ask(question(mode="answer", request_id=uuid.uuid4().hex)).result()
    assert answer.hits[0].doc_id == "submarines"
    assert answer.answer is not None
    assert answer.answer.citations[0].doc_id == "submarines"
    assert answer.degraded == []


@pytest.mark.usefixtures("library")
def test_a_hundred_questions_in_flight_each_get_their_own_answer(client: Client) -> None:
    asked = {f"request-{n}-{uuid.uuid4().hex}": f"How do submarines dive {n} times?" for n in range(100)}
    waiting = {
        request_id: client.ask(question(text, request_id=request_id), timeout_s=120)
        for request_id, text in asked.items()
    }
    done = concurrent.futures.wait(waiting.values(), timeout=120)
    assert not done.not_done
    assert {request_id: pending.result().request_id for request_id, pending in waiting.items()} == {
        request_id: request_id for request_id in asked
    }


@pytest.mark.usefixtures("library")
def test_a_stream_is_the_hits_the_text_and_the_whole(client: Client) -> None:
    stream = client.stream(question(mode="answer"))
    pieces = list(stream)
    assert isinstance(pieces[0], Found)
    assert isinstance(pieces[-1], Answer)
    deltas = pieces[1:-1]
    assert deltas
    assert all(isinstance(piece, Delta) for piece in deltas)
    assert pieces[-1].answer is not None
    assert "".join(piece.delta for piece in deltas if isinstance(piece, Delta)) == pieces[-1].answer.text == stream.text
    assert pieces[0].hits == pieces[-1].hits
    assert stream.whole.result() == pieces[-1]


async def test_coroutines_have_the_same_methods(connect: Connect, library: None) -> None:
    del library
    async with connect() as client:
        outcome = await client.publish_and_wait(Document(doc_id="async", tenant="life", text=f"Now {time.time()}."))
        assert outcome.status == "indexed"
        answers = await asyncio.gather(*(client.ask(question(), timeout_s=60) for _ in range(20)))
        assert {answer.hits[0].doc_id for answer in answers} == {"submarines"}
        pieces = [type(piece) async for piece in client.stream(question(mode="answer"))]
        assert (pieces[0], pieces[-1]) == (Found, Answer)
        told = [one.error async for one in client.publish_many([Deletion(doc_id="async", tenant="life")], wait=True)]
        assert told == [None]
    with pytest.raises(Closed):
        client.ask("too late")


def test_the_deadline_that_headrace_gets_is_the_client_s(client: Client, pipeline: Deployment) -> None:
    before = time.time() * 1000
    topic = pipeline.topic("queries")
    reader, ends = tail(pipeline, topic)
    client.ask(question(), timeout_s=77).result()
    after = time.time() * 1000
    deadlines = []
    while not deadlines:
        message = reader.poll(1)
        if message is not None and not message.error():
            deadlines.append(int(dict(message.headers() or [])["headrace.deadline"]))
    reader.close()
    assert before + 77_000 - 1 <= deadlines[0] <= after + 77_000 + 1
    assert ends


def test_what_headrace_refuses_is_an_error_with_its_code(client: Client) -> None:
    with pytest.raises(BadRequest) as refused:
        client.ask(question(filters={"colour": "red"})).result()
    assert (refused.value.code, "colour" in refused.value.message) == ("bad_request", True)
    with pytest.raises(BadRequest):
        list(client.stream(question(filters={"colour": "red"})))


@pytest.mark.usefixtures("library")
def test_replies_may_come_on_a_topic_of_one_s_own(connect: Connect, pipeline: Deployment) -> None:
    admin = AdminClient(pipeline.settings.kafka.confluent())
    for future in admin.create_topics([NewTopic(pipeline.topic("replies.app"), 1, 1)]).values():
        future.result(30)
    client = connect(reply_topic="replies.app")
    # The query worker's list of topics may be some seconds old.
    deadline = time.monotonic() + 60
    while True:
        try:
            assert client.ask(question(), timeout_s=5).result().hits[0].doc_id == "submarines"
            return
        except NoReply:
            assert time.monotonic() < deadline


@pytest.mark.usefixtures("library")
def test_a_client_that_starts_while_others_flood_the_reply_topic_gets_its_own_answers(
    connect: Connect, pipeline: Deployment
) -> None:
    flooding = threading.Event()
    producer = Producer({"bootstrap.servers": pipeline.settings.kafka.bootstrap_servers, "linger.ms": 20})
    sent = 0

    def flood() -> None:
        nonlocal sent
        while not flooding.is_set():
            for partition in range(PARTITIONS):
                for _ in range(100):
                    producer.produce(
                        pipeline.topic("replies"),
                        b'{"hits":[]}',
                        headers=[("kafka_correlationId", uuid.uuid4().hex.encode())],
                        partition=partition,
                    )
                    sent += 1
            producer.poll(0.05)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        client = connect()
        answers = [client.ask(question(), timeout_s=60) for _ in range(10)]
        assert [pending.result().hits[0].doc_id for pending in answers] == ["submarines"] * 10
        assert sent > 0
    finally:
        flooding.set()
        thread.join()
        producer.flush(30)


def test_a_topic_that_is_not_there_is_refused_by_its_name(pipeline: Deployment) -> None:
    with Client(pipeline.settings.kafka.bootstrap_servers, topic_prefix="nowhere.") as client:
        with pytest.raises(KafkaRefused, match=r"nowhere\.replies"):
            client.ask("why?").result()
        with pytest.raises(KafkaRefused, match=r"nowhere\.documents\.events"):
            client.publish_and_wait(Document(doc_id="a", text="x")).result()


def test_questions_that_nobody_answers_end_with_no_reply(deployment: Deployment) -> None:
    kafka = deployment.settings.kafka  # Topics without workers.
    with Client(kafka.bootstrap_servers, topic_prefix=kafka.topic_prefix) as client:
        with pytest.raises(NoReply, match="query worker"):
            client.ask("why?", timeout_s=2).result()
        with pytest.raises(NoReply):
            client.publish_and_wait(Document(doc_id="a", text="x"), timeout_s=2).result()
        open_question, stream = client.ask("why?"), client.stream("why?")
        open_document = client.publish_and_wait(Document(doc_id="a", text="x"))
    for pending in (open_question, open_document, stream.whole):
        with pytest.raises(Closed):
            pending.result(0)
    with pytest.raises(Closed):
        next(stream)


def test_a_kafka_that_is_away_is_told_as_that() -> None:
    with Client("127.0.0.1:1", kafka={"delivery.timeout.ms": 1500}) as client:
        for pending in (
            client.ask("why?", timeout_s=1),
            client.stream("why?", timeout_s=1).whole,
            client.publish_and_wait(Document(doc_id="a", text="x"), timeout_s=1),
            client.publish(Document(doc_id="a", text="x")),
        ):
            with pytest.raises(KafkaUnavailable, match=r"no broker answered at 127\.0\.0\.1:1"):
                pending.result(30)


def test_a_reader_that_nobody_waits_for_ends_and_another_begins_when_it_is_wanted(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace_client.kafka.IDLE_S", 0.2)
    before = set(threading.enumerate())
    client = connect()
    for _ in range(3):
        client.ask(question()).result()
        outcome = client.publish_and_wait(Document(doc_id="idle", tenant="life", text=f"{time.time()}")).result()
        assert outcome.status == "indexed"
        deadline = time.monotonic() + 30
        while len(set(threading.enumerate()) - before) > 1:  # The sender stays.
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.usefixtures("library")
def test_one_client_serves_many_threads(client: Client) -> None:
    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        asked = [threads.submit(lambda: client.ask(question(), timeout_s=120).result()) for _ in range(64)]
        assert {answer.result().hits[0].doc_id for answer in asked} == {"submarines"}


def test_the_largest_record_that_is_not_refused_is_one_that_kafka_takes(deployment: Deployment) -> None:
    kafka = deployment.settings.kafka
    empty = document_record("documents.raw", Document(doc_id="large", text=""), ())
    with Client(kafka.bootstrap_servers, topic_prefix=kafka.topic_prefix) as client:
        document = Document(doc_id="large", text="x" * (DOCUMENT_MAX_BYTES - empty.size))
        assert client.publish(document).result().offset == 0
        with pytest.raises(Invalid):
            client.publish(Document(doc_id="large", text=document.text + "x"))


async def test_closing_ends_who_waits_for_room_in_the_queue() -> None:
    client = Client("127.0.0.1:1", kafka={"queue.buffering.max.messages": 1})
    client.publish(Document(doc_id="a", text="x"))
    told = client.publish_many([Document(doc_id="b", text="x")])
    waiting = asyncio.ensure_future(anext(told))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await asyncio.to_thread(client.close, 0)
    assert isinstance((await waiting).error, Closed)


def test_closing_leaves_no_thread_and_loses_nothing_that_was_published(pipeline: Deployment) -> None:
    kafka = pipeline.settings.kafka
    before = set(threading.enumerate())
    client = Client(kafka.bootstrap_servers, topic_prefix=kafka.topic_prefix)
    client.ask(question()).result()
    sent = [client.publish(Document(doc_id=f"last-{n}", tenant="life", text="x")) for n in range(20)]
    client.close()
    assert [pending.result(0).topic for pending in sent] == [pipeline.topic("documents.raw")] * 20
    assert not set(threading.enumerate()) - before


def test_a_client_is_not_used_after_a_fork_and_a_program_that_forgets_to_close_ends(pipeline: Deployment) -> None:
    kafka = pipeline.settings.kafka
    program = f"""
        import os, sys
        from headrace_client import Client, Closed, Query
        used, fresh = (Client({kafka.bootstrap_servers!r}, topic_prefix={kafka.topic_prefix!r}) for _ in range(2))
        used.ask(Query(query="ice", tenant={TENANT!r})).result()
        child = os.fork()
        if child == 0:
            try:
                used.ask("ice")
            except Closed as error:
                print("child:", error, flush=True)
            print(len(fresh.ask(Query(query="ice", tenant="nobody")).result().hits), "hits", flush=True)
            sys.exit(0)
        print("child ended with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        used.publish_many  # Never closed.
    """
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)], capture_output=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr.decode()
    out = run.stdout.decode()
    assert "child: the client was used before this process was forked" in out
    assert "0 hits" in out
    assert "child ended with 0" in out


def read(pipeline: Deployment, topic: str, partition: int, offset: int) -> Message:
    reader = Consumer({"bootstrap.servers": pipeline.settings.kafka.bootstrap_servers, "group.id": uuid.uuid4().hex})
    reader.assign([TopicPartition(topic, partition, offset)])
    try:
        while True:
            message = reader.poll(1)
            if message is not None and not message.error():
                return message
    finally:
        reader.close()


def tail(pipeline: Deployment, topic: str) -> tuple[Consumer, list[TopicPartition]]:
    reader = Consumer({"bootstrap.servers": pipeline.settings.kafka.bootstrap_servers, "group.id": uuid.uuid4().hex})
    ends = [
        TopicPartition(topic, partition, reader.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)[1])
        for partition in range(PARTITIONS)
    ]
    reader.assign(ends)
    return reader, ends
