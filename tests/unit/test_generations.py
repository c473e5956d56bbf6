"""Which names a generation has, which encoder it is of, and for how long what was read of the record is gone by."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from headrace.config import Settings, load_settings
from headrace.encoders.settings import EncoderSettings
from headrace.errors import Misconfigured
from headrace.stores.manifests import manifest_indexes
from headrace.stores.milvus import _tenant as tenant_of_collection
from headrace.stores.milvus import collection_name
from headrace.stores.opensearch_connection import OpenSearchConnection
from headrace.stores.opensearch_indexes import _is_tenant
from schemas import Generations
from topics import GROUPS, TOPICS, Names
from topics.generations import Reading
from topics.table import DOCUMENT_STAGES, GENERATED, UNTOLD

FIRST, SECOND = Names("p.", "g-"), Names("p.", "g-", "2")


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in [name for name in os.environ if name.upper().startswith("HEADRACE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


class TestNames:
    def test_what_producers_apps_and_operators_see_is_the_same_for_all_generations(self) -> None:
        shared = {topic.name for topic in TOPICS} - GENERATED
        assert shared == {
            "documents.raw",
            "documents.urgent",
            "documents.events",
            "documents.dead",
            "documents.dead.settled",
            "documents.generations",
            "queries",
            "replies",
        }
        assert {name: SECOND.topic(name) for name in shared} == {name: FIRST.topic(name) for name in shared}

    def test_what_lies_between_the_stages_is_a_generations_own(self) -> None:
        assert SECOND.topic("documents.chunks.urgent") == "p.documents.chunks.urgent.g2"
        assert not {SECOND.topic(name) for name in GENERATED} & {FIRST.topic(name) for name in GENERATED}
        assert SECOND.read_by("commit", "bulk") == ["p.documents.stored.g2"]
        assert SECOND.read_by("chunk", "bulk") == FIRST.read_by("chunk", "bulk") == ["p.documents.raw"]

    def test_what_isnt_told_has_a_topic_of_its_own_in_each_generation(self) -> None:
        assert [names.untold(name) for names in (FIRST, SECOND) for name in UNTOLD] == [
            "p.documents.events.g1",
            "p.documents.dead.g1",
            "p.documents.events.g2",
            "p.documents.dead.g2",
        ]
        with pytest.raises(KeyError):
            SECOND.untold("replies")

    def test_document_stages_have_a_group_a_generation_and_questions_have_one(self) -> None:
        assert [SECOND.group(stage) for stage in GROUPS] == [
            *(f"g-g2-{stage}" for stage in DOCUMENT_STAGES),
            FIRST.group("query"),
        ]

    @pytest.mark.parametrize("names", [FIRST, SECOND, Names()])
    def test_a_topic_leads_back_to_its_name_in_the_table(self, names: Names) -> None:
        assert [names.named(names.topic(topic.name)) for topic in TOPICS] == [topic.name for topic in TOPICS]

    def test_a_topic_of_another_generation_or_deployment_has_no_name(self) -> None:
        assert SECOND.named(FIRST.topic("documents.chunks")) is None
        assert FIRST.named(SECOND.topic("documents.chunks")) is None
        assert SECOND.named("p.documents.raw.g2") is None
        assert FIRST.named("documents.raw") is None


class TestStores:
    @pytest.mark.parametrize("tenant", ["default", "g2", "a-b", "g2_default"])
    def test_no_generation_takes_anothers_rows_for_a_tenants(self, tenant: str) -> None:
        first = load_settings().stores
        second = first.of_generation("2")
        collection = collection_name(second.collection_prefix, tenant)
        assert tenant_of_collection(second.collection_prefix, collection) == tenant
        assert tenant_of_collection(first.collection_prefix, collection) is None
        assert tenant_of_collection(second.collection_prefix, collection_name(first.collection_prefix, tenant)) is None
        index = manifest_indexes(OpenSearchConnection(second.opensearch), second).name(tenant)
        assert index.startswith(first.prefix)
        assert not _is_tenant(index.removeprefix(first.index_prefix).removesuffix("_manifest"))


class TestSettings:
    def test_all_names_follow_from_one_setting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HEADRACE_GENERATION__NAME", "12")
        settings = load_settings()
        assert settings.kafka.names.group("chunk") == "headrace-g12-chunk"
        assert (settings.stores.index_prefix, settings.stores.collection_prefix) == ("tenant_g12.", "tenant_G12_")

    @pytest.mark.parametrize("name", ["0", "1", "01", "two", "g2", "10000", "2 "])
    def test_a_generation_is_numbered_from_two(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HEADRACE_GENERATION__NAME", name)
        with pytest.raises(Misconfigured, match=r"generation\.name"):
            load_settings()

    def test_the_settings_of_another_generation_differ_in_its_names_and_its_encoder(self) -> None:
        settings = Settings()
        other = settings.of_generation("2", {"backend": "static"})
        assert other.encoder == EncoderSettings(backend="static", model="wordllama/l2_supercat_256")
        assert other.kafka.names.generation == "2"
        back = other.of_generation("", settings.encoder.vectors())
        assert (back.kafka.names, back.stores.index_prefix, back.encoder) == (
            settings.kafka.names,
            settings.stores.index_prefix,
            settings.encoder,
        )

    def test_an_encoder_that_this_version_does_not_know_is_refused(self) -> None:
        with pytest.raises(Misconfigured, match="generation 2: impossible encoder"):
            Settings().of_generation("2", {"backend": "tarot"})


class TestEncoder:
    def test_how_an_encoder_is_run_and_its_key_are_no_part_of_which_vectors_it_makes(self) -> None:
        theirs = EncoderSettings(
            backend="openai", model="m", dimension=8, base_url="http://a/v1", api_key=SecretStr("hush"), concurrency=2
        )
        vectors = theirs.vectors()
        assert "hush" not in repr(vectors)
        ours = EncoderSettings(device="cuda:1", precision="float16", threads=3)
        made = ours.of_vectors(vectors)
        assert made.vectors() == vectors
        assert (made.api_key, made.threads, made.concurrency, made.device) == (None, 3, 8, "auto")
        assert made.of_vectors(ours.vectors()).model == ours.model

    def test_a_key_and_a_device_are_kept_where_they_are_of_use(self) -> None:
        endpoint = EncoderSettings(backend="openai", model="m", dimension=8, api_key=SecretStr("hush"))
        other = endpoint.of_vectors(endpoint.vectors() | {"model": "n"})
        assert (other.model, other.api_key) == ("n", endpoint.api_key)
        torch = EncoderSettings(device="cuda:1", precision="float16")
        assert torch.of_vectors({"backend": "torch", "model": "n"}).precision == "float16"


class TestReading:
    def test_a_reading_holds_from_the_moment_at_which_it_was_asked_for_as_long_as_it_says(self) -> None:
        near, far = Reading(Generations(lease_s=5.0), asked=100.0), Reading(Generations(), asked=100.0)
        assert [near.holds(now) for now in (100.0, 105.0, 105.1)] == [True, True, False]
        assert [far.holds(now) for now in (105.1, 130.0, 130.1)] == [True, True, False]

    def test_without_a_record_the_first_generation_answers_and_tells_and_nobody_is_held(self) -> None:
        assert (Generations().live, Generations().telling, Generations().held) == ("", "", [])
