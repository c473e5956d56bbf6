import asyncio
import struct
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import msgspec
import orjson
import pytest

from agents.query import Responder
from agents.stage import Item, Outgoing, check_size
from headrace.encoders import Vectors
from headrace.errors import Misconfigured, Poison, Transient
from headrace.llm.settings import LLMSettings
from headrace.retrieval import Retriever
from headrace.retrieval.settings import RetrievalSettings
from headrace.serving import Answerer, Corpus, OneCorpus
from headrace.serving.settings import QuerySettings
from headrace.stores import Stored, TextRow, VectorRow
from headrace.tracing import NO_SPAN
from schemas import Answer, Attributes, Delta, Key, Live, Manifest, Revision, chunk_id, decode, revision_id
from tests.fakes.encoder import FakeEncoder
from tests.fakes.records import record
from tests.fakes.stores import FakeManifestStore, FakeTextStore, FakeVectorStore
from tests.fakes.tracer import KeepingTracer
from topics import Names

KEY = Key("default", "d")
LIVE = Revision(version=1, timestamp=1, offset=1, fingerprint="f")
NOW_MS = 1_000_000
TEXT = "Water drives the turbine. The turbine drives the generator."


class Lines:
    """A log. `told` has its events and their fields."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, object]]] = []

    def error(self, event: str, **fields: object) -> None:
        self.told.append((event, fields))

    warning = error


class Bench:
    """An answerer over stores that hold one live document."""

    def __init__(self) -> None:
        self.key: bytes | None = b"k"
        self.span = NO_SPAN
        self.encoder = FakeEncoder()
        self.vectors = FakeVectorStore()
        manifests = FakeManifestStore()
        self.texts = FakeTextStore(manifests)
        self.partitions: dict[str, int] = {"p.replies": 4, "p.replies.shop": 2}
        self.responder = Responder(
            answerer=Answerer(
                corpora=OneCorpus(Corpus(Retriever(self.vectors, self.texts, RetrievalSettings()), self.encoder)),
                model=None,
                authenticator=None,
                retrieval=RetrievalSettings(),
                llm=LLMSettings(),
                settings=QuerySettings(),
            ),
            names=Names("p."),
            partitions_of=self.partitions_of,
            clock_ms=lambda: NOW_MS,
        )
        live = Live(revision=LIVE, chunks=1, at=datetime(2026, 1, 1, tzinfo=UTC))
        manifests.write({KEY: Stored(manifest=Manifest(tenant=KEY.tenant, doc_id=KEY.doc_id, live=live))})
        self.hold(TEXT)

    async def partitions_of(self, topic: str) -> int | None:
        return self.partitions.get(topic)

    def hold(self, *texts: str) -> None:
        attributes = Attributes(created_at=datetime(2026, 1, 1, tzinfo=UTC))
        for ordinal, text in enumerate(texts):
            name = chunk_id(revision_id(KEY, LIVE), ordinal)
            vector_row = VectorRow(
                id=name,
                doc_id=KEY.doc_id,
                version=1,
                ordinal=ordinal,
                content_hash="0",
                attributes=attributes,
                vector=self.encoder.vector(text),
            )
            text_row = TextRow(
                id=name,
                doc_id=KEY.doc_id,
                version=1,
                ordinal=ordinal,
                content_hash="0",
                attributes=attributes,
                text=text,
                start=0,
                end=len(text),
            )
            self.vectors.upsert(KEY.tenant, [vector_row])
            self.texts.upsert(KEY.tenant, [text_row])

    async def ask(self, value: bytes, **headers: bytes) -> list[Outgoing]:
        return await self.ask_all([(value, headers)])

    async def ask_all(self, asked: Sequence[tuple[bytes, dict[str, bytes]]]) -> list[Outgoing]:
        """What is replied to each, in the order in which they were asked; all are served side by side."""

        async def served(value: bytes, headers: dict[str, bytes]) -> list[Outgoing]:
            replies: list[Outgoing] = []

            async def write(outgoing: Iterable[Outgoing]) -> None:
                replies.extend(outgoing)

            one = record(value, key=self.key, topic="queries", headers=tuple(headers.items()))
            one = replace(one, span=self.span)
            await self.responder.serve(Item(record=one, message=self.responder.decode(one)), write)
            return replies

        replied = await asyncio.gather(*(served(value, headers) for value, headers in asked))
        return [reply for replies in replied for reply in replies]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def query(text: str = "turbine", **fields: object) -> bytes:
    return orjson.dumps({"query": text, **fields})


def answer(sent: Outgoing) -> Answer:
    return decode(sent.value or b"", Answer)


def error(sent: Outgoing) -> str | None:
    said = answer(sent).error
    assert dict(sent.headers).get("headrace.error") == (said.code.encode() if said is not None else None)
    return said.code if said is not None else None


class TestAddress:
    async def test_without_one_the_reply_goes_to_replies_under_the_requests_key(self, bench: Bench) -> None:
        [sent] = await bench.ask(query())
        assert (sent.topic, sent.key, sent.partition, sent.headers) == ("replies", b"k", None, ())

    @pytest.mark.parametrize(
        ("correlation", "topic", "partition"),
        [
            ("kafka_correlationId", "kafka_replyTopic", "kafka_replyPartition"),
            ("REPLY_CORRELATION_ID", "REPLY_TOPIC", "REPLY_PARTITION"),
        ],
    )
    async def test_the_reply_goes_where_the_headers_say_and_carries_the_correlation(
        self, bench: Bench, correlation: str, topic: str, partition: str
    ) -> None:
        headers = {correlation: b"\x00\xff", topic: b"p.replies.shop", partition: struct.pack(">i", 1)}
        [sent] = await bench.ask(query(), **headers)
        assert (sent.topic, sent.partition, sent.headers) == ("replies.shop", 1, ((correlation, b"\x00\xff"),))

    @pytest.mark.parametrize(
        "headers",
        [
            {"kafka_replyTopic": b"documents.raw"},
            {"kafka_replyTopic": b"replies"},
            {"kafka_replyTopic": b"p.repliesx"},
            {"kafka_replyTopic": b"p.replies.absent"},
            {"kafka_replyTopic": b"\xff"},
            {"kafka_replyTopic": b"p.replies.shop", "kafka_replyPartition": struct.pack(">i", 2)},
            {"kafka_replyTopic": b"p.replies.shop", "kafka_replyPartition": struct.pack(">i", -1)},
            {"REPLY_PARTITION": b"1"},
        ],
    )
    async def test_an_address_that_is_refused_is_answered_on_replies(
        self, bench: Bench, headers: dict[str, bytes]
    ) -> None:
        [sent] = await bench.ask(query(), kafka_correlationId=b"c", **headers)
        assert (sent.topic, sent.partition, error(sent)) == ("replies", None, "bad_request")
        assert dict(sent.headers)["kafka_correlationId"] == b"c"

    @pytest.mark.parametrize("name", ["kafka_replyTopic", "kafka_replyPartition", "headrace.deadline"])
    async def test_a_header_without_a_value_does_not_bring_the_worker_down(self, bench: Bench, name: str) -> None:
        [sent] = await bench.ask(query(), **{name: None})  # type: ignore[arg-type]
        assert sent.topic == "replies"

    async def test_a_broker_that_is_away_is_waited_for(self, bench: Bench) -> None:
        async def away(topic: str) -> int | None:
            raise Transient("kafka", "no broker answers")

        bench.responder = replace(bench.responder, partitions_of=away)
        with pytest.raises(Transient):
            await bench.ask(query())


class TestRefusals:
    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b"{",
            b"{}",
            query(""),
            query("x" * 8193),
            query(tenant="NO"),
            query(tenant="a\n"),
            query(top_k=0),
            query(top_k=101),
            query(mode="chat"),
            query(filters={"unknown": {"gt": 1}}),
        ],
    )
    async def test_what_cannot_be_asked_is_a_bad_request(self, bench: Bench, value: bytes) -> None:
        [sent] = await bench.ask(value, kafka_correlationId=b"c")
        assert error(sent) == "bad_request"
        assert dict(sent.headers)["kafka_correlationId"] == b"c"

    async def test_a_deadline_that_has_passed_is_not_worked_on(self, bench: Bench) -> None:
        [sent] = await bench.ask(query(request_id="r"), **{"headrace.deadline": b"%d" % (NOW_MS - 1)})
        assert (error(sent), answer(sent).request_id) == ("deadline_exceeded", "r")
        assert bench.encoder.calls == []

    async def test_what_is_too_late_when_it_is_embedded_is_not_searched_for(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        let_go, encode, searched = threading.Event(), bench.encoder.encode_queries, list[str]()
        monkeypatch.setattr(bench.encoder, "encode_queries", lambda texts: (let_go.wait(30), encode(texts))[1])
        monkeypatch.setattr(bench.texts, "search", lambda _, text, **__: (searched.append(text), [])[1])
        [late] = await bench.ask(query("late"), **{"headrace.deadline": b"%d" % (NOW_MS + 50)})
        let_go.set()
        [in_time] = await bench.ask(query("in time"))
        assert (error(late), error(in_time)) == ("deadline_exceeded", None)
        assert searched == ["in time"]

    async def test_a_deadline_to_come_is_no_matter(self, bench: Bench) -> None:
        [sent] = await bench.ask(query(), **{"headrace.deadline": b"%d" % (NOW_MS + 60_000)})
        assert error(sent) is None

    async def test_a_deadline_of_another_form_is_a_bad_request(self, bench: Bench) -> None:
        [sent] = await bench.ask(query(), **{"headrace.deadline": b"soon"})
        assert error(sent) == "bad_request"

    @pytest.mark.parametrize("digits", [20, 400, 5000])
    async def test_a_deadline_of_too_many_digits_is_a_bad_request(self, bench: Bench, digits: int) -> None:
        [sent] = await bench.ask(query(), **{"headrace.deadline": b"9" * digits})
        assert error(sent) == "bad_request"

    async def test_the_latest_deadline_of_64_bits_is_to_come(self, bench: Bench) -> None:
        [sent] = await bench.ask(query(), **{"headrace.deadline": b"%d" % (2**63 - 1)})
        assert error(sent) is None

    async def test_what_an_asker_names_is_cut_short_in_the_log_and_in_spans(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tracer, lines, long = KeepingTracer(), Lines(), "r" * 100_000
        monkeypatch.setattr("agents.query.log", lines)
        monkeypatch.setattr("headrace.serving.answerer.log", lines)
        bench.vectors.failing = Misconfigured("a bug")
        with tracer.message("process", ()) as bench.span:
            await bench.ask(query(request_id=long), kafka_replyTopic=b"p.replies." + long.encode())
            await bench.ask(query(request_id=long))
        assert [event for event, _ in lines.told] == ["reply_address_refused", "query_failed"]
        assert "r" * 250 not in str(lines.told)
        attributes = tracer.the("process").attributes
        assert attributes is not None
        assert attributes["headrace.request_id"] == "r" * 128


class TestAnswers:
    async def test_a_search_answers_with_hits(self, bench: Bench) -> None:
        [sent] = await bench.ask(query(request_id="r"))
        found = answer(sent)
        assert ([hit.text for hit in found.hits], found.answer, found.request_id) == ([TEXT], None, "r")

    async def test_the_time_of_every_step_is_told(self, bench: Bench) -> None:
        [sent] = await bench.ask(query(mode="answer"))
        timings = answer(sent).timings_ms
        assert list(timings) == ["wait", "embed", "milvus", "opensearch", "fuse", "read", "answer", "total"]
        assert timings["total"] >= max(timings.values())

    async def test_an_answer_cites_its_hits(self, bench: Bench) -> None:
        [sent] = await bench.ask(query(mode="answer"))
        text = answer(sent).answer
        assert text is not None
        assert {citation.chunk_id for citation in text.citations} == {answer(sent).hits[0].chunk_id}

    async def test_one_store_away_degrades_and_both_away_is_unavailable(self, bench: Bench) -> None:
        bench.vectors.failing = Transient("milvus", "away")
        [sent] = await bench.ask(query())
        assert (answer(sent).degraded, len(answer(sent).hits)) == (["milvus"], 1)
        bench.texts.failing = Transient("opensearch", "away")
        [sent] = await bench.ask(query())
        assert error(sent) == "unavailable"
        said = answer(sent).error
        assert said is not None
        assert said.retry_after_ms == 1000

    async def test_a_question_that_the_encoder_refuses_is_a_bad_request_and_those_beside_it_are_answered(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refusing(texts: Sequence[str]) -> Vectors:
            if "bad" in texts:
                raise Poison("text_refused", "the endpoint refuses it")
            return bench.encoder.encode(texts)

        monkeypatch.setattr(bench.encoder, "encode_queries", refusing)
        sent = await bench.ask_all([(query("a"), {}), (query("bad"), {}), (query("b"), {})])
        assert [error(one) for one in sent] == [None, "bad_request", None]

    async def test_a_failure_of_its_own_is_internal_and_tells_nothing_of_it(self, bench: Bench) -> None:
        bench.vectors.failing = Misconfigured("password: secret")
        [sent] = await bench.ask(query())
        assert error(sent) == "internal"
        assert b"secret" not in (sent.value or b"")

    async def test_questions_that_come_together_are_embedded_together_and_answered_in_order(self, bench: Bench) -> None:
        sent = await bench.ask_all(
            [(query("a", request_id="1"), {}), (b"{", {}), (query("b", request_id="2", tenant="empty"), {})]
        )
        assert bench.encoder.calls == [["a", "b"]]
        assert [(answer(one).request_id, error(one)) for one in sent] == [
            ("1", None),
            (None, "bad_request"),
            ("2", None),
        ]

    async def test_an_answer_that_no_record_holds_says_so(self, bench: Bench) -> None:
        bench.hold(*("turbine " + "\x01" * 30_000 for _ in range(10)))
        [sent] = await bench.ask(query())
        check_size(sent)
        said = answer(sent).error
        assert said is not None
        assert (said.code, said.message.endswith("ask for a smaller top_k")) == ("bad_request", True)


class TestStreams:
    async def test_the_hits_come_first_then_the_text_in_pieces_then_the_whole(self, bench: Bench) -> None:
        bench.hold("The turbine " + "turns and " * 60 + "stops.")
        sent = await bench.ask(query(mode="answer", stream=True))
        first, *pieces, last = sent
        whole = answer(last)
        assert whole.answer is not None
        assert answer(first) == msgspec.structs.replace(whole, answer=None, timings_ms=answer(first).timings_ms)
        assert len(pieces) > 1
        assert "".join(decode(piece.value or b"", Delta).delta for piece in pieces) == whole.answer.text
        headers = [dict(one.headers) for one in sent]
        assert len({one["stream-id"] for one in headers}) == 1
        assert [int(one["stream-index"]) for one in headers] == list(range(len(sent)))
        assert [one["stream-last-message"] for one in headers] == [b"false"] * (len(sent) - 1) + [b"true"]

    async def test_pieces_grow(self, bench: Bench) -> None:
        bench.hold("The turbine " + "turns and " * 300 + "stops.")
        _, *pieces, _, _ = await bench.ask(query(mode="answer", stream=True))
        lengths = [len(decode(piece.value or b"", Delta).delta) for piece in pieces]
        assert lengths == sorted(lengths)
        assert lengths[0] < 50 < 500 < lengths[-1]

    async def test_without_a_key_and_a_partition_all_of_it_goes_to_one_partition(self, bench: Bench) -> None:
        bench.key = None
        sent = await bench.ask(query(mode="answer", stream=True))
        assert len(sent) > 2
        [partition] = {one.partition for one in sent}
        assert partition in range(4)

    async def test_an_error_is_a_stream_of_one(self, bench: Bench) -> None:
        [sent] = await bench.ask(query(stream=True, filters={"unknown": {"gt": 1}}))
        assert error(sent) == "bad_request"
        assert dict(sent.headers)["stream-last-message"] == b"true"
