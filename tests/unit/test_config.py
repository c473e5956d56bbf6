from pathlib import Path

import pytest

from headrace.config import load_settings
from headrace.errors import Misconfigured


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in [name for name in os.environ if name.upper().startswith("HEADRACE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_the_defaults_are_a_stack_on_this_machine() -> None:
    settings = load_settings()
    assert settings.kafka.bootstrap_servers == "127.0.0.1:9092"
    assert settings.kafka.names.group("chunk") == "headrace-chunk"


def test_the_environment_sets_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_STORES__MILVUS__URI", "http://milvus:19530")
    monkeypatch.setenv("HEADRACE_WORKER__PORT", "0")
    settings = load_settings()
    assert (settings.stores.milvus.uri, settings.worker.port) == ("http://milvus:19530", 0)


def test_the_file_in_this_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text('[kafka]\nbootstrap_servers = "file:9092"\n')
    assert load_settings().kafka.bootstrap_servers == "file:9092"


def test_the_environment_comes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "headrace.toml").write_text('[kafka]\nbootstrap_servers = "file:9092"\npartitions = 3\n')
    monkeypatch.setenv("HEADRACE_KAFKA__BOOTSTRAP_SERVERS", "environment:9092")
    kafka = load_settings().kafka
    assert (kafka.bootstrap_servers, kafka.partitions) == ("environment:9092", 3)


def test_headrace_config_names_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "headrace.toml").write_text("[kafka]\npartitions = 3\n")
    (tmp_path / "other.toml").write_text("[kafka]\npartitions = 4\n")
    monkeypatch.setenv("HEADRACE_CONFIG", str(tmp_path / "other.toml"))
    assert load_settings().kafka.partitions == 4


def test_a_file_that_is_named_and_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CONFIG", "/nowhere.toml")
    with pytest.raises(Misconfigured, match=r"HEADRACE_CONFIG names /nowhere\.toml, which is not a file"):
        load_settings()


def test_a_folder_of_secrets_has_a_file_for_each_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As Kubernetes mounts them: links into a folder that is exchanged as a whole.
    behind = tmp_path / "secrets" / "..2026"
    behind.mkdir(parents=True)
    for name, value in {
        "HEADRACE_STORES__MILVUS__TOKEN": "hush\n",
        "HEADRACE_WORKER__PORT": "9300",
        "user.crt": "a certificate",
    }.items():
        (behind / name).write_text(value)
        (tmp_path / "secrets" / name).symlink_to(f"..2026/{name}")
    (tmp_path / "headrace.toml").write_text("[worker]\nport = 9400\n")
    monkeypatch.setenv("HEADRACE_SECRETS", str(tmp_path / "secrets"))
    settings = load_settings()
    assert settings.stores.milvus.token is not None
    assert settings.stores.milvus.token.get_secret_value() == "hush"
    assert settings.worker.port == 9300
    monkeypatch.setenv("HEADRACE_WORKER__PORT", "9500")
    assert load_settings().worker.port == 9500


def test_an_unknown_file_among_the_secrets_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "HEADRACE_OPENSEARCH__PASSWORD").write_text("hush")
    monkeypatch.setenv("HEADRACE_SECRETS", str(tmp_path))
    with pytest.raises(Misconfigured, match="unknown setting in HEADRACE_SECRETS: HEADRACE_OPENSEARCH__PASSWORD"):
        load_settings()


def test_a_folder_of_secrets_that_is_named_and_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_SECRETS", "/nowhere")
    with pytest.raises(Misconfigured, match="HEADRACE_SECRETS names /nowhere, which is not a folder"):
        load_settings()


@pytest.mark.parametrize(
    "name", ["HEADRACE_KAFKA__BOOTSTRAP", "HEADRACE_KAKFA__PARTITIONS", "HEADRACE_PORT", "HEADRACE_STORES__URI"]
)
def test_an_unknown_variable_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(Misconfigured, match=f"unknown setting in the environment: {name}"):
        load_settings()


def test_an_unknown_entry_of_the_file_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text("[worker]\nprot = 9100\n")
    with pytest.raises(Misconfigured, match=r"worker\.prot"):
        load_settings()


@pytest.mark.parametrize(
    ("variable", "value", "setting"),
    [
        ("HEADRACE_KAFKA__PARTITIONS", "0", "kafka.partitions"),
        ("HEADRACE_KAFKA__PARTITIONS", "many", "kafka.partitions"),
        ("HEADRACE_KAFKA__TOPIC_PREFIX", "a b", "kafka.topic_prefix"),
        ("HEADRACE_KAFKA__SECURITY_PROTOCOL", "TLS", "kafka.security_protocol"),
        ("HEADRACE_STORES__PREFIX", "Big", "stores.prefix"),
        ("HEADRACE_STORES__MILVUS__TIMEOUT_S", "0", "stores.milvus.timeout_s"),
        ("HEADRACE_ENCODER__DEVICE", "tpu", "encoder.device"),
        ("HEADRACE_CHUNKING__MAX_TOKENS", "7", "chunking.max_tokens"),
        ("HEADRACE_WORKER__PORT", "70000", "worker.port"),
        ("HEADRACE_WORKER__BUFFER_BYTES", "1", "worker.buffer_bytes"),
        ("HEADRACE_LOG__LEVEL", "loud", "log.level"),
    ],
)
def test_an_impossible_value_is_refused_by_the_settings_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, setting: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(Misconfigured, match=f"impossible settings: {setting}: "):
        load_settings()


@pytest.mark.parametrize(("max_tokens", "overlap", "fits"), [(64, 32, True), (64, 33, False), (32, 64, False)])
def test_an_overlap_is_at_most_half_of_the_chunk(
    monkeypatch: pytest.MonkeyPatch, max_tokens: int, overlap: int, fits: bool
) -> None:
    monkeypatch.setenv("HEADRACE_CHUNKING__MAX_TOKENS", str(max_tokens))
    monkeypatch.setenv("HEADRACE_CHUNKING__OVERLAP_TOKENS", str(overlap))
    if fits:
        assert load_settings().chunking.overlap_tokens == overlap
    else:
        with pytest.raises(Misconfigured, match=r"chunking\.overlap_tokens must be at most half"):
            load_settings()


def test_a_password_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_KAFKA__SASL_USERNAME", "headrace")
    monkeypatch.setenv("HEADRACE_KAFKA__SASL_PASSWORD", "hush-hush")
    monkeypatch.setenv("HEADRACE_KAFKA__SECURITY_PROTOCOL", "SASL_SSL")
    settings = load_settings()
    assert "hush-hush" not in repr(settings)
    assert settings.kafka.confluent()["sasl.password"] == "hush-hush"
