"""Where the stores are and how they are used."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from headrace.tls import TlsSettings
from schemas.generations import FIRST
from schemas.key import TENANT_PATTERN

Seconds = Annotated[float, Field(gt=0)]
Analyzer = Literal["english", "standard", "german", "french", "spanish", "italian", "portuguese", "cjk"]


def _check_encrypted(address: str, tls: TlsSettings) -> None:
    if tls and not address.startswith("https://"):
        raise ValueError(f"tls needs an address with https://, not {address}")


class MilvusSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str = "http://127.0.0.1:19530"
    token: SecretStr | None = None
    """`user:password` or an API key."""
    tls: TlsSettings = TlsSettings()
    timeout_s: Seconds = 30.0
    search_timeout_s: Seconds = 5.0
    """How long one request of a search may take, and how long a query waits for its search in all."""
    index_type: Literal["auto", "HNSW", "FLAT"] = "auto"
    """Of collections that are made from now on. `auto` is HNSW, but FLAT, which searches every row, on Milvus before
    2.4: there a graph misses rows for good after a crash."""

    @model_validator(mode="after")
    def _tls_as_pymilvus_takes_it(self) -> Self:
        _check_encrypted(self.uri, self.tls)
        if self.tls.certificate is not None and self.tls.ca is None:
            raise ValueError("tls.certificate needs tls.ca: without it, pymilvus reads no client certificate")
        if self.tls.key_password is not None:
            raise ValueError("tls.key_password can't be used: gRPC reads keys that aren't encrypted")
        return self


class OpenSearchSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = "http://127.0.0.1:9200"
    username: str | None = None
    password: SecretStr | None = None
    tls: TlsSettings = TlsSettings()
    timeout_s: Seconds = 30.0
    search_timeout_s: Seconds = 5.0
    """How long one request of a search may take, and how long a query waits for its search, and then for the live
    check, in all."""
    analyzer: Analyzer = "english"
    """How texts and questions become words, in indexes that are made from now on.
    An index keeps the analyzer that it was made with."""
    analyzers: dict[Annotated[str, Field(pattern=f"^{TENANT_PATTERN}$")], Analyzer] = {}
    """By tenant, for those that another analyzer suits; `{"acme": "german"}` in the environment."""
    replicas: Annotated[int, Field(ge=0)] = 0
    refresh_interval: str = "1s"

    @model_validator(mode="after")
    def _complete(self) -> Self:
        _check_encrypted(self.url, self.tls)
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password need each other")
        return self

    def analyzer_of(self, tenant: str) -> Analyzer:
        return self.analyzers.get(tenant, self.analyzer)


class StoreSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    prefix: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")] = "tenant_"
    """What every collection and index name begins with; deployments that share a store differ in it."""
    milvus: MilvusSettings = MilvusSettings()
    opensearch: OpenSearchSettings = OpenSearchSettings()
    _generation: str = PrivateAttr(FIRST)

    def of_generation(self, name: str) -> Self:
        """The same with the names of this generation."""
        its = self.model_copy()
        its._generation = name
        return its

    # What stands behind the prefix of a generation's names begins no tenant's: those have no dot and no capital.

    @property
    def index_prefix(self) -> str:
        """What every index of this generation begins with."""
        return f"{self.prefix}g{self._generation}." if self._generation else self.prefix

    @property
    def collection_prefix(self) -> str:
        """What every collection of this generation begins with."""
        return f"{self.prefix}G{self._generation}_" if self._generation else self.prefix
