from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import msgspec
import numpy as np
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from agents.chunk import Chunker, Incoming
from agents.embed import Embedder
from agents.stage import Item, Outgoing, check_size
from headrace.auth import Authenticator, Keys
from headrace.auth.settings import AuthSettings
from headrace.encoders import Vectors
from headrace.errors import Poison, Transient
from headrace.stores import Stored
from schemas import ChunkBatch, Chunking, DocumentEvent, EncoderIdentity, Key, Live, Replaced, Revision, decode
from tests.fakes.encoder import FakeEncoder, FakeTokenizer
from tests.fakes.issuer import AUDIENCE, Issuer
from tests.fakes.records import ARRIVED_MS, item, record
from tests.fakes.stores import FakeManifestStore
from topics import RAW_MAX_BYTES, Lane

KEY = Key("default", "d")
TEXT = " ".join(f"w{place}" for place in range(100))


class RacedManifestStore(FakeManifestStore):
    """Somebody else writes between this one's reads and writes, as long as there are `intruders`."""

    def __init__(self) -> None:
        super().__init__()
        self.intruders: list[Callable[[Stored], Stored]] = []
        self.reads = 0

    def read(self, keys: Iterable[Key]) -> dict[Key, Stored]:
        self.reads += 1
        return super().read(keys)

    def write(self, replacements: Mapping[Key, Stored]) -> set[Key]:
        if self.intruders:
            super().write({KEY: self.intruders.pop(0)(super().read([KEY])[KEY])})
        return super().write(replacements)


@pytest.fixture
def manifests() -> RacedManifestStore:
    return RacedManifestStore()


@pytest.fixture
def chunker(manifests: RacedManifestStore) -> Chunker:
    return Chunker(
        tokenizer=FakeTokenizer(),
        encoder="test/model",
        encoder_max_tokens=256,
        default=Chunking(max_tokens=12, overlap_tokens=0),
        manifests=manifests,
    )


def document(**fields: object) -> bytes:
    return orjson.dumps({"text": "one two", **fields})


def arrived(chunker: Chunker, value: bytes | None, *, lane: Lane = "bulk", **where: int) -> Item[Incoming]:
    came = record(value, key=KEY.encode(), lane=lane, **where)
    return Item(record=came, message=chunker.decode(came))


def batches(outgoing: Iterable[Outgoing]) -> list[ChunkBatch]:
    return [decode(one.value or b"", ChunkBatch) for one in outgoing if one.topic.startswith("documents.chunks")]


def statuses(outgoing: Iterable[Outgoing]) -> list[str]:
    return [decode(one.value or b"", DocumentEvent).status for one in outgoing if one.topic == "documents.events"]


def make_live(manifests: FakeManifestStore, chunks: int = 1) -> None:
    stored = manifests.read([KEY])[KEY]
    assert stored.manifest.intake is not None
    live = Live(revision=stored.manifest.intake.content, chunks=chunks, at=stored.manifest.intake.at)
    manifests.write(
        {KEY: msgspec.structs.replace(stored, manifest=msgspec.structs.replace(stored.manifest, live=live))}
    )


class TestDecode:
    @pytest.mark.parametrize(
        ("value", "code"),
        [
            (b"{", "bad_json"),
            (b"\xff", "bad_json"),
            (b"null", "bad_document"),
            (b"[]", "bad_document"),
            (b"{}", "bad_document"),
            (document(version=2**63), "bad_document"),
            (document(created_at="2026-01-01T00:00:00"), "bad_document"),
            (document(created_at="0001-01-01T00:00:00+12:00"), "bad_document"),
            (document(source_confidence=1.5), "bad_document"),
            (document(op="delete", tenant="other"), "key_mismatch"),
            (document(doc_id="other"), "key_mismatch"),
            (document(tenant="other"), "key_mismatch"),
            (document(metadata={"a": "x" * 70_000}), "attributes_too_large"),
            (document(chunking={"max_tokens": 7}), "bad_chunking"),
            (document(chunking={"max_tokens": 257}), "bad_chunking"),
        ],
    )
    def test_what_can_never_be_processed_is_poison(self, chunker: Chunker, value: bytes, code: str) -> None:
        with pytest.raises(Poison) as refused:
            arrived(chunker, value)
        assert refused.value.code == code

    @pytest.mark.parametrize("key", [None, b"", b"d", b"/d", b"Default/d", b"default/", b"default/\xff"])
    def test_a_key_of_another_form_is_poison(self, chunker: Chunker, key: bytes | None) -> None:
        with pytest.raises(Poison) as refused:
            chunker.decode(record(document(), key=key))
        assert refused.value.code == "bad_key"

    def test_a_value_that_only_compression_brought_through_is_poison(self, chunker: Chunker) -> None:
        with pytest.raises(Poison) as refused:
            arrived(chunker, document(text="x" * RAW_MAX_BYTES))
        assert refused.value.code == "record_too_large"

    def test_a_record_without_a_value_and_a_deletion_are_the_end_of_a_document(self, chunker: Chunker) -> None:
        for value in (None, b'{"op": "delete"}'):
            message = arrived(chunker, value).message
            assert message.revision == Revision(
                version=ARRIVED_MS, timestamp=ARRIVED_MS, offset=0, fingerprint="deleted"
            )

    def test_the_records_time_stands_in_for_what_the_producer_does_not_say(self, chunker: Chunker) -> None:
        message = arrived(chunker, document(), offset=7).message
        assert (message.revision.version, message.revision.timestamp) == (ARRIVED_MS, ARRIVED_MS)
        assert message.revision.offset == 7
        assert message.attributes.created_at.timestamp() * 1000 == ARRIVED_MS

    def test_a_named_version_counts_and_the_record_breaks_ties(self, chunker: Chunker) -> None:
        message = arrived(chunker, document(version=3), offset=7).message
        assert message.revision.order == (3, ARRIVED_MS, 7)

    @pytest.mark.parametrize(
        ("asked", "overlap"),
        [
            ({"max_tokens": 64, "overlap_tokens": 62}, 16),
            ({"max_tokens": 64, "overlap_tokens": 33}, 16),
            ({"max_tokens": 64, "overlap_tokens": 32}, 32),
            ({"max_tokens": 64}, 16),
            ({"max_tokens": 8}, 2),
            ({"max_tokens": 256}, 64),
        ],
    )
    def test_an_overlap_of_more_than_half_becomes_a_quarter(
        self, chunker: Chunker, asked: dict[str, int], overlap: int
    ) -> None:
        chunking = arrived(chunker, document(chunking=asked)).message.chunking
        assert (chunking.max_tokens, chunking.overlap_tokens) == (asked["max_tokens"], overlap)


class TestWork:
    async def test_a_document_is_cut_and_its_version_noted(
        self, chunker: Chunker, manifests: RacedManifestStore
    ) -> None:
        came = arrived(chunker, document(text=TEXT, title="T"))
        outgoing = await chunker.work([came])
        [batch] = batches(outgoing)
        assert (batch.total, batch.first, len(batch.chunks)) == (10, 0, 10)
        assert " ".join(chunk.text for chunk in batch.chunks) == TEXT
        assert (batch.key, batch.revision, batch.attributes.title) == (KEY, came.message.revision, "T")
        assert [(one.topic, one.key, one.chunks) for one in outgoing] == [("documents.chunks", b"default/d", 10)]
        intake = manifests.stored[KEY].manifest.intake
        assert intake is not None
        assert (intake.revision, intake.chunks) == (came.message.revision, 10)

    async def test_an_urgent_document_stays_on_the_urgent_lane(self, chunker: Chunker) -> None:
        outgoing = await chunker.work([arrived(chunker, document(), lane="urgent")])
        assert [one.topic for one in outgoing] == ["documents.chunks.urgent"]

    async def test_many_chunks_travel_in_batches_of_64(self, chunker: Chunker) -> None:
        long = " ".join(["word"] * 1300)
        found = batches(await chunker.work([arrived(chunker, document(text=long))]))
        assert [(batch.first, len(batch.chunks), batch.total) for batch in found] == [
            (0, 64, 130),
            (64, 64, 130),
            (128, 2, 130),
        ]

    async def test_messages_are_made_when_they_are_asked_for_and_again_each_time(self, chunker: Chunker) -> None:
        outgoing = await chunker.work([arrived(chunker, document(text=" ".join(["word"] * 1300)))])
        first, again = next(iter(outgoing)), next(iter(outgoing))
        assert first == again
        assert first is not again

    @pytest.mark.parametrize("value", [None, b'{"op": "delete"}', document(text=" \n ")])
    async def test_a_version_without_chunks_travels_as_one_empty_batch(
        self, chunker: Chunker, value: bytes | None
    ) -> None:
        [batch] = batches(await chunker.work([arrived(chunker, value)]))
        assert (batch.total, batch.first, batch.chunks) == (0, 0, [])
        assert batch.deleted is not (value or b"").startswith(b'{"text"')

    async def test_the_same_record_again_gives_the_same_messages(self, chunker: Chunker) -> None:
        first = list(await chunker.work([arrived(chunker, document(text=TEXT))]))
        assert list(await chunker.work([arrived(chunker, document(text=TEXT))])) == first

    async def test_what_is_live_already_is_not_sent_again(
        self, chunker: Chunker, manifests: RacedManifestStore
    ) -> None:
        await chunker.work([arrived(chunker, document())])
        make_live(manifests)
        outgoing = await chunker.work([arrived(chunker, document(), offset=1)])
        assert (batches(outgoing), statuses(outgoing)) == ([], ["unchanged"])

    async def test_an_update_says_which_live_version_it_replaces(
        self, chunker: Chunker, manifests: RacedManifestStore
    ) -> None:
        [first] = batches(await chunker.work([arrived(chunker, document())]))
        [second] = batches(await chunker.work([arrived(chunker, document(text="one"), offset=1)]))
        make_live(manifests)
        [third] = batches(await chunker.work([arrived(chunker, document(text="two"), offset=2)]))
        assert [first.replaces, second.replaces] == [None, None]
        assert third.replaces == Replaced(revision=second.revision, chunks=1)

    async def test_a_deletion_replaces_no_chunks(self, chunker: Chunker, manifests: RacedManifestStore) -> None:
        await chunker.work([arrived(chunker, document())])
        make_live(manifests)
        [gone] = batches(await chunker.work([arrived(chunker, None, offset=1)]))
        assert gone.replaces is None

    async def test_an_older_version_is_superseded_also_within_one_batch(self, chunker: Chunker) -> None:
        outgoing = await chunker.work(
            [arrived(chunker, document(version=2)), arrived(chunker, document(version=1), offset=1)]
        )
        assert [batch.revision.version for batch in batches(outgoing)] == [2]
        assert statuses(outgoing) == ["superseded"]

    async def test_versions_of_one_batch_are_noted_one_upon_the_other(
        self, chunker: Chunker, manifests: RacedManifestStore
    ) -> None:
        await chunker.work([arrived(chunker, document(version=1)), arrived(chunker, document(version=2), offset=1)])
        assert manifests.reads == 1
        intake = manifests.stored[KEY].manifest.intake
        assert intake is not None
        assert intake.revision.version == 2

    async def test_conflicting_intake_is_read_again(self, chunker: Chunker, manifests: RacedManifestStore) -> None:
        newer = Chunker(
            tokenizer=FakeTokenizer(),
            encoder="test/model",
            encoder_max_tokens=256,
            default=chunker.default,
            manifests=FakeManifestStore(),
        )
        await newer.work([arrived(newer, document(version=9), offset=9)])
        theirs = newer.manifests.read([KEY])[KEY].manifest
        manifests.intruders.append(lambda stored: msgspec.structs.replace(stored, manifest=theirs))
        outgoing = await chunker.work([arrived(chunker, document(version=1))])
        assert manifests.reads == 2
        assert (batches(outgoing), statuses(outgoing)) == ([], ["superseded"])
        assert manifests.stored[KEY].manifest == theirs


class TestSenders:
    """With auth on."""

    @pytest.fixture
    def issuer(self) -> Issuer:
        return Issuer({"ec": ("ES256", ec.generate_private_key(ec.SECP256R1()))})

    @pytest.fixture
    def guarded(self, chunker: Chunker, issuer: Issuer) -> Chunker:
        auth = AuthSettings(enabled=True, jwks_url="https://issuer.example", audience=AUDIENCE)
        return replace(chunker, authenticator=Authenticator(auth, Keys([issuer.fetch], auth)))

    @staticmethod
    def sent(chunker: Chunker, value: bytes | None, *authorization: bytes, **where: int) -> Item[Incoming]:
        headers = tuple(("authorization", one) for one in authorization)
        came = record(value, key=KEY.encode(), headers=headers, **where)
        return Item(record=came, message=chunker.decode(came))

    @staticmethod
    def token(issuer: Issuer, **claims: object) -> bytes:
        """For the time at which these tests' records arrived, long ago."""
        return issuer.token("ec", **{"tenant": "default", "exp": ARRIVED_MS // 1000 + 60} | claims)

    @pytest.mark.parametrize("value", [document(), None, b'{"op": "delete"}'])
    async def test_a_document_and_a_deletion_come_in_with_a_token_that_was_good_when_they_were_sent(
        self, guarded: Chunker, issuer: Issuer, value: bytes | None
    ) -> None:
        [batch] = batches(await guarded.work([self.sent(guarded, value, self.token(issuer))]))
        assert batch.key == KEY

    @pytest.mark.parametrize("value", [document(), None, b'{"op": "delete"}'])
    @pytest.mark.parametrize(
        ("claims", "code"),
        [
            (None, "unauthorized"),
            ({"exp": ARRIVED_MS // 1000 - 60}, "unauthorized"),
            ({"aud": "other"}, "unauthorized"),
            ({"tenant": "acme"}, "forbidden"),
            ({"scope": "headrace.query"}, "forbidden"),
        ],
    )
    async def test_without_a_good_token_it_is_poison_and_nothing_is_noted(
        self,
        guarded: Chunker,
        manifests: RacedManifestStore,
        issuer: Issuer,
        value: bytes | None,
        claims: dict[str, object] | None,
        code: str,
    ) -> None:
        tokens = [] if claims is None else [self.token(issuer, **claims)]
        with pytest.raises(Poison) as refused:
            await guarded.work([self.sent(guarded, value, *tokens)])
        assert refused.value.code == code
        assert manifests.stored == {}

    async def test_a_tenant_is_counted_by_who_may_send_for_it_alone(self, guarded: Chunker, issuer: Issuer) -> None:
        def counted() -> float:
            return REGISTRY.get_sample_value("headrace_tenant_documents_total", {"tenant": "default"}) or 0.0

        before = counted()
        with pytest.raises(Poison):
            await guarded.work([self.sent(guarded, document())])
        assert counted() == before
        await guarded.work([self.sent(guarded, document(), self.token(issuer))])
        assert counted() == before + 1

    async def test_two_tokens_are_none(self, guarded: Chunker, issuer: Issuer) -> None:
        with pytest.raises(Poison, match="more than one"):
            await guarded.work([self.sent(guarded, document(), self.token(issuer), self.token(issuer, jti="2"))])

    async def test_a_batch_with_a_stranger_in_it_is_not_cut_at_all(
        self, guarded: Chunker, manifests: RacedManifestStore, issuer: Issuer
    ) -> None:
        good = self.sent(guarded, document(), self.token(issuer))
        with pytest.raises(Poison):
            await guarded.work([good, self.sent(guarded, document(), offset=1)])
        assert manifests.reads == 0

    async def test_a_key_server_that_is_away_is_waited_for(self, guarded: Chunker, issuer: Issuer) -> None:
        issuer.away = True
        came = self.sent(guarded, document(), self.token(issuer))
        with pytest.raises(Transient, match="jwks"):
            await guarded.work([came])

    async def test_no_token_travels_on(self, guarded: Chunker, issuer: Issuer) -> None:
        token = self.token(issuer)
        outgoing = list(await guarded.work([self.sent(guarded, document(), token)]))
        assert [one.headers for one in outgoing] == [()]
        assert not any(token.split()[1] in (one.value or b"") for one in outgoing)

    async def test_what_kafka_has_can_be_rebuilt_without_a_token(
        self, guarded: Chunker, manifests: RacedManifestStore, issuer: Issuer
    ) -> None:
        admitted = self.sent(guarded, document(), self.token(issuer))
        first = batches(await guarded.work([admitted]))
        intake = manifests.stored[KEY].manifest.intake
        assert intake is not None
        bare = replace(admitted.record, headers=())
        assert batches(guarded.redelivered(bare, intake) or ()) == first
        manifests.stored.clear()
        assert batches(guarded.redelivered(bare, None) or ()) == first


class WideEncoder(FakeEncoder):
    identity = EncoderIdentity(name="test/wide", dimension=4096, normalised=True)

    def encode(
        self,
        texts: Sequence[str],
        *,
        contexts: Sequence[str] | None = None,
        truncate: bool = False,
        urgent: bool = False,
    ) -> Vectors:
        return np.zeros((len(texts), 4096), dtype=np.float32)


CHARACTERS = ["x", "\0", '"', "é", "水", "🦦"]
"""1, 6, 2, 2, 3 and 4 bytes of JSON."""


@settings(max_examples=25, deadline=None)
@given(
    text=st.lists(st.sampled_from(CHARACTERS).map(lambda one: one * 12_000), min_size=20, max_size=40).map(" ".join),
    title=st.sampled_from(CHARACTERS).flatmap(lambda one: st.integers(0, 10_000).map(lambda many: one * many)),
    tags=st.lists(st.sampled_from(CHARACTERS).map(lambda one: one * 100), max_size=20),
    metadata=st.dictionaries(st.text(max_size=3), st.text(max_size=300), max_size=5),
    max_tokens=st.integers(8, 4096),
    doc_id=st.sampled_from(["d", "\0" * 512, '"' * 512]),
)
async def test_every_record_of_any_document_fits_its_topic_with_and_without_its_vectors(
    title: str, doc_id: str, text: str, max_tokens: int, **attributes: object
) -> None:
    chunker = Chunker(
        tokenizer=FakeTokenizer(),
        encoder="test/wide",
        encoder_max_tokens=4096,
        default=Chunking(max_tokens=max_tokens, overlap_tokens=0),
        manifests=FakeManifestStore(),
    )
    came = record(document(text=text, title=title, **attributes), key=Key("t" * 48, doc_id).encode())
    try:
        outgoing = list(await chunker.work([Item(record=came, message=chunker.decode(came))]))
    except Poison:
        reject()
    embedder = Embedder(encoder=WideEncoder())
    for one in outgoing:
        check_size(one)
        for embedded in await embedder.work([item(decode(one.value or b"", ChunkBatch))]):
            check_size(embedded)


async def test_chunks_and_events_follow_from_the_record_that_they_are_of(chunker: Chunker) -> None:
    long = arrived(chunker, document(text="one two three four five " * 400, version=2))
    late = arrived(chunker, document(version=1), offset=1)
    by_cause = {id(item.record): set() for item in (long, late)}
    for one in await chunker.work([long, late]):
        by_cause[id(one.cause)].add(one.topic)
    assert list(by_cause.values()) == [{"documents.chunks"}, {"documents.events"}]
