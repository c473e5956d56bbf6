"""The one place of all settings: defaults, then a TOML file, then files of secrets, then the environment; unknown or
impossible ones are refused.

`HEADRACE_KAFKA__BOOTSTRAP_SERVERS=broker:9092` in the environment is `bootstrap_servers = "broker:9092"` under
`[kafka]` in `headrace.toml` (or in the file that `HEADRACE_CONFIG` names), and what a file
`HEADRACE_KAFKA__BOOTSTRAP_SERVERS` has in the folder that `HEADRACE_SECRETS` names, as Kubernetes mounts secrets.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

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
from headrace.tracing import TracingSettings
from schemas.generations import FIRST, GENERATION_PATTERN
from topics.settings import KafkaSettings

ENV_PREFIX = "HEADRACE_"
CONFIG_VARIABLE = "HEADRACE_CONFIG"
SECRETS_VARIABLE = "HEADRACE_SECRETS"
DEFAULT_FILE = "headrace.toml"


class GenerationSettings(BaseModel):
    """Which generation of collections and indexes this process works for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=rf"^{GENERATION_PATTERN}$")] = FIRST
    """The first one has no name; those after it are numbered from 2. Topics between the stages, consumer groups,
    collections and indexes are named after it."""
    rate: Annotated[float, Field(ge=0)] = 0.0
    """Documents a second that a `chunk` worker takes at most while its generation is not live; 0 is no limit."""


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


class MetricsSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    tenants: Annotated[int, Field(ge=0, le=1000)] = 20
    """Tenants that a worker counts by name: the first ones that it sees. The rest are counted together as `other`."""


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=True
    )

    generation: GenerationSettings = GenerationSettings()
    """Before what is named after it."""
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
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()
    local: LocalStackSettings = LocalStackSettings()

    @field_validator("kafka", "stores", mode="after")
    @classmethod
    def _named_after_the_generation(cls, section: Any, info: ValidationInfo) -> Any:
        return section.of_generation(info.data.get("generation", GenerationSettings()).name)

    def of_generation(self, name: str, vectors: Mapping[str, Any] | None = None) -> "Settings":
        """The same for another generation, of an encoder that makes these vectors (as `GenerationInfo.encoder` has
        them). Raises Misconfigured where no encoder of this version does.
        """
        try:
            encoder = self.encoder if vectors is None else self.encoder.of_vectors(vectors)
        except ValueError as exc:
            raise Misconfigured(f"generation {name or 1}: impossible encoder: {exc}") from exc
        return self.model_copy(
            update={
                "generation": self.generation.model_copy(update={"name": name}),
                "kafka": self.kafka.of_generation(name),
                "stores": self.stores.of_generation(name),
                "encoder": encoder,
            }
        )

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
        del dotenv_settings  # A setting has four places, and no more.
        secrets = NestedSecretsSettingsSource(file_secret_settings, secrets_folder(os.environ))
        file = TomlConfigSettingsSource(settings_cls, _config_file(os.environ))
        return init_settings, env_settings, secrets, file


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; raises Misconfigured, naming each setting that is unknown or impossible."""
    known = set(_known_variables(Settings, ENV_PREFIX))
    for place, names in (("the environment", os.environ), (SECRETS_VARIABLE, secret_files(os.environ))):
        if unknown := sorted(set(_own_variables(names)) - known):
            raise Misconfigured(
                f"unknown setting in {place}: {', '.join(unknown)} (`headrace config` shows all that exist)"
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


def secrets_folder(environ: Mapping[str, str]) -> Path | None:
    """Where settings lie as files; None where no folder is named. Raises Misconfigured when it isn't there."""
    named = environ.get(SECRETS_VARIABLE)
    if named is None:
        return None
    if not Path(named).is_dir():
        raise Misconfigured(f"{SECRETS_VARIABLE} names {named}, which is not a folder")
    return Path(named)


def secret_files(environ: Mapping[str, str]) -> list[str]:
    """The names of the files there. Others than settings may lie beside them: certificates, keys."""
    folder = secrets_folder(environ)
    return [] if folder is None else [path.name for path in folder.iterdir() if path.is_file()]


def _own_variables(names: Iterable[str]) -> Iterator[str]:
    places = (CONFIG_VARIABLE, SECRETS_VARIABLE)
    return (name for name in names if name.upper().startswith(ENV_PREFIX) and name not in places)


def _known_variables(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        variable = prefix + name.upper()
        yield variable
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _known_variables(field.annotation, variable + "__")
