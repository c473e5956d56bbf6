"""Where traces go, and how many of them."""

from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from headrace.tls import TlsSettings

TLS_SECTION = "tracing.tls"


class TracingSettings(BaseModel):
    """Off, nothing is recorded, and a message's `traceparent` goes along as it came."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = False
    endpoint: str = "http://127.0.0.1:4317"
    """A receiver of OTLP over gRPC: a collector, Jaeger, Tempo. `https://` encrypts."""
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Of the traces that begin here. One that a producer began is recorded if its `traceparent` says so."""
    tls: TlsSettings = TlsSettings()
    headers: dict[str, SecretStr] = {}
    """Sent with each export: `{"authorization": "Bearer ..."}` in the environment."""
    resource: dict[str, str] = {}
    """Attributes of the deployment, beside a worker's own: `{"deployment.environment.name": "prod"}`."""

    @field_validator("endpoint")
    @classmethod
    def _address(cls, endpoint: str) -> str:
        address = urlsplit(endpoint)
        if address.scheme not in {"http", "https"} or not address.hostname or address.path.strip("/"):
            raise ValueError(f"must be http://host:port or https://host:port, not {endpoint!r}")
        return endpoint

    @model_validator(mode="after")
    def _tls_as_grpc_takes_it(self) -> Self:
        if self.tls and not self.encrypted:
            raise ValueError(f"tls needs an endpoint with https://, not {self.endpoint}")
        if self.tls.key_password is not None:
            raise ValueError("tls.key_password can't be used: gRPC reads keys that aren't encrypted")
        return self

    @property
    def encrypted(self) -> bool:
        return self.endpoint.startswith("https://")
