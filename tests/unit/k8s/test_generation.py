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
SHARED = (
    "toolbox",
    "strimzi",
    "prometheus-operator",
    "grafana",
    "external-secrets",
    "network-policies",
    "istio",
    "model-volume",
)
LABELS = "spec/selector/matchLabels"
SELECTORS = {
    "Deployment": LABELS,
    "PodDisruptionBudget": LABELS,
    "PodMonitor": LABELS,
    "PeerAuthentication": LABELS,
    "AuthorizationPolicy": LABELS,
    "NetworkPolicy": "spec/podSelector/matchLabels",
}
"""Where each kind says which pods it is for."""


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
    objects = with_component(*SHARED, "generation")
    assert {o["kind"] for o in objects} == {*SELECTORS, "ScaledObject", "ConfigMap"}
    assert set(named(objects, "Deployment")) == {f"headrace-{stage}-g2" for stage in DOCUMENT_STAGES}
    assert len(named(objects, "ConfigMap")) == 1, "a dashboard's UID is there once in a Grafana"


def test_the_models_of_both_lie_in_the_firsts_claim(with_component: Build) -> None:
    first, second = with_component(*SHARED), with_component(*SHARED, "generation")
    (claim,) = named(first, "PersistentVolumeClaim")
    for one in named(second, "Deployment").values():
        claims = [v["persistentVolumeClaim"]["claimName"] for v in volumes(one) if "persistentVolumeClaim" in v]
        assert claims == [claim]


def volumes(deployment: Object) -> list[Object]:
    found: list[Object] = deployment["spec"]["template"]["spec"]["volumes"]
    return found


def test_neithers_selectors_find_the_others_pods(with_component: Build) -> None:
    first, second = with_component(*SHARED), with_component(*SHARED, "generation")
    for these, others in ((first, second), (second, first)):
        for kind, path in SELECTORS.items():
            assert named(these, kind)
            for wanted in (selector(one, path) for one in named(these, kind).values()):
                assert not any(wanted <= labels for labels in pods_labels(others))
                assert any(wanted <= labels for labels in pods_labels(these))


def selector(one: Object, path: str) -> set[tuple[str, str]]:
    place: Any = one
    for name in path.split("/"):
        place = place[name]
    return set(place.items())


def pods_labels(objects: list[Object]) -> list[set[tuple[str, str]]]:
    return [set(one["spec"]["template"]["metadata"]["labels"].items()) for one in named(objects, "Deployment").values()]


def test_its_pods_reach_what_the_firsts_reach(with_component: Build) -> None:
    first, second = (named(with_component(*SHARED, *more), "NetworkPolicy") for more in ((), ("generation",)))
    assert {f"{name}-g2" for name in first} == set(second)
    for name, policy in first.items():
        for way in ("ingress", "egress"):
            assert second[f"{name}-g2"]["spec"].get(way) == policy["spec"].get(way)


def test_its_metrics_say_which_generation_they_are_of(with_component: Build) -> None:
    (first,) = named(with_component("prometheus-operator"), "PodMonitor").values()
    (second,) = named(with_component("prometheus-operator", "generation"), "PodMonitor").values()
    (endpoint,) = second["spec"]["podMetricsEndpoints"]
    assert endpoint.pop("relabelings") == [{"targetLabel": "generation", "replacement": SECOND.generation}]
    assert [endpoint] == first["spec"]["podMetricsEndpoints"]


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
