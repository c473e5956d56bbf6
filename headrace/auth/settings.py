"""Whether senders must show who they are, and what this process shows when it sends."""

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Those with a public key alone: with a shared secret, whoever can check a token can make one."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class AuthSettings(BaseModel):
    """`enabled` and what follows it are the workers', `token` and `token_file` the command line's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = False
    jwks_url: str | None = None
    """Where the issuer publishes its keys."""
    jwks_file: Path | None = None
    """A JSON Web Key Set; with `jwks_url` too, keys that are accepted besides, such as retired ones."""
    audience: Annotated[str, Field(min_length=1)] | None = None
    issuer: Annotated[str, Field(min_length=1)] | None = None
    """Not checked where it is not set."""
    tenant_claim: Annotated[str, Field(min_length=1)] = "tenant"
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ("RS256", "ES256", "EdDSA", "PS256")
    leeway_s: Annotated[float, Field(ge=0, le=600)] = 10.0
    """By how much the issuer's clock and this one may differ."""
    jwks_cache_s: Annotated[float, Field(gt=0)] = 300.0
    """Keys are fetched anew after so long; the old ones stay in use while that fails."""
    jwks_refetch_s: Annotated[float, Field(gt=0)] = 5.0
    """A token with an unknown key, and a fetch that failed, lead to one fetch in so long at most."""
    jwks_timeout_s: Annotated[float, Field(gt=0)] = 5.0
    token: SecretStr | None = None
    """What the command line sends with documents and questions: the token alone, without `Bearer`."""
    token_file: Path | None = None
    """A file with the token, read again for each record: for tokens that something else renews."""

    @field_validator("jwks_url")
    @classmethod
    def _nobody_can_change_the_keys_on_their_way(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if not parts.hostname or not (
            parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
        ):
            raise ValueError("must be an https:// address (http:// for this machine alone)")
        return url

    @model_validator(mode="after")
    def _complete(self) -> "AuthSettings":
        if self.enabled and self.jwks_url is None and self.jwks_file is None:
            raise ValueError("auth.enabled needs auth.jwks_url or auth.jwks_file")
        if self.enabled and self.audience is None:
            raise ValueError("auth.enabled needs auth.audience: a token for something else would do, otherwise")
        if self.token is not None and self.token_file is not None:
            raise ValueError("auth.token and auth.token_file exclude each other")
        return self
