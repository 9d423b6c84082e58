"""Settings: one frozen object for each service, read once from the environment. All errors are reported together."""

from __future__ import annotations

from textwrap import fill, indent
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, FilePath, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def split_list(value: object) -> object:
    """The parts of a text that are separated by commas, without blanks around them; any other value as it is."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def require_url(secret: SecretStr) -> SecretStr:
    """Reject an invalid URL here: a client would reject it later, with a message that contains a part of it."""
    try:
        parts = urlsplit(secret.get_secret_value())
        if parts.hostname and parts.port != 0:
            return secret
    except ValueError:
        pass
    raise ValueError("is not a URL like nats://user:password@host:port, with what is special in it as %XX")


Target = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_list), Field(min_length=1)]
"""The addresses of a service: `host:port` or DNS names, separated by commas in the environment."""


class DatabaseSettings(BaseSettings):
    """The settings of a program that only migrates a database.

    Each field is read from the variable `MESH_` plus its name in upper case.
    """

    model_config = SettingsConfigDict(
        env_prefix="MESH_", frozen=True, extra="ignore", use_attribute_docstrings=True, env_ignore_empty=True
    )

    database_url: SecretStr
    """The URL of the service's own database, in the form of libpq."""


class ServiceSettings(DatabaseSettings):
    """The settings of every service."""

    listen: str = "127.0.0.1:0"
    """The address on which the gRPC server listens, `host:port`."""
    health_listen: str = "127.0.0.1:0"
    """The address on which health checks are answered without TLS, for probes. A free port if the port is 0."""
    database_connections: int = Field(default=16, ge=3, le=500)
    """The maximum number of database connections of the process."""
    nats_url: Annotated[SecretStr, AfterValidator(require_url)] = SecretStr("nats://127.0.0.1:4222")
    """The URL of NATS, `nats://user:password@host:port`."""
    nats_replicas: int = Field(default=1, ge=1, le=5)
    """The number of replicas of each stream in the NATS cluster."""
    redis_url: SecretStr
    """The URL of Redis. Without Redis nobody can sign in, and revoked access tokens are accepted until they expire."""
    tls_ca: FilePath
    """The file with the certificate of the mesh's certificate authority, PEM."""
    tls_cert: FilePath
    """The file with the certificate of this process, PEM."""
    tls_key: FilePath
    """The file with the private key of this process, PEM."""
    jwks: FilePath
    """The file with the public keys that verify access tokens, a JSON Web Key Set."""
    page_secret: SecretStr = Field(min_length=16)
    """The secret that signs page tokens. It must be the same for all processes of a service."""
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
    """The lowest level that is logged."""
    default_timeout: float = Field(default=10.0, gt=0)
    """The timeout in seconds of a call whose caller sets no deadline."""
    max_in_flight: int = Field(default=4096, gt=0)
    """The maximum number of concurrent calls. Further calls are rejected as OVERLOADED."""
    max_streams: int = Field(default=4096, gt=0)
    """The maximum number of open streams (watches). Further streams are rejected as OVERLOADED."""
    max_streams_per_caller: int = Field(default=32, gt=0)
    """The maximum number of open streams of one person. Further streams are rejected as RATE_LIMITED."""
    event_attempts: int = Field(default=8, ge=1)
    """The number of failures after which an event becomes a dead letter."""
    reflection: bool = True
    """Whether the gRPC server describes the public services of the mesh to its callers, for tools such as grpcurl."""
    drain_seconds: float = Field(default=20.0, ge=0)
    """How many seconds calls in progress may take to finish after SIGTERM."""
    drain_notice_seconds: float = Field(default=0.0, ge=0)
    """How many seconds the health service reports NOT_SERVING, for load balancers, before new calls are rejected."""


Settings = TypeVar("Settings", bound=ServiceSettings)
AnySettings = TypeVar("AnySettings", bound=BaseSettings)


class SettingsInvalid(Exception):
    """The environment has missing or invalid settings. The message has one line for each error."""


def read(settings: type[AnySettings]) -> AnySettings:
    """Read the settings. Raises SettingsInvalid with all errors; their texts contain no values."""
    try:
        return settings()
    except ValidationError as error:
        raise SettingsInvalid(errors_of(error)) from None


def errors_of(error: ValidationError) -> str:
    """A line for each error: the variable and what is wrong with it, without its value."""
    return "\n".join(
        f"MESH_{'_'.join(str(part) for part in fault['loc']).upper()}: {fault['msg']}" for fault in error.errors()
    )


def describe(settings: type[BaseSettings]) -> str:
    """A paragraph for each setting: its variable, whether it is required or its default, and its meaning."""
    return "\n".join(
        f"  MESH_{name.upper()} ({_default(field)})\n{indent(fill(field.description or '', 96), ' ' * 6)}"
        for name, field in settings.model_fields.items()
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()  # a default is no secret
    return f"default: {str(value).lower() if isinstance(value, bool) else value}"


def secret_bytes(secret: SecretStr) -> bytes:
    """The bytes of a secret."""
    return secret.get_secret_value().encode()
