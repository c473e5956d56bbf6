"""What the stages rely on, on the fakes and on the real stores alike."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import msgspec
import numpy as np
import opensearchpy
import pytest
import structlog
from pymilvus import MilvusClient

from headrace.errors import Misconfigured, Transient
from headrace.stores import (
    Filters,
    ManifestStore,
    Stored,
    StoredRow,
    StoreSettings,
    TextRow,
    TextStore,
    VectorRow,
    VectorStore,
    parse_filters,
)
from headrace.stores.manifests import OpenSearchManifestStore
from headrace.stores.milvus import MilvusStore, collection_name
from headrace.stores.opensearch import OpenSearchTextStore
from schemas import Attributes, EncoderIdentity, Intake, Key, Live, Manifest, Revision
from tests.fakes.stores import FakeManifestStore, FakeTextStore, FakeVectorStore

Wait = Callable[[Callable[[], bool]], None]

ENCODER = EncoderIdentity(name="test/four-dimensions", dimension=4, normalised=True)
NOW = datetime(2026, 5, 17, 12, 30, 15, 123456, tzinfo=UTC)
ATTRIBUTES = Attributes(
    created_at=NOW,
    title="On turbines",
    source="https://example.org/a?b=c",
    source_confidence=0.25,
    tags=["hydro", 'q"uote'],
    metadata={"year": 2019, "big": 2**70, "share": 0.1, "public": True, "lang": "é\n", "authors": ["A", "B"], "": "x"},
)
AWKWARD_IDS = [
    "a/b//c",
    'quo"te',
    "apo'strophe",
    "line\nbreak",
    "back\\slash",
    "漢" * 170 + "xx",
    "é" * 256,
    "_all",
    " ",
    "..",
    "#?&%2F",
]


@pytest.fixture(params=["fake", "real"])
def vectors(request: pytest.FixtureRequest) -> VectorStore:
    if request.param == "fake":
        return FakeVectorStore()
    return MilvusStore(request.getfixturevalue("settings"), ENCODER)


@pytest.fixture(params=["fake", "real"])
def texts_and_manifests(request: pytest.FixtureRequest) -> tuple[TextStore, ManifestStore]:
    if request.param == "fake":
        manifests = FakeManifestStore()
        return FakeTextStore(manifests), manifests
    settings = request.getfixturevalue("settings")
    return OpenSearchTextStore(settings), OpenSearchManifestStore(settings)


@pytest.fixture
def texts(texts_and_manifests: tuple[TextStore, ManifestStore]) -> TextStore:
    return texts_and_manifests[0]


@pytest.fixture
def manifests(texts_and_manifests: tuple[TextStore, ManifestStore]) -> ManifestStore:
    return texts_and_manifests[1]


class TestVectorStore:
    def test_search_finds_the_nearest_first_and_only_what_the_filters_let_through(
        self, vectors: VectorStore, tenant: str, eventually: Wait
    ) -> None:
        rows = [vector_row(f"r-{place}", doc_id=f"d{place % 2}", direction=place) for place in range(4)]
        vectors.upsert(tenant, rows)
        eventually(lambda: len(vectors.search(tenant, toward(0), limit=10, filters=Filters())) == 4)
        best, second, *_ = vectors.search(tenant, toward(2), limit=10, filters=Filters())
        assert (best.id, best.doc_id, second.id) == ("r-2", "d0", "r-1")
        assert best.score == pytest.approx(1.0, abs=1e-5)
        only = vectors.search(tenant, toward(2), limit=10, filters=parse_filters({"doc_id": ["d1"]}))
        assert {found.doc_id for found in only} == {"d1"}
        assert len(vectors.search(tenant, toward(2), limit=3, filters=Filters())) == 3

    def test_rows_made_searchable_are_found_at_once(self, vectors: VectorStore, tenant: str) -> None:
        for count in (1, 2, 3):  # the first makes the collection, the others come to one that is being searched
            name = f"r-{count}"
            vectors.upsert(tenant, [vector_row(name, direction=count)])
            vectors.make_searchable(tenant, [name])
            found = vectors.search(tenant, toward(count), limit=10, filters=Filters())
            assert (found[0].id, len(found)) == (name, count)

    def test_no_rows_are_searchable_as_they_are(self, vectors: VectorStore, tenant: str) -> None:
        vectors.make_searchable(tenant, [])

    def test_upsert_overwrites(self, vectors: VectorStore, tenant: str, eventually: Wait) -> None:
        for direction in (0, 3, 3):
            vectors.upsert(tenant, [vector_row("r-0", direction=direction)])
        eventually(
            lambda: (
                [round(found.score, 4) for found in vectors.search(tenant, toward(3), limit=10, filters=Filters())]
                == [1.0]
            )
        )
        assert vectors.count(tenant).chunks == 1

    def test_the_same_row_twice_in_one_call_is_one_row(self, vectors: VectorStore, tenant: str) -> None:
        vectors.upsert(tenant, [vector_row("r-0"), vector_row("r-1"), vector_row("r-0")])
        assert vectors.count(tenant).chunks == 2

    def test_deleted_rows_go_and_absent_ones_are_no_matter(
        self, vectors: VectorStore, tenant: str, eventually: Wait
    ) -> None:
        vectors.upsert(tenant, [vector_row(f"r-{place}", doc_id=str(place), direction=place) for place in range(3)])
        vectors.delete(tenant, ["r-0", "r-2", "never-there", 'odd "id"\n'])
        eventually(
            lambda: [found.id for found in vectors.search(tenant, toward(0), limit=10, filters=Filters())] == ["r-1"]
        )
        assert msgspec.to_builtins(vectors.count(tenant)) == {"documents": 1, "chunks": 1}

    def test_tenants_are_apart(self, vectors: VectorStore, tenant: str, eventually: Wait) -> None:
        other = tenant.replace("-", "_")
        vectors.upsert(tenant, [vector_row("r-0", doc_id="here")])
        vectors.upsert(other, [vector_row("r-0", doc_id="there")])
        for place, doc_id in ((tenant, "here"), (other, "there")):
            eventually(lambda place=place: bool(vectors.search(place, toward(0), limit=10, filters=Filters())))
            assert [found.doc_id for found in vectors.search(place, toward(0), limit=10, filters=Filters())] == [doc_id]
        assert {tenant, other} <= set(vectors.tenants())

    def test_a_tenant_without_rows_has_nothing(self, vectors: VectorStore, tenant: str) -> None:
        vectors.delete(tenant, ["a"])
        vectors.upsert(tenant, [])
        assert vectors.search(tenant, toward(0), limit=10, filters=Filters()) == []
        assert vectors.count(tenant).chunks == 0
        assert tenant not in vectors.tenants()

    def test_vectors_come_back_bit_by_bit_and_by_their_hashes(
        self, vectors: VectorStore, tenant: str, eventually: Wait
    ) -> None:
        assert vectors.vectors(tenant, ["r-0"]) == {}
        made = np.random.default_rng(7).normal(size=(3, 4)).astype(np.float32)
        rows = [
            msgspec.structs.replace(vector_row(f"r-{place}"), content_hash=f"hash {place}", vector=vector)
            for place, vector in enumerate(made)
        ]
        vectors.upsert(tenant, rows)
        asked = ["r-0", "r-2", "never-there", 'odd "id"\n']
        eventually(lambda: len(vectors.vectors(tenant, asked)) == 2)
        found = vectors.vectors(tenant, asked)
        assert {name: vector.tobytes() for name, vector in found.items()} == {
            "hash 0": made[0].tobytes(),
            "hash 2": made[2].tobytes(),
        }
        assert {vector.dtype for vector in found.values()} == {np.dtype(np.float32)}
        assert vectors.vectors(tenant, []) == {}

    def test_vectors_of_many_rows_in_one_call(self, vectors: VectorStore, tenant: str, eventually: Wait) -> None:
        rows = [msgspec.structs.replace(vector_row(f"r-{place}"), content_hash=str(place)) for place in range(4500)]
        vectors.upsert(tenant, rows)
        ids = [row.id for row in rows]
        eventually(lambda: len(vectors.vectors(tenant, ids)) == 4500)

    def test_awkward_doc_ids(self, vectors: VectorStore, tenant: str, eventually: Wait) -> None:
        vectors.upsert(tenant, [vector_row(f"r-{place}", doc_id=name) for place, name in enumerate(AWKWARD_IDS)])
        for name in AWKWARD_IDS:
            only = parse_filters({"doc_id": [name]})
            eventually(lambda only=only: bool(vectors.search(tenant, toward(0), limit=10, filters=only)))
            assert [found.doc_id for found in vectors.search(tenant, toward(0), limit=10, filters=only)] == [name]

    def test_many_rows_in_one_call(self, vectors: VectorStore, tenant: str) -> None:
        rows = [vector_row(f"r-{place}", doc_id=f"d{place // 3}", direction=place % 4) for place in range(4500)]
        vectors.upsert(tenant, rows)
        assert msgspec.to_builtins(vectors.count(tenant)) == {"documents": 1500, "chunks": 4500}
        vectors.delete(tenant, [row.id for row in rows[3:]])
        assert msgspec.to_builtins(vectors.count(tenant)) == {"documents": 1, "chunks": 3}

    def test_a_scan_gives_each_row_once_as_it_was_stored(self, vectors: VectorStore, tenant: str) -> None:
        assert list(vectors.rows(tenant)) == []
        rows = [vector_row(f"r-{place}", doc_id=f"d{place // 2}") for place in range(8)]
        vectors.upsert(tenant, [*rows, vector_row('odd "id"\n', doc_id="odd")])
        vectors.upsert(tenant, rows[:3])
        vectors.delete(tenant, ["r-7"])
        found = [row for page in vectors.rows(tenant) for row in page]
        assert sorted(row.id for row in found) == ['odd "id"\n', *(f"r-{place}" for place in range(7))]
        assert next(row for row in found if row.id == "r-6") == stored(rows[6])

    def test_a_scan_of_some_documents(self, vectors: VectorStore, tenant: str) -> None:
        vectors.upsert(tenant, [vector_row(f"r-{place}", doc_id=name) for place, name in enumerate(AWKWARD_IDS)])
        for name in AWKWARD_IDS:
            assert [row.doc_id for page in vectors.rows(tenant, [name]) for row in page] == [name]
        found = [row.doc_id for page in vectors.rows(tenant, [*AWKWARD_IDS[:3], "absent"]) for row in page]
        assert sorted(found) == sorted(AWKWARD_IDS[:3])


class TestMilvus:
    def test_two_workers_that_are_first_at_once(self, settings: StoreSettings, tenant: str) -> None:
        stores = [MilvusStore(settings, ENCODER) for _ in range(3)]
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(lambda place: stores[place].upsert(tenant, [vector_row(f"r-{place}")]), range(3)))
        assert stores[0].count(tenant).chunks == 3

    @pytest.mark.parametrize(
        "other",
        [
            EncoderIdentity(name="test/eight", dimension=8, normalised=True),
            EncoderIdentity(name="test/other-four", dimension=4, normalised=True),
            EncoderIdentity(name="test/four-dimensions", dimension=4, normalised=False),
        ],
    )
    def test_another_encoder_is_refused(self, settings: StoreSettings, other: EncoderIdentity) -> None:
        settings = settings.model_copy(update={"prefix": f"{settings.prefix}enc_"})
        MilvusStore(settings, ENCODER).upsert("x", [vector_row("r-0")])
        stranger = MilvusStore(settings, other)
        row = msgspec.structs.replace(vector_row("r-1"), vector=np.ones(other.dimension, dtype=np.float32))
        with pytest.raises(Misconfigured, match="set the encoder back"):
            stranger.check()
        with pytest.raises(Misconfigured, match="test/four-dimensions"):
            stranger.upsert("x", [row])
        with pytest.raises(Misconfigured, match="test/four-dimensions"):
            stranger.search("x", row.vector, limit=1, filters=Filters())
        with pytest.raises(Misconfigured, match="test/four-dimensions"):
            stranger.vectors("x", ["r-0"])
        MilvusStore(settings, ENCODER).check()

    def test_rows_that_do_not_come_to_be_searchable_are_waited_for_again(
        self, settings: StoreSettings, tenant: str
    ) -> None:
        quick = settings.milvus.model_copy(update={"timeout_s": 2.0})
        store = MilvusStore(settings.model_copy(update={"milvus": quick}), ENCODER)
        MilvusStore(settings, ENCODER).upsert(tenant, [vector_row("r-0")])
        with pytest.raises(Transient, match=r"1 stored rows .* can't be found by a search yet"):
            store.make_searchable(tenant, ["r-0", "r-1"])

    def test_rows_that_are_gone_are_not_waited_for(self, settings: StoreSettings, tenant: str) -> None:
        store = MilvusStore(settings, ENCODER)
        store.upsert(tenant, [vector_row("r-0")])
        store.make_searchable(tenant, ["r-0", "deleted-by-hand"])
        _drop_collection(settings, tenant)
        store.make_searchable(tenant, ["r-0"])

    def test_a_scan_passes_every_bound_of_one_query(self, settings: StoreSettings, tenant: str) -> None:
        """Milvus answers at most 16,384 rows at once; here they lie in several segments, one of them sealed."""
        store = MilvusStore(settings, ENCODER)
        first = [vector_row(f"r-{place}", direction=place % 4) for place in range(12_000)]
        store.upsert(tenant, first)
        client = MilvusClient(settings.milvus.uri, timeout=30, dedicated=True)
        client.flush(collection_name(settings.prefix, tenant))
        client.close()
        store.upsert(tenant, [vector_row(f"r-{place}", doc_id="e") for place in range(11_000, 21_000)])
        store.delete(tenant, ["r-0", "r-20999"])
        found = [row for page in store.rows(tenant) for row in page]
        assert len(found) == 20_998
        assert {row.id for row in found} == {f"r-{place}" for place in range(1, 20_999)}
        assert sum(row.doc_id == "e" for row in found) == 9_999

    def test_a_collection_that_was_dropped_is_made_anew(
        self, settings: StoreSettings, tenant: str, eventually: Wait
    ) -> None:
        store = MilvusStore(settings, ENCODER)
        store.upsert(tenant, [vector_row("r-0")])
        _drop_collection(settings, tenant)
        assert store.search(tenant, toward(0), limit=1, filters=Filters()) == []
        store.upsert(tenant, [vector_row("r-1")])
        eventually(
            lambda: [found.id for found in store.search(tenant, toward(0), limit=5, filters=Filters())] == ["r-1"]
        )
        _drop_collection(settings, tenant)
        store.delete(tenant, ["r-1"])
        store.upsert(tenant, [vector_row("r-2")])
        assert store.count(tenant).chunks == 1

    def test_a_released_collection_is_loaded_again_and_nobody_waits_for_it(
        self, settings: StoreSettings, tenant: str, eventually: Wait
    ) -> None:
        def is_served() -> bool:
            try:
                return len(store.search(tenant, toward(0), limit=5, filters=Filters())) == 1
            except Transient:
                return False

        store = MilvusStore(settings, ENCODER)
        store.upsert(tenant, [vector_row("r-0")])
        MilvusClient(settings.milvus.uri, timeout=5).release_collection(collection_name(settings.prefix, tenant))
        started = time.monotonic()
        assert not is_served()
        assert time.monotonic() - started < 2
        eventually(is_served)

    def test_who_reads_all_waits_until_a_released_collection_is_loaded_again(
        self, settings: StoreSettings, tenant: str
    ) -> None:
        store = MilvusStore(settings, ENCODER)
        store.upsert(tenant, [vector_row("r-0")])
        MilvusClient(settings.milvus.uri, timeout=5).release_collection(collection_name(settings.prefix, tenant))
        assert [row.id for page in store.rows(tenant) for row in page] == ["r-0"]
        MilvusClient(settings.milvus.uri, timeout=5).release_collection(collection_name(settings.prefix, tenant))
        assert store.count(tenant).chunks == 1

    def test_attributes_at_their_limits(self, settings: StoreSettings, tenant: str) -> None:
        store = MilvusStore(settings, ENCODER)
        tags = [f"{place:0511d}é"[:512] for place in range(100)]
        full = Attributes(created_at=NOW, source="é" * 4096, tags=tags, metadata={f"k{n}": n for n in range(1500)})
        many = Attributes(created_at=NOW, tags=[str(n) for n in range(1000)])
        store.upsert(tenant, [vector_row("r-0", attributes=full), vector_row("r-1", attributes=many)])
        assert store.count(tenant).chunks == 2


class TestTextStore:
    def test_search_finds_by_words_and_brings_the_row(self, texts: TextStore, tenant: str, eventually: Wait) -> None:
        rows = [
            text_row("t-0", text="water drives the wheel"),
            text_row("t-1", doc_id="e", text="wind drives the sail"),
        ]
        texts.upsert(tenant, rows)
        eventually(lambda: len(texts.search(tenant, "drives", limit=10, filters=Filters())) == 2)
        best, *_ = texts.search(tenant, "which water", limit=10, filters=Filters())
        assert (best.id, best.doc_id) == ("t-0", "d")
        assert best.score > 0
        assert len(texts.search(tenant, "drives", limit=1, filters=Filters())) == 1
        assert len(texts.search(tenant, "turbines", limit=10, filters=Filters())) == 2  # from the title
        only = texts.search(tenant, "drives", limit=10, filters=parse_filters({"doc_id": ["e"]}))
        assert [found.id for found in only] == ["t-1"]
        assert texts.search(tenant, "nowhere", limit=10, filters=Filters()) == []

    def test_highlights_are_where_the_questions_words_stand(self, texts: TextStore, tenant: str) -> None:
        rows = [
            text_row("t-0", text="😀 Water <b>drives</b> the wheel, water!"),
            text_row("t-1", text="no such word"),
            text_row("t-2", text="water that nobody asks for"),
        ]
        texts.upsert(tenant, rows)
        texts.make_searchable(tenant)
        found = texts.highlight(tenant, "which WATER drives turbines?", ["t-0", "t-1", "absent"])
        assert list(found) == ["t-0"]
        assert [rows[0].text[start:end] for start, end in found["t-0"]] == ["Water", "drives", "water"]
        assert texts.highlight("nobody", "water", ["t-0"]) == {}

    def test_rows_made_searchable_are_found_at_once(self, texts: TextStore, tenant: str) -> None:
        for count in (1, 2, 3):
            texts.upsert(tenant, [text_row(f"t-{count}", text="water")])
            texts.make_searchable(tenant)
            assert len(texts.search(tenant, "water", limit=10, filters=Filters())) == count

    def test_a_tenant_without_rows_is_searchable_as_it_is(self, texts: TextStore, tenant: str) -> None:
        texts.make_searchable(tenant)

    def test_read_sees_writes_and_deletes_at_once(self, texts: TextStore, tenant: str) -> None:
        row = text_row("t-0", text="first")
        texts.upsert(tenant, [row, text_row("t-1", text="other")])
        assert texts.read(tenant, ["t-0", "absent"], ["absent"]) == ({"t-0": row}, {})
        newer = msgspec.structs.replace(row, text="second")
        texts.upsert(tenant, [newer])
        assert texts.read(tenant, ["t-0"], []) == ({"t-0": newer}, {})
        texts.delete(tenant, ["t-0", "never-there"])
        assert set(texts.read(tenant, ["t-0", "t-1"], [])[0]) == {"t-1"}
        assert msgspec.to_builtins(texts.count(tenant)) == {"documents": 1, "chunks": 1}

    def test_read_brings_manifests_too(self, texts: TextStore, manifests: ManifestStore, tenant: str) -> None:
        key = Key(tenant, "d/1")
        manifest = live_manifest(key)
        manifests.write({key: Stored(manifest=manifest)})
        texts.upsert(tenant, [text_row("t-0", doc_id="d/1", text="a")])
        rows, found = texts.read(tenant, ["t-0"], ["d/1", "d/2"])
        assert list(rows) == ["t-0"]
        assert found == {"d/1": manifest}

    def test_what_is_live_is_told_as_it_is_at_every_read(
        self, texts: TextStore, manifests: ManifestStore, tenant: str
    ) -> None:
        a, b, c = keys = [Key(tenant, name) for name in ("a", "b", "c")]
        first = {key: live_manifest(key) for key in keys[:2]}
        manifests.write({key: Stored(manifest=manifest) for key, manifest in first.items()})
        for whole, others in (["a"], ["b", "c"]), ([], ["a", "b", "c"]), (["b"], ["a"]):
            read = texts.read_live(tenant, [], whole, others)
            assert list(read.manifests) == whole
            assert read.revisions == {
                key.doc_id: first[key].live_revision for key in (a, b) if key.doc_id in whole + others
            }
        assert first[b].live is not None
        gone = msgspec.structs.replace(first[b], live=msgspec.structs.replace(first[b].live, deleted=True))
        later = {b: gone, c: live_manifest(c)}
        manifests.write(
            {key: msgspec.structs.replace(manifests.read([key])[key], manifest=one) for key, one in later.items()}
        )
        read = texts.read_live(tenant, [], [], ["a", "b", "c"])
        assert read == ({}, {}, {"a": first[a].live_revision, "c": later[c].live_revision})

    def test_tenants_are_apart(self, texts: TextStore, tenant: str) -> None:
        other = tenant.replace("-", "_")
        suffixed = f"{tenant}_docs"
        for place in (tenant, other, suffixed):
            texts.upsert(place, [text_row("t-0", text=place)])
        for place in (tenant, other, suffixed):
            assert texts.read(place, ["t-0"], [])[0]["t-0"].text == place
        assert {tenant, other, suffixed} <= set(texts.tenants())

    def test_a_tenant_without_rows_has_nothing(self, texts: TextStore, tenant: str) -> None:
        texts.delete(tenant, ["a"])
        texts.upsert(tenant, [])
        assert texts.search(tenant, "anything", limit=10, filters=Filters()) == []
        assert texts.read(tenant, ["a"], ["b"]) == ({}, {})
        assert texts.count(tenant).chunks == 0
        assert tenant not in texts.tenants()

    def test_awkward_doc_ids(self, texts: TextStore, tenant: str, eventually: Wait) -> None:
        rows = [text_row(f"t-{place}", doc_id=name, text="word") for place, name in enumerate(AWKWARD_IDS)]
        texts.upsert(tenant, rows)
        eventually(lambda: len(texts.search(tenant, "word", limit=99, filters=Filters())) == len(rows))
        for row in rows:
            only = texts.search(tenant, "word", limit=99, filters=parse_filters({"doc_id": [row.doc_id]}))
            assert [(found.id, found.doc_id) for found in only] == [(row.id, row.doc_id)]
            assert texts.read(tenant, [row.id], [])[0] == {row.id: row}

    def test_many_rows_in_one_call(self, texts: TextStore, tenant: str) -> None:
        rows = [text_row(f"t-{place}", doc_id=f"d{place // 3}", text="much " * 500) for place in range(4500)]
        texts.upsert(tenant, rows)
        assert msgspec.to_builtins(texts.count(tenant)) == {"documents": 1500, "chunks": 4500}
        texts.delete(tenant, [row.id for row in rows[3:]])
        assert msgspec.to_builtins(texts.count(tenant)) == {"documents": 1, "chunks": 3}

    @pytest.mark.parametrize(
        "question",
        [
            " ".join(f"word{place}" for place in range(1000)),
            "a b " * 2000,
            "漢字" * 4000,
            "😀" * 8000,
            "x" * 8000,
            "ก" * 8000,
            "-" * 8000,
            'AND OR NOT ( " \\ / * ? : ~ ^ [ ] { }',
        ],
        ids=["words", "letters", "ideographs", "emoji", "one word", "thai", "no word", "operators"],
    )
    def test_any_question_is_answered(self, texts: TextStore, tenant: str, question: str) -> None:
        texts.upsert(tenant, [text_row("t-0", text="word1 and others")])
        texts.search(tenant, question, limit=10, filters=parse_filters({"tags": {"any": ["a"]}}))

    def test_a_scan_gives_each_row_once_as_it_was_stored(self, texts: TextStore, tenant: str) -> None:
        assert list(texts.rows(tenant)) == []
        rows = [text_row(f"r-{place}", text="a", doc_id=f"d{place // 2}") for place in range(8)]
        texts.upsert(tenant, rows)
        texts.upsert(tenant, rows[:3])
        texts.delete(tenant, ["r-7"])
        found = [row for page in texts.rows(tenant) for row in page]
        assert sorted(found, key=lambda row: row.id) == [stored(row) for row in rows[:7]]

    def test_a_scan_of_some_documents(self, texts: TextStore, tenant: str) -> None:
        texts.upsert(tenant, [text_row(f"r-{n}", text="a", doc_id=name) for n, name in enumerate(AWKWARD_IDS)])
        found = [row.doc_id for page in texts.rows(tenant, [*AWKWARD_IDS[:6], "absent"]) for row in page]
        assert sorted(found) == sorted(AWKWARD_IDS[:6])


class TestOpenSearch:
    def test_a_scan_passes_every_bound_of_one_search(self, settings: StoreSettings, tenant: str) -> None:
        """OpenSearch answers at most 10,000 hits at once."""
        store = OpenSearchTextStore(settings)
        store.upsert(tenant, [text_row(f"r-{place}", text="a") for place in range(12_000)])
        store.upsert(tenant, [text_row(f"r-{place}", text="a") for place in range(11_000, 21_000)])
        found = [row.id for page in store.rows(tenant) for row in page]
        assert len(found) == 21_000
        assert set(found) == {f"r-{place}" for place in range(21_000)}

    def test_a_row_without_the_fields_of_one_is_scanned_too(self, settings: StoreSettings, tenant: str) -> None:
        store = OpenSearchTextStore(settings)
        store.upsert(tenant, [text_row("r-0", text="a")])
        with opensearchpy.OpenSearch(settings.opensearch.url) as client:
            client.index(index=f"{settings.prefix}{tenant}_docs", id="by-hand", body={"note": "x"})
        assert {(row.id, row.doc_id) for page in store.rows(tenant) for row in page} == {("r-0", "d"), ("by-hand", "")}

    def test_highlights_are_the_analyzers_own(self, settings: StoreSettings, tenant: str) -> None:
        store = OpenSearchTextStore(settings)
        row = text_row("t-0", text="The turbines are turning; a turbine turned it. " * 40)
        store.upsert(tenant, [row])
        store.make_searchable(tenant)
        found = store.highlight(tenant, "the TURBINE turns", ["t-0"])["t-0"]
        assert [row.text[start:end] for start, end in found] == ["turbines", "turning", "turbine", "turned"] * 40
        assert found == sorted(found)

    @pytest.mark.parametrize("question", ["the", "?!", "\x00", "word " * 5000, "a AND (b OR", "*"])
    def test_any_question_can_be_highlighted(self, settings: StoreSettings, tenant: str, question: str) -> None:
        store = OpenSearchTextStore(settings)
        store.upsert(tenant, [text_row("t-0", text="turbine")])
        store.make_searchable(tenant)
        assert store.highlight(tenant, question, ["t-0"]) == {}

    def test_a_tenant_may_have_an_analyzer_of_its_own(self, settings: StoreSettings, tenant: str) -> None:
        store = OpenSearchTextStore(analysed(settings, tenant, "german"))
        for place in (tenant, f"{tenant}-b"):
            store.upsert(place, [text_row("t-0", text="Die Mühlen drehen sich")])
            store.make_searchable(place)
        assert [
            len(store.search(place, "eine Mühle", limit=5, filters=Filters())) for place in (tenant, f"{tenant}-b")
        ] == [1, 0]
        assert store.highlight(tenant, "eine Mühle", ["t-0"]) == {"t-0": [(4, 10)]}

    def test_an_index_keeps_its_analyzer_and_that_is_told(self, settings: StoreSettings, tenant: str) -> None:
        german = OpenSearchTextStore(analysed(settings, tenant, "german"))
        german.upsert(tenant, [text_row("t-0", text="Die Mühlen drehen sich")])
        german.make_searchable(tenant)
        french = OpenSearchTextStore(analysed(settings, tenant, "french"))
        for store, told in ((german, []), (french, [("german", "french")])):
            with structlog.testing.capture_logs() as logged:
                store.check()
            ours = [line for line in logged if line.get("index") == f"{settings.prefix}{tenant}_docs"]
            assert [(line["analyzer"], line["set"]) for line in ours] == told
            assert {line["event"] for line in ours} <= {"index_keeps_its_analyzer"}
        assert len(french.search(tenant, "eine Mühle", limit=5, filters=Filters())) == 1

    @pytest.mark.parametrize("had", [["text"], ["text", "searched"], ["text", "chunk_id"]])
    def test_an_index_of_an_earlier_headrace_is_refused_since_nothing_would_be_found_in_it(
        self, settings: StoreSettings, tenant: str, had: list[str]
    ) -> None:
        earlier = settings.model_copy(update={"prefix": f"old{tenant.replace('-', '')}_"})
        index = f"{earlier.prefix}{tenant}_docs"
        with opensearchpy.OpenSearch(settings.opensearch.url) as client:
            client.indices.create(
                index=index, body={"mappings": {"properties": {name: {"type": "text"} for name in had}}}
            )
            try:
                with pytest.raises(Misconfigured, match=f"{index}: made by an earlier headrace"):
                    OpenSearchTextStore(earlier).check()
            finally:
                client.indices.delete(index=index)

    def test_a_title_is_searched_with_the_text(self, settings: StoreSettings, tenant: str) -> None:
        store = OpenSearchTextStore(settings)
        titled = msgspec.structs.replace(
            text_row("t-0", text="It turns."), attributes=Attributes(created_at=NOW, title="Weirs")
        )
        store.upsert(tenant, [titled, text_row("t-1", text="It stands.")])
        store.make_searchable(tenant)
        found = store.search(tenant, "which weir?", limit=5, filters=Filters())
        assert [candidate.id for candidate in found] == ["t-0"]

    def test_two_workers_that_are_first_at_once(self, settings: StoreSettings, tenant: str) -> None:
        stores = [OpenSearchTextStore(settings) for _ in range(4)]
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda place: stores[place].upsert(tenant, [text_row(f"t-{place}", text="a")]), range(4)))
        assert stores[0].count(tenant).chunks == 4

    def test_an_index_that_was_dropped_is_made_anew_as_it_was(
        self, settings: StoreSettings, tenant: str, eventually: Wait
    ) -> None:
        store = OpenSearchTextStore(settings)
        store.upsert(tenant, [text_row("t-0", text="a")])
        with opensearchpy.OpenSearch(settings.opensearch.url) as client:
            client.indices.delete(index=f"{settings.prefix}{tenant}_docs")
            assert store.search(tenant, "walked", limit=5, filters=Filters()) == []
            store.upsert(tenant, [text_row("t-1", text="walking")])
            [mapping] = client.indices.get_mapping(index=f"{settings.prefix}{tenant}_docs").values()
        assert mapping["mappings"]["dynamic"] == "false"
        eventually(lambda: len(store.search(tenant, "walked", limit=5, filters=Filters())) == 1)

    def test_an_index_of_somebody_else_is_refused(self, settings: StoreSettings, tenant: str) -> None:
        with opensearchpy.OpenSearch(settings.opensearch.url) as client:
            client.indices.create(index=f"{settings.prefix}{tenant}_docs")
        with pytest.raises(Misconfigured, match="was not made by headrace"):
            OpenSearchTextStore(settings).upsert(tenant, [text_row("t-0", text="a")])


class TestManifestStore:
    def test_an_absent_manifest_is_empty_and_can_be_written_once(self, manifests: ManifestStore, tenant: str) -> None:
        key = Key(tenant, "d/1")
        [(_, absent)] = manifests.read([key]).items()
        assert absent == Stored(manifest=Manifest(tenant=tenant, doc_id="d/1"))
        first = live_manifest(key)
        assert manifests.write({key: Stored(manifest=first)}) == set()
        assert manifests.write({key: Stored(manifest=live_manifest(key, chunks=9))}) == {key}
        assert manifests.read([key])[key].manifest == first

    def test_only_the_one_that_was_read_is_replaced(self, manifests: ManifestStore, tenant: str) -> None:
        mine, other = Key(tenant, "mine"), Key(tenant, "other")
        manifests.write({key: Stored(manifest=live_manifest(key)) for key in (mine, other)})
        read = manifests.read([mine, other])
        newer = {key: replaced(stored, live_manifest(key, chunks=5)) for key, stored in read.items()}
        assert manifests.write({mine: newer[mine]}) == set()
        assert manifests.write(newer) == {mine}
        assert {
            stored.manifest.live.chunks for stored in manifests.read([mine, other]).values() if stored.manifest.live
        } == {5}

    def test_of_many_writers_one_wins(self, manifests: ManifestStore, tenant: str) -> None:
        key = Key(tenant, "d")
        for _ in range(3):
            read = manifests.read([key])[key]
            replacements = [{key: replaced(read, live_manifest(key, chunks=chunks))} for chunks in range(6)]
            with ThreadPoolExecutor(6) as threads:
                lost = list(threads.map(manifests.write, replacements))
            assert sorted(map(len, lost)) == [0, 1, 1, 1, 1, 1]

    def test_awkward_doc_ids_of_several_tenants_in_one_call(self, manifests: ManifestStore, tenant: str) -> None:
        keys = [Key(place, name) for place in (tenant, f"{tenant}_manifest") for name in AWKWARD_IDS]
        assert manifests.write({key: Stored(manifest=live_manifest(key)) for key in keys}) == set()
        assert {key: stored.manifest for key, stored in manifests.read(keys).items()} == {
            key: live_manifest(key) for key in keys
        }
        assert {tenant, f"{tenant}_manifest"} <= set(manifests.tenants())

    def test_count(self, manifests: ManifestStore, tenant: str) -> None:
        assert msgspec.to_builtins(manifests.count(tenant)) == {"documents": 0, "chunks": 0, "deleted": 0}
        keys = [Key(tenant, str(place)) for place in range(4)]
        replacements = {key: Stored(manifest=live_manifest(key, chunks=place)) for place, key in enumerate(keys)}
        replacements[keys[0]] = Stored(manifest=live_manifest(keys[0], deleted=True))
        replacements[Key(tenant, "let in")] = Stored(manifest=Manifest(tenant=tenant, doc_id="let in", intake=intake()))
        manifests.write(replacements)
        assert msgspec.to_builtins(manifests.count(tenant)) == {"documents": 3, "chunks": 6, "deleted": 1}

    def test_a_scan_gives_each_manifest_once(self, manifests: ManifestStore, tenant: str) -> None:
        assert list(manifests.scan(tenant)) == []
        keys = [Key(tenant, name) for name in AWKWARD_IDS]
        manifests.write({key: Stored(manifest=live_manifest(key)) for key in keys})
        manifests.write({Key(f"{tenant}x", "other"): Stored(manifest=live_manifest(Key(f"{tenant}x", "other")))})
        found = [manifest for page in manifests.scan(tenant) for manifest in page]
        assert sorted(found, key=lambda one: one.key) == [live_manifest(key) for key in sorted(keys)]

    def test_what_a_newer_release_wrote_is_kept_by_whoever_does_not_know_it(
        self, settings: StoreSettings, tenant: str
    ) -> None:
        manifests, key, index = (
            OpenSearchManifestStore(settings),
            Key(tenant, "d"),
            f"{settings.prefix}{tenant}_manifest",
        )
        let_in = Manifest(tenant=tenant, doc_id="d", intake=intake())
        manifests.write({key: Stored(manifest=let_in)})
        with opensearchpy.OpenSearch(settings.opensearch.url) as client:
            newer = client.get(index=index, id="d")["_source"]
            newer["intake"]["language"] = newer["region"] = "new"
            client.index(index=index, id="d", body=newer)
            live = msgspec.structs.replace(let_in, live=live_manifest(key).live)
            assert manifests.write({key: replaced(manifests.read([key])[key], live)}) == set()
            found = client.get(index=index, id="d")["_source"]
        assert (found["region"], found["intake"]["language"]) == ("new", "new")
        assert manifests.read([key])[key].manifest == live

    def test_nothing_read_and_nothing_written(self, manifests: ManifestStore) -> None:
        assert manifests.read([]) == {}
        assert manifests.write({}) == set()


def analysed(settings: StoreSettings, tenant: str, analyzer: str) -> StoreSettings:
    opensearch = settings.opensearch.model_copy(update={"analyzers": {tenant: analyzer}})
    return settings.model_copy(update={"opensearch": opensearch})


def toward(direction: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    vector = np.full(4, 0.1, dtype=np.float32)
    vector[direction] = 1.0
    if direction < 3:
        vector[direction + 1] = 0.3
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def vector_row(name: str, *, doc_id: str = "d", direction: int = 0, attributes: Attributes = ATTRIBUTES) -> VectorRow:
    return VectorRow(
        id=name,
        doc_id=doc_id,
        version=2**63 - 1,
        ordinal=0,
        content_hash="0" * 32,
        attributes=attributes,
        vector=toward(direction),
    )


def text_row(name: str, *, text: str, doc_id: str = "d") -> TextRow:
    return TextRow(
        id=name,
        doc_id=doc_id,
        version=-(2**63),
        ordinal=3,
        content_hash="0" * 32,
        attributes=ATTRIBUTES,
        text=text,
        start=10,
        end=10 + len(text),
        headings=["One", "Two"],
    )


def stored(row: VectorRow | TextRow) -> StoredRow:
    return StoredRow(**{name: getattr(row, name) for name in StoredRow.__struct_fields__})


def revision(version: int = 1) -> Revision:
    return Revision(version=version, timestamp=2, offset=3, fingerprint="f")


def intake() -> Intake:
    return Intake(revision=revision(), content=revision(), chunks=3, at=NOW)


def live_manifest(key: Key, *, chunks: int = 2, deleted: bool = False) -> Manifest:
    live = Live(revision=revision(2**62), chunks=0 if deleted else chunks, at=NOW, deleted=deleted)
    return Manifest(tenant=key.tenant, doc_id=key.doc_id, intake=intake(), live=live)


def replaced(stored: Stored, manifest: Manifest) -> Stored:
    return msgspec.structs.replace(stored, manifest=manifest)


def _drop_collection(settings: StoreSettings, tenant: str) -> None:
    MilvusClient(settings.milvus.uri, timeout=5).drop_collection(collection_name(settings.prefix, tenant))
