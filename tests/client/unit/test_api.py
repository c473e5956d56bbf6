"""What a program can rely on by name, and what can be known without a server."""

import asyncio
import concurrent.futures
import inspect
import sys
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import headrace_client
import pytest
from headrace_client import (
    Answer,
    AnswerError,
    AnswerFailed,
    AnswerStream,
    Client,
    Closed,
    Delta,
    Document,
    HeadraceError,
    Invalid,
    KafkaRefused,
    NoReply,
    Pending,
    Query,
    Reset,
)
from headrace_client.errors import answer_failed
from headrace_client.messages import AnswerText
from headrace_client.publishing import Delivery, Publications, Submission

import schemas

NOWHERE = "127.0.0.1:1"
WHOLE = Answer(answer=AnswerText(text="ab", citations=[], model="m"))


def test_the_package_offers_what_it_names_and_nothing_else() -> None:
    named = {name for name in vars(headrace_client) if not name.startswith("_")}
    modules = {name for name in named if inspect.ismodule(getattr(headrace_client, name))}
    assert named - modules == set(headrace_client.__all__)


def test_the_client_needs_a_kafka_client_and_a_codec_alone() -> None:
    folder = Path(__file__).parents[3] / "client"
    needs = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["dependencies"]
    named = {need.partition(">")[0].replace("-", "_") for need in needs}
    assert named == {"confluent_kafka", "msgspec"}
    imported = {
        line.split()[1].partition(".")[0]
        for file in (folder / "src").rglob("*.py")
        for line in file.read_text().splitlines()
        if line.startswith(("import ", "from "))
    }
    assert imported - sys.stdlib_module_names == named | {"headrace_client"}


@pytest.mark.parametrize("code", get_args(schemas.ErrorCode))
def test_every_error_code_of_the_contract_is_an_error_of_its_own(code: Any) -> None:
    error = answer_failed(AnswerError(code=code, message="why", retry_after_ms=5))
    assert type(error) is not AnswerFailed
    assert type(error).__name__.lower() == code.replace("_", "")
    assert (error.code, error.retry_after_ms, str(error)) == (code, 5, f"{code}: why")


def test_time_that_ran_out_is_a_timeout_on_whichever_side_it_was_noticed() -> None:
    assert issubclass(NoReply, TimeoutError)
    assert issubclass(headrace_client.DeadlineExceeded, TimeoutError)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Client(NOWHERE, reply_topic="documents.raw"),
        lambda: Client(NOWHERE, reply_topic="replies."),
        lambda: Client(NOWHERE, kafka={"partitioner": "random"}),
        lambda: Client(NOWHERE, kafka={"group.id": "mine"}),
    ],
)
def test_a_setting_that_would_break_the_contract_is_refused(make: Callable[[], Client]) -> None:
    with pytest.raises(Invalid):
        make()


def test_a_setting_that_librdkafka_does_not_know_is_told_at_the_first_call() -> None:
    with Client(NOWHERE, kafka={"nonsense": 1}) as client, pytest.raises(KafkaRefused, match="nonsense"):
        client.ask("why?")


def test_making_a_client_connects_to_nothing_and_closing_it_twice_is_fine() -> None:
    before = threading.active_count()
    client = Client(NOWHERE)
    assert threading.active_count() == before
    client.close()
    client.close()
    for call in (lambda: client.ask("why?"), lambda: client.publish(Document(doc_id="a", text="x"))):
        with pytest.raises(Closed):
            call()


def test_what_can_t_be_sent_is_raised_by_the_call_itself() -> None:
    with Client(NOWHERE) as client:
        for call in (
            lambda: client.publish(Document(text="no doc_id")),
            lambda: client.publish_and_wait(Document(doc_id="a", tenant="UPPER", text="x")),
            lambda: client.delete(""),
            lambda: client.ask(""),
            lambda: client.stream(Query(query="x", top_k=101)),
            lambda: client.publish_many([], in_flight=0),
            lambda: client.ask("x", headers={"kafka_replyTopic": "replies"}),
        ):
            with pytest.raises(Invalid):
                call()


async def test_a_result_may_be_awaited_gathered_and_waited_for() -> None:
    pending: Pending[int] = Pending()
    threading.Timer(0.01, pending.settle, [5]).start()
    assert await asyncio.gather(pending, pending) == [5, 5]
    assert pending.result(0) == 5
    assert concurrent.futures.wait([pending]).done == {pending}


async def test_a_wait_that_is_cancelled_gives_the_result_up() -> None:
    pending: Pending[int] = Pending()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(pending, 0.01)
    assert pending.cancelled()
    assert not pending.settle(5)


def stream(*pieces: Any) -> tuple[AnswerStream, Pending[Answer]]:
    whole: Pending[Answer] = Pending()
    made = AnswerStream(whole)
    for piece in pieces:
        made.offer(piece)
    return made, whole


def test_the_text_of_a_stream_grows_is_reset_and_ends_as_the_answer_s() -> None:
    made, whole = stream(Delta(delta="x"), Reset(reason="another_stream"), Delta(delta="a"))
    whole.settle(WHOLE)
    assert [(type(piece).__name__, made.text) for piece in made] == [
        ("Delta", "x"), ("Reset", ""), ("Delta", "a"), ("Answer", "ab"),
    ]  # fmt: skip
    assert list(made) == []
    assert made.whole.result() == WHOLE


def test_a_stream_that_fails_gives_its_pieces_and_then_raises_every_time() -> None:
    made, whole = stream(Delta(delta="a"))
    whole.fail(NoReply("nothing"))
    assert next(made) == Delta(delta="a")
    for _ in range(2):
        with pytest.raises(NoReply):
            next(made)


async def test_a_reader_of_a_stream_that_is_cancelled_loses_no_piece() -> None:
    made, whole = stream()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(made), 0.01)
    made.offer(Delta(delta="a"))
    whole.settle(WHOLE)
    assert [piece async for piece in made] == [Delta(delta="a"), WHOLE]


async def test_a_piece_that_comes_at_the_moment_of_the_cancellation_is_kept() -> None:
    made, whole = stream()
    reader = asyncio.ensure_future(anext(made))
    await asyncio.sleep(0)
    made.offer(Delta(delta="a"))  # Given to the reader, who is cancelled before he can take it.
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    whole.settle(WHOLE)
    assert [piece async for piece in made] == [Delta(delta="a"), WHOLE]


def test_many_documents_are_told_in_their_order_with_so_many_on_their_way_at_most() -> None:
    on_their_way: list[Submission] = []
    most = 0

    def submit(document: Document) -> Submission:
        nonlocal most
        if document.text == "bad":
            raise Invalid("bad")
        on_their_way.append(Submission(size=1, delivered=Pending()))
        most = max(most, sum(not one.delivered.done() for one in on_their_way))
        threading.Timer(0.001, on_their_way[-1].delivered.settle, [Delivery("t", 0, 0, 0)]).start()
        return on_their_way[-1]

    documents = [Document(doc_id=str(n), text="bad" if n == 3 else "x") for n in range(20)]
    told = list(Publications(iter(documents), submit, Pending, in_flight=4))  # type: ignore[arg-type]
    assert [one.document for one in told] == documents
    assert [one.error is None for one in told] == [n != 3 for n in range(20)]
    assert 1 <= most <= 4


async def test_many_documents_wait_for_room_in_a_full_queue() -> None:
    room = iter([False, True, False, False, True, True])

    def submit(_: object) -> Submission:
        if not next(room):
            raise headrace_client.QueueFull("full")
        submission = Submission(size=1, delivered=Pending())
        submission.delivered.settle(Delivery("t", 0, 0, 0))
        return submission

    def tick() -> Pending[None]:
        ticked: Pending[None] = Pending()
        threading.Timer(0.001, ticked.settle, [None]).start()
        return ticked

    documents = [Document(doc_id=str(n), text="x") for n in range(3)]
    told = [one async for one in Publications(documents, submit, tick, in_flight=10)]
    assert [one.document for one in told] == documents
    assert all(one.error is None for one in told)
    assert list(room) == []


def test_every_error_has_one_ancestor() -> None:
    errors = [found for name in headrace_client.__all__ if isinstance(found := getattr(headrace_client, name), type)]
    assert all(issubclass(error, HeadraceError) for error in errors if issubclass(error, BaseException))
