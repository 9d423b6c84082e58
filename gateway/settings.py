"""The settings of the edge that an operator chooses, read from the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, FilePath, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gateway.config import Address, EdgeConfig, Limits, TlsFiles
from mesh.settings import SettingsInvalid, Target, errors_of, split_list

# As browsers send it: in lower case, and without the default port.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")


def _require_origin(origin: str) -> str:
    if origin != "*" and not _ORIGIN.fullmatch(origin):
        raise ValueError(f"{origin!r} is not an origin: * or like https://shop.example, without a path")
    return origin


def _require_port(target: tuple[str, ...]) -> tuple[str, ...]:
    for address in target:
        if not re.fullmatch(r".+:[0-9]{1,5}", address):
            raise ValueError(f"{address!r} has no port: an address is like order-svc:9090")
    return target


Upstream = Annotated[Target, AfterValidator(_require_port)]
Rate = Annotated[int, Field(ge=0, lt=2**32)]
"""Requests per second; 0 is no limit. Envoy counts in 32 bits."""
Origins = Annotated[tuple[Annotated[str, AfterValidator(_require_origin)], ...], NoDecode, BeforeValidator(split_list)]


class EdgeSettings(BaseSettings):
    """What the edge takes from clients. Each field is read from the variable `MESH_` plus its name in upper case."""

    model_config = SettingsConfigDict(env_prefix="MESH_", frozen=True, extra="ignore", use_attribute_docstrings=True)

    edge_rate_per_client: Rate = Limits().requests_per_second
    """Requests per second of each customer, or of each address without a valid access token; 0 is no limit."""
    edge_rate_per_address: Rate | None = None
    """Requests per second of each address, refused ones included; 0 is no limit. Without it 5000, or no limit if there
    is none per client."""
    edge_trusted_proxies: int = Field(default=0, ge=0, le=10)
    """The number of proxies in front of the edge that write the client's address to x-forwarded-for."""
    edge_cors_origins: Origins = ()
    """The web origins whose scripts may call, separated by commas; * is any origin."""
    reflection: bool = True
    """Whether clients can use gRPC reflection."""
    edge_docs: bool = True
    """Whether the OpenAPI document and the page that shows it are served, at /openapi.json and /docs."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> EdgeSettings:
        """Read them from `environment`; empty values are like missing ones. Raises SettingsInvalid with all errors."""
        prefix = cls.model_config.get("env_prefix", "")
        given = {name: environment.get(f"{prefix}{name}".upper()) for name in cls.model_fields}
        try:
            return cls.model_validate({name: value for name, value in given.items() if value})
        except ValidationError as error:
            raise SettingsInvalid(errors_of(error)) from None

    def limits(self) -> Limits:
        """The limits of one edge."""
        usual = Limits()
        per_address = self.edge_rate_per_address
        if per_address is None:
            per_address = usual.requests_per_second_of_address if self.edge_rate_per_client else 0
        return Limits(
            requests_per_second=self.edge_rate_per_client,
            requests_per_second_of_address=per_address,
        )


class EdgeProgramSettings(EdgeSettings):
    """The settings of the edge as a program, `python -m gateway`."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    edge_host: str = "127.0.0.1"
    """The IP address on which the edge listens."""
    edge_port: int = Field(default=8080, gt=0, lt=2**16)
    """The port on which the edge listens."""
    customer_target: Upstream
    """The addresses of the customer service."""
    product_target: Upstream
    """The addresses of the product service."""
    payment_target: Upstream
    """The addresses of the payment service."""
    order_target: Upstream
    """The addresses of the order service."""
    tls_ca: FilePath
    """The file with the certificate of the mesh's certificate authority, PEM."""
    tls_cert: FilePath
    """The file with the edge's certificate, PEM. It is read again when its folder is replaced."""
    tls_key: FilePath
    """The file with the edge's private key, PEM. It is read again when its folder is replaced."""
    jwks: FilePath
    """The file with the public keys that verify access tokens, a JSON Web Key Set."""
    edge_folder: Path
    """The folder for Envoy's configuration and its Unix socket. Its path must be short."""
    edge_workers: int = Field(default=1, ge=1, le=64)
    """The number of Envoy's worker threads."""
    edge_drain_notice_seconds: float = Field(default=0.0, ge=0)
    """How many seconds /readyz answers 503 after SIGTERM, for load balancers, before the edge takes no connections."""
    edge_drain_seconds: float = Field(default=20.0, ge=0)
    """How many seconds requests in progress may take to finish after that."""

    @property
    def admin(self) -> Path:
        """The Unix socket of Envoy's own interface."""
        return self.edge_folder / "admin.sock"

    def config(self) -> EdgeConfig:
        """The configuration of this edge."""
        targets = {
            "customer": self.customer_target,
            "product": self.product_target,
            "payment": self.payment_target,
            "order": self.order_target,
        }
        return EdgeConfig(
            host=self.edge_host,
            port=self.edge_port,
            upstreams={name: [_address(each) for each in target] for name, target in targets.items()},
            tls=TlsFiles(ca=self.tls_ca, cert=self.tls_cert, key=self.tls_key),
            jwks=self.jwks,
            limits=self.limits(),
            admin=self.admin,
            allowed_origins=self.edge_cors_origins,
            reflection=self.reflection,
            docs=self.edge_docs,
            trusted_proxies=self.edge_trusted_proxies,
        )


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return Address(host, int(port))
