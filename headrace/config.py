"""The one place of all settings: defaults, then a TOML file, then the environment; unknown or impossible ones are
refused.

`HEADRACE_KAFKA__BOOTSTRAP_SERVERS=broker:9092` in the environment is `bootstrap_servers = "broker:9092"` under
`[kafka]` in `headrace.toml` (or in the file that `HEADRACE_CONFIG` names).
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from headrace.auth.settings import AuthSettings
from headrace.chunking.settings import ChunkingSettings
from headrace.encoders.settings import EncoderSettings
from headrace.errors import Misconfigured
from headrace.llm.settings import LLMSettings
from headrace.localstack.settings import LocalStackSettings
from headrace.rerank.settings import RerankSettings
from headrace.retrieval.settings import RetrievalSettings
from headrace.serving.settings import QuerySettings
from headrace.stores.settings import StoreSettings
from topics import Names

ENV_PREFIX = "HEADRACE_"
SYSLOG_WARNING = 4
"""librdkafka tells of its own housekeeping at the level above."""
CONFIG_VARIABLE = "HEADRACE_CONFIG"
DEFAULT_FILE = "headrace.toml"
Prefix = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{0,64}$")]


class KafkaSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    bootstrap_servers: str = "127.0.0.1:9092"
    topic_prefix: Prefix = ""
    group_prefix: Prefix = "headrace-"
    partitions: Annotated[int, Field(ge=1)] = 12
    replication: Annotated[int, Field(ge=1)] = 1
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_ca: str | None = None

    @property
    def names(self) -> Names:
        return Names(self.topic_prefix, self.group_prefix)

    def confluent(self) -> dict[str, Any]:
        """Connection settings as confluent-kafka spells them."""
        config: dict[str, Any] = {
            "bootstrap.servers": self.bootstrap_servers,
            "security.protocol": self.security_protocol,
            "log_level": SYSLOG_WARNING,
        }
        if self.security_protocol.startswith("SASL"):
            config["sasl.mechanism"] = self.sasl_mechanism
            config["sasl.username"] = self.sasl_username
            config["sasl.password"] = self.sasl_password.get_secret_value() if self.sasl_password else None
        if self.ssl_ca:
            config["ssl.ca.location"] = self.ssl_ca
        return config


class WorkerSettings(BaseModel):
    """How a stage's process behaves. Times in seconds, sizes in bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    """Where /metrics, /healthz and /readyz listen."""
    port: Annotated[int, Field(ge=0, le=65535)] = 9100
    """The first stage's port; the others follow in travel order (chunk 9100, embed 9101, ... query 9105)."""
    instance_id: str | None = None
    """Static group membership: a worker that comes back under its name gets its partitions back without a rebalance."""
    session_timeout_s: Annotated[float, Field(ge=6)] = 10.0
    drain_timeout_s: Annotated[float, Field(gt=0)] = 15.0
    """How long a worker that must stop, or give partitions away, finishes what it has in hand."""
    buffer_bytes: Annotated[int, Field(ge=1_000_000)] = 32_000_000
    """Record bytes held of each lane; what is fetched ahead comes on top: 1 MiB, or one record, for each partition."""
    batch_messages: Annotated[int, Field(ge=1, le=4096)] = 256
    batch_bytes: Annotated[int, Field(ge=1)] = 4_000_000
    """A batch ends at whichever comes first."""
    stuck_after_s: Annotated[float, Field(gt=0)] = 180.0
    """A worker that has stood still for as long, whatever the reason, ends itself with exit code 5."""
    data_dir: Path = Path(".headrace/workers")


class LogSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["auto", "json", "console"] = "auto"
    """`auto` is for people on a terminal and JSON elsewhere."""


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=True
    )

    kafka: KafkaSettings = KafkaSettings()
    stores: StoreSettings = StoreSettings()
    encoder: EncoderSettings = EncoderSettings()
    chunking: ChunkingSettings = ChunkingSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    rerank: RerankSettings = RerankSettings()
    llm: LLMSettings = LLMSettings()
    auth: AuthSettings = AuthSettings()
    query: QuerySettings = QuerySettings()
    worker: WorkerSettings = WorkerSettings()
    log: LogSettings = LogSettings()
    local: LocalStackSettings = LocalStackSettings()

    @model_validator(mode="after")
    def _overlap_is_sparing(self) -> "Settings":
        if 2 * self.chunking.overlap_tokens > self.chunking.max_tokens:
            raise ValueError("chunking.overlap_tokens must be at most half of chunking.max_tokens")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del dotenv_settings, file_secret_settings  # A setting has three places, and no more.
        file = TomlConfigSettingsSource(settings_cls, _config_file(os.environ))
        return init_settings, env_settings, file


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; raises Misconfigured, naming each setting that is unknown or impossible."""
    unknown = sorted(set(_own_variables(os.environ)) - set(_known_variables(Settings, ENV_PREFIX)))
    if unknown:
        raise Misconfigured(
            f"unknown setting in the environment: {', '.join(unknown)} (`headrace config` shows all that exist)"
        )
    try:
        return Settings(**overrides)
    except ValidationError as exc:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in error['loc']) or 'settings'}: {error['msg']}" for error in exc.errors()
        )
        raise Misconfigured(f"impossible settings: {problems}") from exc


def _config_file(environ: Mapping[str, str]) -> Path | None:
    named = environ.get(CONFIG_VARIABLE)
    if named is None:
        return Path(DEFAULT_FILE)
    if not Path(named).is_file():
        raise Misconfigured(f"{CONFIG_VARIABLE} names {named}, which is not a file")
    return Path(named)


def _own_variables(environ: Mapping[str, str]) -> Iterator[str]:
    return (name for name in environ if name.upper().startswith(ENV_PREFIX) and name != CONFIG_VARIABLE)


def _known_variables(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        variable = prefix + name.upper()
        yield variable
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _known_variables(field.annotation, variable + "__")
