"""What counts as fresh: the whole way of a document through the stages, over stores in memory."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import orjson
import pytest
from prometheus_client import REGISTRY

from agents.chunk import FRESH_MS, Chunker
from agents.commit import Committer, decode_receipt
from agents.embed import Embedder, decode_chunks
from agents.freshness import Freshness
from agents.stage import Item, Outgoing, Record
from agents.upsert_milvus import MilvusUpserter
from agents.upsert_opensearch import OpenSearchUpserter
from agents.upserts import decode_embeddings
from headrace.errors import Transient
from headrace.stores import Stored
from schemas import Chunking, Key, Receipt
from tests.fakes.encoder import FakeEncoder, FakeTokenizer
from tests.fakes.records import record
from tests.fakes.stores import FakeManifestStore, FakeTextStore, FakeVectorStore
from topics import BY_NAME, Lane

AGAIN = (("headrace.replays", b"1"),)


def now_ms() -> int:
    return int(time.time() * 1000)


@dataclass
class Pipeline:
    manifests: FakeManifestStore = field(default_factory=FakeManifestStore)
    telling: bool = True
    recipe: str = "test/model"

    def __post_init__(self) -> None:
        self.encoder = FakeEncoder()
        self.vectors, self.texts = FakeVectorStore(), FakeTextStore(self.manifests)
        self.committer = Committer(
            manifests=self.manifests,
            vectors=self.vectors,
            texts=self.texts,
            freshness=Freshness(lambda: self.telling),
        )

    async def receipts(self, *, middle: tuple[tuple[str, bytes], ...] = (), **of_record: Any) -> list[Item[Receipt]]:
        """What a document's record becomes on its way to `commit`; its embeddings have the headers `middle`."""
        chunker = Chunker(
            tokenizer=FakeTokenizer(),
            encoder=self.recipe,
            encoder_max_tokens=256,
            default=Chunking(max_tokens=12, overlap_tokens=0),
            manifests=self.manifests,
        )
        sent = record(orjson.dumps({"text": "one two"}), **of_record)
        chunks = await chunker.work([Item(record=sent, message=chunker.decode(sent))])
        batches = [Item(record=one, message=decode_chunks(one)) for one in came(chunks)]
        embeddings = list(came(await Embedder(encoder=self.encoder).work(batches), middle))
        items = [Item(record=one, message=decode_embeddings(one)) for one in embeddings]
        made = await MilvusUpserter(vectors=self.vectors, encoder=self.encoder.identity).work(items)
        made += await OpenSearchUpserter(texts=self.texts).work(items)
        return [Item(record=one, message=decode_receipt(one)) for one in came(made)]

    async def commit(self, receipts: list[Item[Receipt]]) -> None:
        confirm(await self.committer.work(receipts))

    async def publish(self, **of_record: Any) -> None:
        await self.commit(await self.receipts(**of_record))


def came(outgoing: Iterable[Outgoing], headers: tuple[tuple[str, bytes], ...] = ()) -> Iterable[Record]:
    for one in outgoing:
        lane = BY_NAME[one.topic].lane
        yield record(one.value, key=one.key, topic=one.topic, lane=lane, headers=headers, timestamp=now_ms())


def confirm(outgoing: Iterable[Outgoing]) -> None:
    for one in outgoing:
        assert one.on_confirmed is not None
        one.on_confirmed()


class Seen:
    """What was observed since."""

    def __init__(self) -> None:
        self._before = self._now()

    @staticmethod
    def _now() -> dict[str, tuple[float, float]]:
        def value(name: str, lane: Lane) -> float:
            return REGISTRY.get_sample_value(f"headrace_freshness_seconds_{name}", {"lane": lane}) or 0.0

        return {lane: (value("count", lane), value("sum", lane)) for lane in ("bulk", "urgent")}

    @property
    def counts(self) -> dict[str, float]:
        return {lane: count - self._before[lane][0] for lane, (count, _) in self._now().items()}

    @property
    def seconds(self) -> float:
        return sum(total - self._before[lane][1] for lane, (_, total) in self._now().items())


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline()


@pytest.fixture
def seen() -> Seen:
    return Seen()


NONE = {"bulk": 0, "urgent": 0}
ONE = {"bulk": 1, "urgent": 0}


async def test_a_version_counts_once_from_its_records_timestamp_when_its_event_is_confirmed(
    pipeline: Pipeline, seen: Seen
) -> None:
    outgoing = await pipeline.committer.work(await pipeline.receipts(timestamp=now_ms() - 3_600_000))
    assert seen.counts == NONE
    confirm(outgoing)
    assert seen.counts == ONE
    assert 3_600 <= seen.seconds < 3_700


async def test_it_counts_in_the_lane_that_it_came_on(pipeline: Pipeline, seen: Seen) -> None:
    await pipeline.publish(timestamp=now_ms(), lane="urgent")
    assert seen.counts == {"bulk": 0, "urgent": 1}


async def test_a_deletion_counts_and_a_clock_that_is_ahead_is_no_negative_time(pipeline: Pipeline, seen: Seen) -> None:
    chunker_sees = record(None, timestamp=now_ms() + 60_000)
    chunker = Chunker(
        tokenizer=FakeTokenizer(), encoder="e", encoder_max_tokens=256, default=Chunking(), manifests=pipeline.manifests
    )
    chunks = await chunker.work([Item(record=chunker_sees, message=chunker.decode(chunker_sees))])
    batches = [Item(record=one, message=decode_chunks(one)) for one in came(chunks)]
    embedded = await Embedder(encoder=pipeline.encoder).work(batches)
    items = [Item(record=one, message=decode_embeddings(one)) for one in came(embedded)]
    made = await OpenSearchUpserter(texts=pipeline.texts).work(items)
    made += await MilvusUpserter(vectors=pipeline.vectors, encoder=pipeline.encoder.identity).work(items)
    await pipeline.commit([Item(record=one, message=decode_receipt(one)) for one in came(made)])
    assert (seen.counts, seen.seconds) == (ONE, 0)


async def test_receipts_and_records_that_come_again_count_no_more(pipeline: Pipeline, seen: Seen) -> None:
    stamped = now_ms()
    receipts = await pipeline.receipts(timestamp=stamped)
    await pipeline.commit(receipts)
    await pipeline.commit(receipts)
    await pipeline.publish(timestamp=stamped)
    assert seen.counts == ONE


async def test_work_that_was_tried_again_counts_once(
    pipeline: Pipeline, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipts = await pipeline.receipts(timestamp=now_ms())
    await pipeline.commit(receipts)
    update = [Item(record=one.record, message=of_the_next_version(one.message)) for one in receipts]

    def away(tenant: str, ids: object) -> None:
        raise Transient("milvus", "away")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.vectors, "delete", away)  # The update is live by then, and what it replaced not swept.
        with pytest.raises(Transient):
            await pipeline.committer.work(update)
    await pipeline.commit(update)
    await pipeline.commit(update)
    assert seen.counts == {"bulk": 2, "urgent": 0}


def of_the_next_version(receipt: Receipt) -> Receipt:
    revision = msgspec.structs.replace(receipt.revision, version=receipt.revision.version + 1, fingerprint="another")
    return msgspec.structs.replace(receipt, revision=revision)


async def test_what_somebody_else_made_live_first_is_not_counted_here(pipeline: Pipeline, seen: Seen) -> None:
    receipts = await pipeline.receipts(timestamp=now_ms())
    rival = Committer(manifests=pipeline.manifests, vectors=pipeline.vectors, texts=pipeline.texts)
    write = pipeline.manifests.write

    def raced(replacements: Mapping[Key, Stored]) -> set[Key]:
        pipeline.manifests.write = write  # type: ignore[method-assign]
        rival._work(receipts)
        return write(replacements)

    pipeline.manifests.write = raced  # type: ignore[method-assign]
    await pipeline.commit(receipts)
    assert seen.counts == NONE


async def test_a_letter_that_was_replayed_does_not_count_wherever_it_had_died(pipeline: Pipeline, seen: Seen) -> None:
    await pipeline.publish(timestamp=now_ms(), headers=AGAIN)
    await pipeline.publish(timestamp=now_ms(), key=b"default/e", middle=AGAIN)
    assert seen.counts == NONE


async def test_a_record_that_was_old_when_it_was_read_does_not_count(pipeline: Pipeline, seen: Seen) -> None:
    await pipeline.publish(timestamp=now_ms() - FRESH_MS - 1000)
    await pipeline.publish(timestamp=now_ms() - FRESH_MS + 60_000, key=b"default/e")
    assert seen.counts == ONE


async def test_the_same_record_under_other_settings_does_not_count(pipeline: Pipeline, seen: Seen) -> None:
    stamped = now_ms()
    await pipeline.publish(timestamp=stamped)
    pipeline.recipe = "another/model"
    await pipeline.publish(timestamp=stamped)
    assert seen.counts == ONE


async def test_a_generation_that_does_not_tell_does_not_count(pipeline: Pipeline, seen: Seen) -> None:
    pipeline.telling = False
    await pipeline.publish(timestamp=now_ms())
    assert seen.counts == NONE


async def test_receipts_of_an_earlier_release_do_not_count(pipeline: Pipeline, seen: Seen) -> None:
    receipts = await pipeline.receipts(timestamp=now_ms())
    older = msgspec.structs.replace(receipts[0].message, published=None)
    await pipeline.commit([Item(record=receipts[0].record, message=older), receipts[1]])
    assert seen.counts == NONE
