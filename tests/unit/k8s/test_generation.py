"""The workers of a second generation, as k8s/components/generation makes them beside the first one's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.config import load_settings
from topics import LANES, Names
from topics.table import DOCUMENT_STAGES

Object = dict[str, Any]
Build = Callable[..., list[Object]]
SECOND = Names(generation="2")
SHARED = ("strimzi", "prometheus-operator", "external-secrets", "network-policies", "model-volume")


def named(objects: list[Object], kind: str) -> dict[str, Object]:
    return {o["metadata"]["name"]: o for o in objects if o["kind"] == kind}


def test_it_is_the_document_stages_under_names_of_their_own(with_component: Build) -> None:
    objects = with_component("generation")
    names = {f"headrace-{stage}-g2" for stage in DOCUMENT_STAGES}
    for kind in ("Deployment", "ScaledObject", "PodDisruptionBudget"):
        assert set(named(objects, kind)) == names
    assert {o["kind"] for o in objects} == {"Deployment", "ScaledObject", "PodDisruptionBudget", "ConfigMap"}
    for name, scaled in named(objects, "ScaledObject").items():
        assert scaled["spec"]["scaleTargetRef"] == {"name": name}


def test_nothing_of_it_has_the_name_of_anything_of_the_first(with_component: Build) -> None:
    def places(objects: list[Object]) -> set[tuple[str, str]]:
        return {(o["kind"], o["metadata"]["name"]) for o in objects}

    assert not places(with_component(*SHARED)) & places(with_component(*SHARED, "generation"))


def test_what_is_there_once_is_left_to_the_first(with_component: Build) -> None:
    kinds = {o["kind"] for o in with_component(*SHARED, "generation")}
    assert not kinds & {"KafkaTopic", "KafkaUser", "TriggerAuthentication", "ExternalSecret", "PrometheusRule", "Job"}


def test_neithers_selectors_find_the_others_pods(overlay: Build, with_component: Build) -> None:
    first, second = overlay("base"), with_component("generation")
    for these, others in ((first, second), (second, first)):
        for kind in ("Deployment", "PodDisruptionBudget"):
            for one in named(these, kind).values():
                wanted = one["spec"]["selector"]["matchLabels"].items()
                for other in named(others, "Deployment").values():
                    assert not wanted <= other["spec"]["template"]["metadata"]["labels"].items()
    for one in named(second, "Deployment").values():
        labels = one["spec"]["template"]["metadata"]["labels"]
        assert one["spec"]["selector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize("stage", DOCUMENT_STAGES)
def test_a_stage_scales_on_its_own_groups_lag_on_the_generations_topics(with_component: Build, stage: str) -> None:
    scaled = named(with_component("generation"), "ScaledObject")[f"headrace-{stage}-g2"]
    triggers = [trigger["metadata"] for trigger in scaled["spec"]["triggers"] if trigger["type"] == "kafka"]
    assert [t["topic"] for t in triggers] == [t for lane in reversed(LANES) for t in SECOND.read_by(stage, lane)]
    assert {t["consumerGroup"] for t in triggers} == {SECOND.group(stage)}


@pytest.mark.parametrize("stage", DOCUMENT_STAGES)
def test_its_settings_exist_and_name_the_generation(
    with_component: Build, stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    objects = with_component("generation")
    (worker,) = named(objects, "Deployment")[f"headrace-{stage}-g2"]["spec"]["template"]["spec"]["containers"]
    (source,) = worker["envFrom"]
    for name, value in named(objects, "ConfigMap")[source["configMapRef"]["name"]]["data"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HEADRACE_SECRETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    assert settings.generation.name == "2"
    assert settings.kafka.names.group(stage) == SECOND.group(stage)
