"""The settings of the edge; everything else follows from the contracts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mesh.rpc.sizes import MAX_HEADER_BYTES


class Address(NamedTuple):
    """Where a process listens."""

    host: str
    """An IP address or a DNS name; a name is resolved again and again, and may stand for many processes."""
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The PEM files with which the edge takes part in the mesh, and knows its peers."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much the edge takes from clients. What goes beyond is refused, never queued without end."""

    requests_per_second: int = 200
    """Of each customer, or of each address without a valid access token; 0 is no limit."""
    requests_per_second_of_address: int = 5_000
    """From each address (IPv6: each /64), including refused requests; 0 is no limit."""
    connections: int = 10_000
    """From all clients together."""
    streams: int = 100
    """Concurrent requests on one connection."""
    heap_bytes: int = 512 * 1024 * 1024
    """Memory for all clients. From half of it on, Envoy resets the largest requests; at 95 % it refuses all."""
    request_seconds: float = 15.0
    """Time for a request to arrive with its whole body."""
    body_bytes: int = 64 * 1024
    """Of one request."""
    staff_body_bytes: int = 1024 * 1024
    """Of one request to a method of staff."""
    raw_body_bytes: int = 256 * 1024
    """Of one request whose body is not JSON, such as a webhook."""
    header_bytes: int = MAX_HEADER_BYTES
    """Of the headers of one request, with its path."""
    header_count: int = 100
    """Of one request."""
    upstream_requests: int = 8192
    """Under way to one service; those waiting for a connection not counted, of which there may be as many."""
    upstream_streams: int = 4096
    """Server streams (watches) under way to one service."""
    reflection_streams: int = 32
    """Streams of reflection under way, over all services."""
    reflection_seconds: float = 10.0
    """The duration of a stream of reflection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeConfig:
    """One edge."""

    host: str = "127.0.0.1"
    """The IP address it listens on."""
    port: int = 8080
    """The port it listens on."""
    upstream_seconds: float = 1.0
    """How long a process of a service may take to accept a connection, or to answer a health check."""
    upstreams: Mapping[str, Sequence[Address]]
    """Where the processes of each service listen, by the service's name: `customer`, `order`, and so on."""
    tls: TlsFiles
    """The edge's own certificate, `gateway`."""
    jwks: Path
    """The public keys of access tokens, as a JSON Web Key Set."""
    limits: Limits = field(default_factory=Limits)
    """How much it takes from clients."""
    admin: Path | Address | None = None
    """Where Envoy's own interface listens: best a Unix socket, since it can do anything; nowhere by default."""
    allowed_origins: Sequence[str] = ()
    """The web origins whose scripts may call, `*` for any. Scripts send access tokens; browsers alone never do."""
    reflection: bool = True
    """Whether clients can use gRPC reflection."""
    docs: bool = True
    """Whether the OpenAPI document and the page that shows it are served."""
    trusted_proxies: int = 0
    """How many proxies in front of the edge write the client's address to `x-forwarded-for`."""
