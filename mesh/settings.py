"""Settings: one frozen object a service, read once from the environment, all faults reported at once."""

from __future__ import annotations

from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, FilePath, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _require_url(secret: SecretStr) -> SecretStr:
    """Refuse what a client would only refuse later, in words that show a part of it."""
    try:
        parts = urlsplit(secret.get_secret_value())
        if parts.hostname and parts.port != 0:
            return secret
    except ValueError:
        pass
    raise ValueError("is not a URL like nats://user:password@host:port, with what is special in it as %XX")


Target = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), Field(min_length=1)]
"""The addresses of a service, `host:port` or a DNS name, comma separated in the environment."""


class ServiceSettings(BaseSettings):
    """What every service needs. Each field is read from `MESH_` and its name in upper case."""

    model_config = SettingsConfigDict(
        env_prefix="MESH_", frozen=True, extra="ignore", use_attribute_docstrings=True, env_ignore_empty=True
    )

    listen: str = "127.0.0.1:0"
    """Where the gRPC server listens, host:port."""
    database_url: SecretStr
    """The service's own database, as a libpq URL."""
    database_connections: int = Field(default=16, ge=3, le=500)
    """The most connections that the process opens."""
    nats_url: Annotated[SecretStr, AfterValidator(_require_url)] = SecretStr("nats://127.0.0.1:4222")
    """Where NATS is, `nats://user:password@host:port`."""
    nats_replicas: int = Field(default=1, ge=1, le=5)
    """Copies of each stream in the NATS cluster."""
    tls_ca: FilePath
    """The certificate authority of the mesh, PEM."""
    tls_cert: FilePath
    """This process's certificate, PEM."""
    tls_key: FilePath
    """Its private key, PEM."""
    jwks: FilePath
    """The public keys that sign access tokens, a JSON Web Key Set."""
    page_secret: SecretStr = Field(min_length=16)
    """Signs page tokens; the same for all processes of a service."""
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
    """The least level that is logged."""
    default_timeout: float = Field(default=10.0, gt=0)
    """Seconds that a call may take when the caller sets no deadline."""
    max_in_flight: int = Field(default=4096, gt=0)
    """Calls that are served at a time; more are refused as OVERLOADED."""
    drain_seconds: float = Field(default=20.0, ge=0)
    """How long calls in flight get to finish after SIGTERM."""
    drain_notice_seconds: float = Field(default=0.0, ge=0)
    """How long health says NOT_SERVING before new calls are refused, for load balancers to notice."""


Settings = TypeVar("Settings", bound=ServiceSettings)


class SettingsInvalid(Exception):
    """The environment does not hold what the service needs; the text has a line a fault."""


def read(settings: type[Settings]) -> Settings:
    """Read the environment. Raises SettingsInvalid with every fault, none of which shows a value."""
    try:
        return settings()  # type: ignore[call-arg]  # pydantic reads them from the environment
    except ValidationError as error:
        raise SettingsInvalid(
            "\n".join(
                f"MESH_{'_'.join(str(part) for part in fault['loc']).upper()}: {fault['msg']}"
                for fault in error.errors()
            )
        ) from None


def secret_bytes(secret: SecretStr) -> bytes:
    """The bytes of a secret."""
    return secret.get_secret_value().encode()
