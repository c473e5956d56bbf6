"""Where Kafka is, and how its clients are let in: confluent-kafka and Faust from the same settings."""

from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, field_validator, model_validator

from headrace.oauth import OAuthSettings, Tokens, tokens
from headrace.tls import TlsSettings
from schemas.generations import FIRST
from topics.table import Names

SYSLOG_WARNING = 4
"""librdkafka tells of its own housekeeping at the level above."""
TLS_SECTION = "kafka.tls"
Prefix = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{0,64}$")]


class KafkaSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    bootstrap_servers: str = "127.0.0.1:9092"
    topic_prefix: Prefix = ""
    group_prefix: Prefix = "headrace-"
    partitions: Annotated[int, Field(ge=1)] = 12
    replication: Annotated[int, Field(ge=1)] = 1
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    tls: TlsSettings = TlsSettings()
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = "PLAIN"
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    oauth: OAuthSettings = OAuthSettings()
    """For OAUTHBEARER."""
    _generation: str = PrivateAttr(FIRST)

    @field_validator("bootstrap_servers")
    @classmethod
    def _hosts_and_ports(cls, servers: str) -> str:
        for server in servers.split(","):
            address = urlsplit(f"//{server.strip()}")
            if not address.hostname or address.netloc != server.strip() or address.port == 0:
                raise ValueError(f"must be host:port, or more of them with commas between, not {servers!r}")
        return servers

    @model_validator(mode="after")
    def _fits_the_protocol(self) -> Self:
        if self.tls and not self.secured:
            raise ValueError(f"kafka.tls needs security_protocol SSL or SASL_SSL, not {self.security_protocol}")
        has_user = self.sasl_username is not None or self.sasl_password is not None
        if not self.sasl:
            if has_user or self.oauth:
                raise ValueError(
                    "sasl_username, sasl_password and oauth need security_protocol SASL_SSL (or SASL_PLAINTEXT), "
                    f"not {self.security_protocol}"
                )
        elif self.sasl_mechanism == "OAUTHBEARER":
            if has_user or not self.oauth:
                raise ValueError(
                    "sasl_mechanism OAUTHBEARER needs kafka.oauth (token_url, client_id and client_secret), and takes "
                    "no sasl_username or sasl_password"
                )
        elif not self.sasl_username or not self.sasl_password or self.oauth:
            raise ValueError(
                f"sasl_mechanism {self.sasl_mechanism} needs sasl_username and sasl_password, and takes no kafka.oauth"
            )
        return self

    @property
    def names(self) -> Names:
        return Names(self.topic_prefix, self.group_prefix, self._generation)

    def of_generation(self, name: str) -> Self:
        """The same with the names of this generation."""
        its = self.model_copy()
        its._generation = name
        return its

    @property
    def secured(self) -> bool:
        """Whether connections are encrypted."""
        return self.security_protocol.endswith("SSL")

    @property
    def sasl(self) -> bool:
        return self.security_protocol.startswith("SASL")

    def password(self) -> str | None:
        return self.sasl_password.get_secret_value() if self.sasl_password else None

    def tokens(self) -> Tokens:
        """For OAUTHBEARER. Raises Misconfigured where the files of TLS can't be used."""
        return tokens(self.oauth, "kafka.oauth")

    def confluent(self) -> dict[str, Any]:
        """Connection settings as confluent-kafka spells them. Raises Misconfigured where a file can't be used."""
        config: dict[str, Any] = {
            "bootstrap.servers": self.bootstrap_servers,
            "security.protocol": self.security_protocol,
            "log_level": SYSLOG_WARNING,
        }
        if self.secured:
            self.tls.context(TLS_SECTION)
            config["ssl.endpoint.identification.algorithm"] = "https"
            named = {"ca": self.tls.ca, "certificate": self.tls.certificate, "key": self.tls.key}
            config |= {f"ssl.{name}.location": str(path) for name, path in named.items() if path is not None}
            if self.tls.key_password is not None:
                config["ssl.key.password"] = self.tls.password()
        if self.sasl:
            config["sasl.mechanism"] = self.sasl_mechanism
            if self.sasl_mechanism == "OAUTHBEARER":
                its = self.tokens()
                config["oauth_cb"] = lambda _: tuple(its.token())
            else:
                config |= {"sasl.username": self.sasl_username, "sasl.password": self.password()}
        return config
