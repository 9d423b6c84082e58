"""Services in this process, with real servers behind them and real mutual TLS before them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import choices
from signal import Signals
from string import ascii_lowercase
from typing import Any, TypeVar
from uuid import UUID, uuid4

import grpc
import nats
from google.protobuf.message import Message
from pydantic import SecretStr

from mesh.db import migrations
from mesh.errors import MeshError
from mesh.lifecycle import Service
from mesh.rpc import status
from mesh.rpc.server import Server
from mesh.settings import ServiceSettings
from stack import pki
from stack.servers import DATABASES, Servers

PEERS = ("customer", "order", "product", "payment", "gateway", "operator")
NOWHERE = ("127.0.0.1:1",)
"""An address without a service."""
TEST_TIMEOUT_S = 60.0
"""The seconds after which a test fails that waits for something: far more than any of it takes on a busy machine."""

S = TypeVar("S", bound=ServiceSettings)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Keys:
    """Certificates by peer, and the signing key."""

    peers: Mapping[str, pki.Credentials]
    signing: pki.SigningKey

    @classmethod
    def made(cls, folder: Path) -> Keys:
        """New keys, in `folder`."""
        return cls(pki.issue(folder / "tls", PEERS), pki.make_signing_key(folder / "jwt"))

    def token(self, role: str, subject: UUID) -> str:
        """An access token."""
        return pki.access_token(self.signing.private, role=role, subject=subject)  # type: ignore[arg-type]  # also bad roles


async def migrated(servers: Servers) -> None:
    """Migrate all four databases."""
    for role in DATABASES:
        if (Path(__file__).parent.parent / role / "migrations" / "env.py").exists():
            await asyncio.to_thread(migrations.upgrade, role, servers.postgres.url_for(role))


def settings_for(kind: type[S], name: str, servers: Servers, keys: Keys, **more: Any) -> S:
    """The settings of a service under test. `more` are additional settings."""
    peer = keys.peers[name]
    return kind.model_validate(
        {
            "listen": "127.0.0.1:0",
            "database_url": SecretStr(servers.postgres.url_for(f"{name}_svc")),
            "database_connections": 8,
            "nats_url": SecretStr(servers.nats.url),
            "redis_url": SecretStr(servers.redis.url),
            "tls_ca": peer.ca,
            "tls_cert": peer.cert,
            "tls_key": peer.key,
            "jwks": keys.signing.jwks,
            "page_secret": SecretStr("a secret of the tests"),
            "drain_seconds": 5,
            **{f"{other}_target": NOWHERE for other in ("customer", "order", "product", "payment")},
            **more,
        }
    )


@asynccontextmanager
async def running(service: Service) -> AsyncIterator[str]:
    """Start a service, yield its address, and stop it."""
    await service.start()
    try:
        yield f"127.0.0.1:{port_of(service)}"
    finally:
        await service.stop()


def port_of(service: Service) -> int:
    """The port on which a running service listens."""
    return next(part.port for part in service.parts if isinstance(part, Server))


class Client:
    """Calls a service with the certificate of a peer and the token of a person."""

    def __init__(
        self,
        address: str,
        service: str,
        keys: Keys,
        *,
        peer: str = "gateway",
        token: str = "",
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        credentials = keys.peers[peer]
        self.channel = grpc.aio.secure_channel(
            address,
            grpc.ssl_channel_credentials(
                credentials.ca.read_bytes(), credentials.key.read_bytes(), credentials.cert.read_bytes()
            ),
            options=[("grpc.ssl_target_name_override", service), ("grpc.use_local_subchannel_pool", 1), *options],
        )
        self.token = token

    def as_(self, token: str) -> Client:
        """A client with another token on the same connection."""
        other = Client.__new__(Client)
        other.channel = self.channel
        other.token = token
        return other

    async def __call__(
        self,
        method: Callable[..., Any],
        request: Message,
        *,
        key: str | None = None,
        timeout: float = 20,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> Any:
        """Call a stub's method. Raises the error of the service as a MeshError."""
        sent = list(metadata)
        if self.token:
            sent.append(("authorization", f"Bearer {self.token}"))
        if key is not None:
            sent.append(("idempotency-key", key))
        try:
            return await method(request, timeout=timeout, metadata=sent)
        except grpc.aio.AioRpcError as failure:
            raise status.from_rpc_error(failure, "tested") from None

    async def close(self) -> None:
        """Close the connection."""
        await self.channel.close()


async def empty_bus(servers: Servers) -> None:
    """Delete all streams and their consumers, so that no events of earlier tests are left."""
    client = await nats.connect(servers.nats.url)
    try:
        context = client.jetstream()
        for stream in await context.streams_info():
            assert stream.config.name is not None
            await context.delete_stream(stream.config.name)
    finally:
        await client.close()


async def refused(call: Awaitable[object]) -> MeshError:
    """The error of a refused call. The test fails if the call succeeds."""
    try:
        reply = await call
    except MeshError as error:
        return error
    raise AssertionError(f"not refused: {reply}")


async def eventually(condition: Callable[[], Awaitable[T | None]], *, within: float = TEST_TIMEOUT_S) -> T:
    """Poll `condition` and return its first true value. The test fails after `within` seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    while True:
        if value := await condition():
            return value
        assert loop.time() < end, f"the condition is not true after {within} s"
        await asyncio.sleep(0.02)


def signal(servers: Servers, name: str, sent: Signals) -> None:
    """Send a signal to a server: SIGKILL is like a crash, and SIGSTOP makes it silent until SIGCONT."""
    identity = servers.supervisor[name].identity
    assert identity is not None
    os.kill(identity.pid, sent)


def unknown_token() -> str:
    """A provider token that no provider has made. It has no digits: many in a row would be refused as a card number."""
    return "tok_" + "".join(choices(ascii_lowercase, k=32))


def new_key() -> str:
    """A new idempotency key."""
    return str(uuid4())
