"""What a repair sends when a document's record is worked on again."""

from collections.abc import Iterable

import msgspec
import orjson
import pytest

from agents.chunk import Chunker
from agents.stage import Item, Outgoing, Record
from schemas import ChunkBatch, Chunking, DocumentEvent, Intake, Key, Live, decode
from tests.fakes.encoder import FakeTokenizer
from tests.fakes.records import ARRIVED_MS, record
from tests.fakes.stores import FakeManifestStore

KEY = Key("default", "d")
TEXT = " ".join(f"w{place}" for place in range(100))


@pytest.fixture
def manifests() -> FakeManifestStore:
    return FakeManifestStore()


@pytest.fixture
def chunker(manifests: FakeManifestStore) -> Chunker:
    return Chunker(
        tokenizer=FakeTokenizer(),
        encoder="test/model",
        encoder_max_tokens=256,
        default=Chunking(max_tokens=12, overlap_tokens=0),
        manifests=manifests,
    )


def came(offset: int, text: str = TEXT) -> Record:
    return record(orjson.dumps({"text": text}), key=KEY.encode(), offset=offset, timestamp=ARRIVED_MS + offset)


async def goes_live(chunker: Chunker, manifests: FakeManifestStore, one: Record) -> list[ChunkBatch]:
    message = chunker.decode(one)
    sent = batches(await chunker.work([Item(record=one, message=message)]))
    stored = manifests.read([KEY])[KEY]
    assert stored.manifest.intake is not None
    live = Live(
        revision=stored.manifest.intake.content,
        chunks=stored.manifest.intake.chunks,
        at=stored.manifest.intake.at,
    )
    manifests.write(
        {KEY: msgspec.structs.replace(stored, manifest=msgspec.structs.replace(stored.manifest, live=live))}
    )
    return sent


def intake(manifests: FakeManifestStore) -> Intake | None:
    return manifests.read([KEY])[KEY].manifest.intake


def batches(outgoing: Iterable[Outgoing]) -> list[ChunkBatch]:
    return [decode(one.value or b"", ChunkBatch) for one in outgoing if one.topic == "documents.chunks"]


async def test_what_is_live_is_sent_again_as_it_was(chunker: Chunker, manifests: FakeManifestStore) -> None:
    sent = await goes_live(chunker, manifests, came(0))
    before = intake(manifests)
    assert batches(chunker.redelivered(came(0), before) or ()) == sent
    assert intake(manifests) == before


async def test_no_vector_is_taken_over_when_what_is_live_is_made_anew(
    chunker: Chunker, manifests: FakeManifestStore
) -> None:
    await goes_live(chunker, manifests, came(0, "other"))
    [update] = await goes_live(chunker, manifests, came(1))
    [again] = batches(chunker.redelivered(came(1), intake(manifests)) or ())
    assert update.replaces is not None
    assert again == msgspec.structs.replace(update, replaces=None)


async def test_a_record_that_changed_nothing_makes_the_rows_of_the_first_again(
    chunker: Chunker, manifests: FakeManifestStore
) -> None:
    sent = await goes_live(chunker, manifests, came(0))
    again = await goes_live(chunker, manifests, came(7))
    assert again == []
    assert batches(chunker.redelivered(came(7), intake(manifests)) or ()) == sent
    assert {batch.revision.offset for batch in sent} == {0}


async def test_a_newer_record_is_let_in_as_ever(chunker: Chunker, manifests: FakeManifestStore) -> None:
    await goes_live(chunker, manifests, came(0))
    sent = batches(chunker.redelivered(came(3, "other"), intake(manifests)) or ())
    assert {batch.revision.offset for batch in sent} == {3}
    noted = intake(manifests)
    assert noted is not None
    assert noted.revision.offset == 3


async def test_a_lost_manifest_is_written_anew(chunker: Chunker, manifests: FakeManifestStore) -> None:
    sent = await goes_live(chunker, manifests, came(0))
    manifests.stored.clear()
    assert batches(chunker.redelivered(came(0), None) or ()) == sent
    assert intake(manifests) is not None


async def test_an_older_record_of_other_content_stays_superseded(
    chunker: Chunker, manifests: FakeManifestStore
) -> None:
    await goes_live(chunker, manifests, came(5))
    [event] = chunker.redelivered(came(1, "other"), intake(manifests)) or ()
    assert decode(event.value or b"", DocumentEvent).status == "superseded"


async def test_what_is_cut_otherwise_than_it_was_is_not_sent(chunker: Chunker, manifests: FakeManifestStore) -> None:
    await goes_live(chunker, manifests, came(0))
    noted = intake(manifests)
    assert noted is not None
    assert chunker.redelivered(came(0), msgspec.structs.replace(noted, chunks=noted.chunks + 1)) is None
