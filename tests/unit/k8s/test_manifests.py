"""What can be known of k8s/ without a cluster: each object is valid, and all of them agree with the code's own tables."""

import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import yaml
from jsonschema import Draft7Validator, Draft202012Validator, ValidationError
from pydantic import BaseModel, SecretStr

from agents import app
from agents.worker import build_app
from headrace import telemetry, wiring
from headrace.cli.settling import producer_config
from headrace.cli.worker import KILL_GRACE_S
from headrace.config import ENV_PREFIX, Settings, load_settings
from headrace.encoders.settings import EncoderSettings
from headrace.stores.manifests import OpenSearchManifestStore
from headrace.stores.milvus import MilvusStore
from headrace.stores.opensearch import OpenSearchTextStore
from topics import GROUPS, LANES, TOPICS, Names, generations
from topics.provisioning import topic_config
from topics.settings import KafkaSettings
from topics.table import APPS, DOCUMENT_STAGES, GENERATED, PRODUCERS, UNTOLD

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data" / "kubernetes"
CORE = json.loads((DATA / "core-1.34.json").read_text())
CUSTOM = json.loads((DATA / "custom-resources.json").read_text())
WRITTEN_HERE = yaml.safe_load((DATA / "custom-resources.yaml").read_text())
OVERLAYS = ("dev", "prod", "gpu")
COMPONENTS = sorted(folder.name for folder in (ROOT / "k8s" / "components").iterdir())
WORKLOADS = ("Deployment", "Job")
NAMES = Names()

Object = dict[str, Any]
Objects = list[Object]
Build = Callable[..., Objects]


def one(objects: Objects, kind: str, name: str) -> Object:
    found = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def pods(objects: Objects) -> dict[str, Object]:
    """The pod's spec of each workload, by the workload's name."""
    return {o["metadata"]["name"]: o["spec"]["template"]["spec"] for o in objects if o["kind"] in WORKLOADS}


def container(objects: Objects, stage: str) -> Object:
    (worker,) = pods(objects)[f"headrace-{stage}"]["containers"]
    return worker


def environment(objects: Objects, stage: str) -> dict[str, str]:
    """What the stage's worker finds in its environment."""
    worker = container(objects, stage)
    (source,) = worker["envFrom"]
    shared = one(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
    cores = worker["resources"]["requests"]["cpu"]
    own = {
        variable["name"]: variable.get("value") or cores
        for variable in worker.get("env", [])
        if "value" in variable or variable["valueFrom"]["resourceFieldRef"]["resource"] == "requests.cpu"
    }
    return shared | own


def settings_of(objects: Objects, stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    for name, value in environment(objects, stage).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HEADRACE_SECRETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # Away from any headrace.toml.
    return load_settings()


def kafka_triggers(objects: Objects, stage: str) -> list[dict[str, str]]:
    scaled = one(objects, "ScaledObject", f"headrace-{stage}")
    return [trigger["metadata"] for trigger in scaled["spec"]["triggers"] if trigger["type"] == "kafka"]


# The objects themselves


def problems(objects: Objects) -> Iterator[str]:
    for o in objects:
        place = f"{o['apiVersion']}/{o['kind']}"
        found: list[ValidationError] = []
        if place in CUSTOM:
            found += Draft202012Validator(CUSTOM[place]).iter_errors(o)
        if place in WRITTEN_HERE:
            found += Draft202012Validator(WRITTEN_HERE[place]).iter_errors(o["spec"])
        if place not in {*CUSTOM, *WRITTEN_HERE}:
            schema = CORE["kinds"][o["kind"]] | {"definitions": CORE["definitions"]}
            found += Draft7Validator(schema).iter_errors(o)
        yield from (f"{place} {o['metadata']['name']}: {error.json_path}: {error.message}" for error in found)


@pytest.mark.parametrize("name", OVERLAYS)
def test_each_object_of_an_overlay_is_valid(overlay: Build, name: str) -> None:
    assert [*problems(overlay(name))] == []


@pytest.mark.parametrize("name", COMPONENTS)
def test_each_object_of_a_component_is_valid_on_the_base_alone(with_component: Build, name: str) -> None:
    assert [*problems(with_component(name))] == []


def test_a_field_that_is_not_there_is_found(overlay: Build) -> None:
    objects = json.loads(json.dumps(overlay("dev")))
    one(objects, "Deployment", "headrace-chunk")["spec"]["template"]["spec"]["enableServiceLink"] = False
    scaled = one(objects, "ScaledObject", "headrace-chunk")["spec"]
    scaled["triggers"][0]["metadata"]["lagTreshold"] = "1"
    scaled["cooldownPeriods"] = 300
    assert len([*problems(objects)]) == 3


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_object_is_there_twice_and_no_secret_is_written_down(overlay: Build, name: str) -> None:
    objects = overlay(name)
    places = [(o["kind"], o["metadata"]["name"]) for o in objects]
    assert len(places) == len(set(places))
    assert "Secret" not in {kind for kind, _ in places}


# A stage


@pytest.mark.parametrize(("index", "stage"), list(enumerate(GROUPS)))
def test_each_stage_of_the_topic_table_is_one_file_of_the_base(index: int, stage: str, overlay: Build) -> None:
    kinds = [o["kind"] for o in yaml.safe_load_all((ROOT / "k8s" / "base" / f"{stage}.yaml").read_text())]
    assert kinds == ["Deployment", "ScaledObject", "PodDisruptionBudget"]
    worker = container(overlay("base"), stage)
    assert worker["args"] == ["worker", stage]
    assert worker["ports"] == [{"name": "health", "containerPort": Settings.model_construct().worker.port + index}]


@pytest.mark.parametrize("name", OVERLAYS)
def test_there_are_no_other_workloads_than_the_stages_the_topics_job_and_the_toolbox(overlay: Build, name: str) -> None:
    workloads = {(o["kind"], o["metadata"]["name"]) for o in overlay(name) if o["kind"] in WORKLOADS}
    topics = set() if name in {"prod", "gpu"} else {("Job", "headrace-topics")}  # Strimzi makes them there.
    assert workloads == {("Deployment", f"headrace-{name}") for name in (*GROUPS, "toolbox")} | topics


@pytest.mark.parametrize("stage", GROUPS)
def test_what_belongs_to_a_stage_points_at_its_pods(overlay: Build, stage: str) -> None:
    name = f"headrace-{stage}"
    objects = overlay("prod")
    deployment = one(objects, "Deployment", name)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/component"] == stage
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        one(objects, "PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"],
    ):
        assert selector["app.kubernetes.io/component"] == stage
        assert selector.items() <= labels.items()
    assert one(objects, "ScaledObject", name)["spec"]["scaleTargetRef"] == {"name": name}
    assert "replicas" not in deployment["spec"], "each apply would undo what KEDA chose"


@pytest.mark.parametrize("name", OVERLAYS)
@pytest.mark.parametrize("stage", GROUPS)
def test_every_setting_of_a_stage_exists(
    overlay: Build, name: str, stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = settings_of(overlay(name), stage, monkeypatch, tmp_path)
    assert settings.log.format == "json"


@pytest.mark.parametrize(
    ("component", "sasl", "credentials"),
    [
        ("kafka-sasl", "scram_sha512", lambda kafka: (kafka.sasl_username, kafka.password())),
        (
            "kafka-oauth",
            "oauthbearer",
            lambda kafka: (kafka.oauth.client_id, kafka.oauth.client_secret.get_secret_value()),
        ),
    ],
)
def test_the_settings_of_kafka_behind_sasl_are_whole_with_its_secret(
    with_component: Build,
    component: str,
    sasl: str,
    credentials: Callable[[KafkaSettings], tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    objects = with_component(component)
    references = one(objects, "TriggerAuthentication", "headrace-kafka")["spec"]["secretTargetRef"]
    for reference in references:
        value = "https://issuer.example/token" if reference["key"].endswith("_URL") else reference["parameter"]
        (tmp_path / reference["key"]).write_text(value)
    kafka = settings_of(objects, "chunk", monkeypatch, tmp_path).kafka
    assert credentials(kafka) == ("username", "password")
    assert kafka.secured
    for trigger in kafka_triggers(objects, "chunk"):
        assert (trigger["sasl"], trigger["tls"]) == (sasl, "enable")
        assert kafka.sasl_mechanism.replace("-", "").lower() == sasl.replace("_", "")


@pytest.mark.parametrize("name", OVERLAYS)
def test_secrets_are_files_and_never_variables(overlay: Build, name: str) -> None:
    objects = overlay(name)
    hidden = {*secret_variables(Settings, ENV_PREFIX)}
    assert f"{ENV_PREFIX}STORES__OPENSEARCH__PASSWORD" in hidden
    for stage in GROUPS:
        assert not hidden & environment(objects, stage).keys()
        mounts = {mount["name"]: mount["mountPath"] for mount in container(objects, stage)["volumeMounts"]}
        assert mounts["secrets"] == environment(objects, stage)["HEADRACE_SECRETS"]
    for pod in pods(objects).values():
        assert not any("secretRef" in source for c in pod["containers"] for source in c["envFrom"])
        assert not any("secretKeyRef" in v.get("valueFrom", {}) for c in pod["containers"] for v in c.get("env", []))


def secret_variables(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from secret_variables(field.annotation, f"{prefix}{name.upper()}__")
        elif SecretStr in (field.annotation, *getattr(field.annotation, "__args__", ())):
            yield prefix + name.upper()


# Pods


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_pod_is_confined(overlay: Build, name: str) -> None:
    user = int(re.findall(r"(?m)^USER (\d+)", (ROOT / "Dockerfile").read_text())[-1])
    for pod in pods(overlay(name)).values():
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == user
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for c in pod["containers"]:
            assert c["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= c["resources"]["requests"].keys()
            assert "memory" in c["resources"]["limits"]
            assert re.search(r":\d+\.\d+\.\d+$", c["image"])
            written = {mount["mountPath"] for mount in c["volumeMounts"] if not mount.get("readOnly")}
            assert written == {"/tmp"}


@pytest.mark.parametrize("name", OVERLAYS)
@pytest.mark.parametrize("stage", GROUPS)
def test_a_pod_has_longer_to_stop_than_its_worker_takes(
    overlay: Build, name: str, stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drain_s = settings_of(overlay(name), stage, monkeypatch, tmp_path).worker.drain_timeout_s
    assert pods(overlay(name))[f"headrace-{stage}"]["terminationGracePeriodSeconds"] > drain_s + KILL_GRACE_S


def test_what_a_worker_writes_lies_on_the_volume_that_it_may_write_to() -> None:
    image = (ROOT / "Dockerfile").read_text()
    for variable in ("HOME", "HEADRACE_WORKER__DATA_DIR"):
        assert re.search(rf"{variable}=/tmp\b", image)


def test_probes_and_metrics_are_asked_for_where_a_worker_answers(with_component: Build) -> None:
    objects = with_component("prometheus-operator")
    port = telemetry.serve_health("127.0.0.1", 0, stuck=lambda: None, unready=lambda: None)
    (endpoint,) = one(objects, "PodMonitor", "headrace")["spec"]["podMetricsEndpoints"]
    paths = {endpoint["path"]}
    for stage in GROUPS:
        worker = container(objects, stage)
        assert worker["startupProbe"]["httpGet"]["path"] == worker["livenessProbe"]["httpGet"]["path"] == "/healthz"
        assert worker["readinessProbe"]["httpGet"]["path"] == "/readyz"
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert worker[probe]["httpGet"]["port"] == worker["ports"][0]["name"] == endpoint["port"]
            paths.add(worker[probe]["httpGet"]["path"])
    for path in paths:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
            assert answer.status == 200


# Scaling


@pytest.mark.parametrize("name", OVERLAYS)
@pytest.mark.parametrize("stage", GROUPS)
def test_a_stage_scales_on_the_lag_of_its_group_on_each_of_its_topics(overlay: Build, name: str, stage: str) -> None:
    triggers = kafka_triggers(overlay(name), stage)
    assert [t["topic"] for t in triggers] == [t for lane in reversed(LANES) for t in NAMES.read_by(stage, lane)]
    assert {t["consumerGroup"] for t in triggers} == {NAMES.group(stage)}
    assert {t["bootstrapServersFromEnv"] for t in triggers} <= environment(overlay(name), stage).keys()


@pytest.mark.parametrize("stage", GROUPS)
def test_triggers_read_offsets_as_the_workers_do(overlay: Build, stage: str, tmp_path: Path) -> None:
    defaults = Settings.model_construct()
    worker = defaults.worker.model_copy(update={"data_dir": tmp_path})
    policy = build_app(stage, defaults.kafka, worker).conf.consumer_auto_offset_reset
    for trigger in kafka_triggers(overlay("base"), stage):
        assert trigger["offsetResetPolicy"] == policy
        assert trigger["activationLagThreshold"] == "0", "a single document would not wake the stage"
        assert trigger["scaleToZeroOnInvalidOffset"] == trigger["excludePersistentLag"] == "false"
        assert trigger["ensureEvenDistributionOfPartitions"] == "true"


@pytest.mark.parametrize("name", OVERLAYS)
def test_there_are_never_more_pods_than_partitions_and_none_only_where_nobody_waits(overlay: Build, name: str) -> None:
    for stage in GROUPS:
        spec = one(overlay(name), "ScaledObject", f"headrace-{stage}")["spec"]
        assert Settings.model_construct().kafka.partitions % spec["maxReplicaCount"] == 0
        assert (spec["minReplicaCount"] == 0) == (stage != "query")
        assert spec["fallback"]["replicas"] >= max(1, spec["minReplicaCount"])
        assert spec["fallback"]["behavior"] == "currentReplicasIfHigher"


def test_thresholds_are_what_a_pod_clears_in_the_time_that_a_message_may_wait(
    overlay: Build, with_component: Build
) -> None:
    """By the table in docs/kubernetes.md."""
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    head, *lines = re.findall(r"(?m)^\| (.+) \|$", text.partition("## Thresholds")[2].partition("\n## ")[0])
    assert head.split(" | ") == [
        "stage",
        "messages a second",
        "may wait, s",
        "`lagThreshold`",
        "urgent may wait, s",
        "`lagThreshold`",
    ]
    objects = {"embed, with a GPU": with_component("gpu")}
    seen = set()
    for line in lines[1:]:
        stage, rate, wait, threshold, urgent_wait, urgent_threshold = line.split(" | ")
        told = [(wait, threshold)] + ([(urgent_wait, urgent_threshold)] if urgent_wait != "-" else [])
        assert [float(rate) * float(wait) for wait, _ in told] == [float(threshold) for _, threshold in told]
        triggers = kafka_triggers(objects.get(stage, overlay("base")), stage.partition(",")[0])
        assert [trigger["lagThreshold"] for trigger in triggers] == [threshold for _, threshold in told]
        seen.add(stage)
    assert seen == {*GROUPS, *objects}


def test_a_pod_of_query_counts_as_full_before_its_questions_wait(with_component: Build) -> None:
    objects = with_component("prometheus-operator")
    slots = Settings.model_construct().query.in_flight
    (lag,) = kafka_triggers(objects, "query")
    (prometheus,) = [
        t for t in one(objects, "ScaledObject", "headrace-query")["spec"]["triggers"] if t["type"] == "prometheus"
    ]
    assert int(lag["lagThreshold"]) < slots
    assert int(prometheus["metadata"]["threshold"]) < slots
    (metric,) = re.findall(r"\bheadrace_\w+", prometheus["metadata"]["query"])
    assert metric in {family.name for family in prometheus_client.REGISTRY.collect()}


# Where people work


@pytest.mark.parametrize("name", ["prod", "gpu"])
def test_the_toolbox_has_the_settings_of_the_stages_the_rights_of_an_operator_and_both_stores(
    overlay: Build, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    objects = overlay(name)
    assert environment(objects, "toolbox") == environment(objects, "chunk")
    settings = settings_of(objects, "toolbox", monkeypatch, tmp_path)
    (secrets,) = [v for v in pods(objects)["headrace-toolbox"]["volumes"] if v["name"] == "secrets"]
    sources = {source["secret"]["name"]: source["secret"] for source in secrets["projected"]["sources"]}
    assert {"headrace-operator", "headrace-milvus", "headrace-opensearch"} <= sources.keys()
    (mount,) = [m for m in container(objects, "toolbox")["volumeMounts"] if m["name"] == "secrets"]
    files = {f"{mount['mountPath']}/{item['path']}" for item in sources["headrace-operator"]["items"]}
    assert {str(settings.kafka.tls.certificate), str(settings.kafka.tls.key)} == files
    for server in ("milvus", "opensearch"):
        assert "toolbox" in selected(one(objects, "NetworkPolicy", f"headrace-{server}")["spec"])
    stages = pods(objects)["headrace-chunk"]["volumes"]
    assert [v for v in stages if v["name"] == "models"] == [
        v for v in pods(objects)["headrace-toolbox"]["volumes"] if v["name"] == "models"
    ]


# Kafka's topics and rights


def test_strimzi_has_the_topic_table(with_component: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    objects = with_component("strimzi")
    partitions = Settings.model_construct().kafka.partitions
    topics = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "KafkaTopic"}
    assert topics == {t.name: {"partitions": partitions, "replicas": 3, "config": topic_config(t, 3)} for t in TOPICS}
    kafka = settings_of(objects, "chunk", monkeypatch, tmp_path).kafka
    assert (kafka.partitions, kafka.secured) == (partitions, True)
    assert kafka.topic_prefix == "", "the table's names are without a prefix"


def acls(user: Object) -> set[tuple[str, str, str, str]]:
    return {
        (acl["resource"]["type"], acl["resource"]["name"], acl["resource"]["patternType"], operation)
        for acl in user["spec"]["authorization"]["acls"]
        for operation in acl["operations"]
    }


def may(user: Object, operation: str, kind: str, name: str) -> bool:
    return any(
        (what, right) == (kind, operation) and (name == its or (pattern == "prefix" and name.startswith(its)))
        for what, its, pattern, right in acls(user)
    )


@pytest.mark.parametrize("stage", GROUPS)
@pytest.mark.parametrize("generation", ["", "2", "11"])
def test_a_stage_may_read_and_write_what_the_topic_table_says_and_nothing_else(
    with_component: Build, stage: str, generation: str
) -> None:
    user, names = one(with_component("strimzi"), "KafkaUser", f"headrace-{stage}"), Names(generation=generation)
    for topic in TOPICS:
        reads, writes = stage in (*topic.read_by, *topic.watched_by), stage in topic.written_by
        assert may(user, "Read", "topic", names.topic(topic.name)) == reads
        assert may(user, "Write", "topic", names.topic(topic.name)) == writes
        assert may(user, "Describe", "topic", names.topic(topic.name)) == (reads or writes)
    if stage in DOCUMENT_STAGES:
        for name in UNTOLD:
            assert may(user, "Write", "topic", names.untold(name))
    for right in ("Describe", "Read"):
        assert may(user, right, "group", names.group(stage))
    assert may(user, "Write", "topic", "replies.app") == (stage == "query")
    assert {operation for *_, operation in acls(user)} == {"Describe", "Read", "Write"}
    others = {Names().group(other) for other in GROUPS if other != stage}
    assert not any(may(user, "Read", "group", other) for other in others)


@pytest.mark.parametrize("generation", ["", "2"])
def test_keda_may_look_at_every_lag_and_do_nothing_else(with_component: Build, generation: str) -> None:
    keda, names = one(with_component("strimzi"), "KafkaUser", "headrace-keda"), Names(generation=generation)
    for stage in GROUPS:
        assert may(keda, "Describe", "group", names.group(stage))
        for lane in LANES:
            assert all(may(keda, "Describe", "topic", topic) for topic in names.read_by(stage, lane))
    assert {operation for *_, operation in acls(keda)} == {"Describe"}


def test_an_operator_may_do_what_the_commands_do_and_keeps_what_cannot_be_made_again(with_component: Build) -> None:
    operator, second = one(with_component("strimzi"), "KafkaUser", "headrace-operator"), Names(generation="2")
    for topic in TOPICS:
        for right in ("Describe", "DescribeConfigs", "Read"):
            assert may(operator, right, "topic", topic.name)
        if topic.name != "replies":
            assert may(operator, "Write", "topic", topic.name)
        assert may(operator, "Delete", "topic", topic.name) == (topic.name in GENERATED)
    made = {*map(second.topic, GENERATED), *map(second.untold, UNTOLD)}
    assert all(may(operator, right, "topic", name) for name in made for right in ("Create", "Delete"))
    for stage in GROUPS:
        assert may(operator, "Describe", "group", NAMES.group(stage))
        assert may(operator, "Delete", "group", second.group(stage))
    for writer in (producer_config({}, NAMES)["transactional.id"], NAMES.topic(generations.TOPIC)):
        assert may(operator, "Write", "transactionalId", writer)


def test_producers_and_applications_may_do_what_the_topic_table_says_and_nothing_else(with_component: Build) -> None:
    for who, name in ((PRODUCERS, "headrace-producer"), (APPS, "headrace-app")):
        user = one(with_component("strimzi"), "KafkaUser", name)
        for topic in TOPICS:
            assert may(user, "Read", "topic", topic.name) == (who in topic.read_by)
            assert may(user, "Write", "topic", topic.name) == (who in topic.written_by)
        assert may(user, "Describe", "group", "headrace-client")
        assert {operation for *_, operation in acls(user)} == {"Describe", "Read", "Write"}


@pytest.mark.parametrize("component", ["strimzi", "kafka-sasl", "kafka-oauth"])
def test_keda_asks_the_brokers_as_safely_as_the_workers(with_component: Build, component: str) -> None:
    objects = with_component(component)
    for stage in GROUPS:
        for trigger in one(objects, "ScaledObject", f"headrace-{stage}")["spec"]["triggers"]:
            assert trigger["metadata"]["tls"] == "enable"
            assert one(objects, "TriggerAuthentication", trigger["authenticationRef"]["name"])


# Who talks to whom


def stores_of(stage: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The stores that a stage's worker is built with."""
    used = set()
    for store, adapter in (
        ("milvus", MilvusStore),
        ("opensearch", OpenSearchTextStore),
        ("opensearch", OpenSearchManifestStore),
    ):
        monkeypatch.setattr(adapter, "__init__", lambda *_, name=store: used.add(name))
        monkeypatch.setattr(adapter, "check", lambda _: None, raising=False)
    monkeypatch.setattr(wiring, "build_encoder", lambda _: None)
    app.build_stage(stage, Settings.model_construct(encoder=EncoderSettings(reuse="always")))
    return used


def selected(policy: Object) -> list[str]:
    """The components whose pods a policy is for."""
    (expression,) = policy["podSelector"]["matchExpressions"]
    assert (expression["key"], expression["operator"]) == ("app.kubernetes.io/component", "In")
    return expression["values"]


@pytest.mark.parametrize("stage", GROUPS)
def test_a_stage_reaches_the_stores_that_it_works_with_and_has_their_secrets_alone(
    with_component: Build, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = stores_of(stage, monkeypatch)
    objects = with_component("network-policies")
    policies = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "NetworkPolicy"}
    allowed = {store for store in ("milvus", "opensearch") if stage in selected(policies[f"headrace-{store}"])}
    assert allowed == used
    reached = {name for name in ("https", "models") if stage in selected(policies[f"headrace-{name}"])}
    assert reached == {"chunk": {"https"}, "embed": {"https", "models"}, "query": {"https", "models"}}.get(stage, set())
    (secrets,) = [v for v in pods(objects)[f"headrace-{stage}"]["volumes"] if v["name"] == "secrets"]
    mounted = {source["secret"]["name"].removeprefix("headrace-") for source in secrets["projected"]["sources"]}
    assert mounted & {"milvus", "opensearch"} == used
    assert ("llm" in mounted) == (stage == "query")
    assert all(source["secret"]["optional"] for source in secrets["projected"]["sources"])


@pytest.mark.parametrize("stage", GROUPS)
def test_a_collectors_token_is_among_the_secrets_of_each_stage(with_component: Build, stage: str) -> None:
    pod = pods(with_component("tracing"))[f"headrace-{stage}"]
    (secrets,) = [volume for volume in pod["volumes"] if volume["name"] == "secrets"]
    assert {"secret": {"name": "headrace-tracing", "optional": True}} in secrets["projected"]["sources"]


def test_policies_open_the_ports_at_which_the_settings_look(with_component: Build) -> None:
    policies = {
        o["metadata"]["name"]: o["spec"] for o in with_component("network-policies") if o["kind"] == "NetworkPolicy"
    }
    assert policies["headrace-nothing-else"]["policyTypes"] == ["Ingress", "Egress"]
    assert policies["headrace-nothing-else"].keys() == {"podSelector", "policyTypes"}
    plain, strimzi = (
        environment(with_component("network-policies"), "query"),
        environment(with_component("strimzi"), "query"),
    )
    for server, addresses in {
        "kafka": {plain["HEADRACE_KAFKA__BOOTSTRAP_SERVERS"], strimzi["HEADRACE_KAFKA__BOOTSTRAP_SERVERS"]},
        "milvus": {plain["HEADRACE_STORES__MILVUS__URI"]},
        "opensearch": {plain["HEADRACE_STORES__OPENSEARCH__URL"]},
        "tracing": {environment(with_component("tracing"), "query")["HEADRACE_TRACING__ENDPOINT"]},
    }.items():
        (rule,) = policies[f"headrace-{server}"]["egress"]
        (peer,) = rule["to"]
        namespace = peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        hosts = [address.split("://")[-1].split(":") for address in addresses]
        assert {host.split(".")[1] for host, _ in hosts} == {namespace}
        assert {int(port) for _, port in hosts} == {port["port"] for port in rule["ports"]}


@pytest.mark.parametrize("name", ["milvus", "opensearch", "llm", "encoder", "tracing"])
def test_what_comes_from_a_vault_is_what_pods_mount(with_component: Build, name: str) -> None:
    objects = with_component("external-secrets")
    secret = one(objects, "ExternalSecret", f"headrace-{name}")["spec"]["target"]["name"]
    mounted = {
        source["secret"]["name"]
        for pod in pods(objects).values()
        for volume in pod["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
    }
    assert secret in mounted


# The GPU


def test_with_a_gpu_only_embed_changes_and_it_says_so_when_it_has_none(
    with_component: Build, overlay: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    objects = with_component("gpu")
    pod, before = pods(objects)["headrace-embed"], pods(overlay("base"))["headrace-embed"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["tolerations"]
    assert pod["affinity"]
    assert pod["volumes"] == before["volumes"]
    assert settings_of(objects, "embed", monkeypatch, tmp_path).encoder.device == "cuda"
    assert [pods(objects)[name] for name in pods(objects) if name != "headrace-embed"] == [
        pods(overlay("base"))[name] for name in pods(overlay("base")) if name != "headrace-embed"
    ]


def test_a_model_from_a_volume_is_found_by_its_public_name_in_every_stage(
    with_component: Build, overlay: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The name is what its vectors are stored under: the same with a volume and without, another one for another model."""
    objects = with_component("model-volume")
    for stage in GROUPS:
        (mount,) = [m for m in container(objects, stage)["volumeMounts"] if m["name"] == "models"]
        assert environment(objects, stage)["HF_HUB_CACHE"] == mount["mountPath"]
        assert mount["readOnly"] is True
        its = settings_of(objects, stage, monkeypatch, tmp_path).encoder.model
        assert its == settings_of(overlay("base"), stage, monkeypatch, tmp_path).encoder.model


def test_models_out_of_an_image_are_copied_to_where_stages_look_by_a_confined_container(with_component: Build) -> None:
    objects = with_component("model-image")
    for stage in GROUPS:
        worker, pod = container(objects, stage), pods(objects)[f"headrace-{stage}"]
        (copying,) = pod["initContainers"]
        (written,) = copying["volumeMounts"]
        assert copying["command"][-1] == environment(objects, stage)["HF_HUB_CACHE"] == written["mountPath"]
        (read,) = [mount for mount in worker["volumeMounts"] if mount["name"] == written["name"]]
        assert (read["mountPath"], read["readOnly"]) == (written["mountPath"], True)
        (volume,) = [volume for volume in pod["volumes"] if volume["name"] == written["name"]]
        assert "emptyDir" in volume
        assert copying["securityContext"] == worker["securityContext"]
        assert {"cpu", "memory"} <= copying["resources"]["requests"].keys()
        assert re.search(r":\d+\.\d+\.\d+$", copying["image"])
        assert "envFrom" not in copying, "it needs no setting and no secret"
