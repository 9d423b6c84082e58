"""Services as processes of their own, which a test can stop, continue and end."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stack.servers import Servers
from tests.services import NOWHERE, Client, Keys, eventually

ROOT = Path(__file__).parent.parent

WITHOUT_SETTINGS = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"}
"""What a service needs besides its settings to be started."""

Process = asyncio.subprocess.Process


def environment(service: str, servers: Servers | None, keys: Keys, port: int = 0, **more: str) -> dict[str, str]:
    """The settings of a service that listens on `port`; `more` are variables of its own. Its servers may be nowhere."""
    peer = keys.peers[service]
    return {
        **WITHOUT_SETTINGS,
        "MESH_LISTEN": f"127.0.0.1:{port}",
        "MESH_DATABASE_URL": servers.postgres.url_for(f"{service}_svc") if servers else f"postgresql://{NOWHERE[0]}",
        "MESH_NATS_URL": servers.nats.url if servers else f"nats://{NOWHERE[0]}",
        "MESH_TLS_CA": str(peer.ca),
        "MESH_TLS_CERT": str(peer.cert),
        "MESH_TLS_KEY": str(peer.key),
        "MESH_JWKS": str(keys.signing.jwks),
        "MESH_PAGE_SECRET": "a secret of the tests",
        "MESH_CUSTOMER_TARGET": NOWHERE[0],
        "MESH_ORDER_TARGET": NOWHERE[0],
        "MESH_PAYMENT_TARGET": NOWHERE[0],
        "MESH_PRODUCT_TARGET": NOWHERE[0],
        "MESH_REDIS_URL": servers.redis.url if servers else f"redis://{NOWHERE[0]}",
        "MESH_SIGNING_KEY": str(keys.signing.private),
        **more,
    }


@asynccontextmanager
async def spawned(
    service: str, variables: dict[str, str], *arguments: str, output: int | None = asyncio.subprocess.PIPE
) -> AsyncIterator[Process]:
    """`python -m <service>_svc`, which is killed at the end unless it has ended. `output` is its stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"{service}_svc", *arguments),
        cwd=ROOT,
        env=variables,
        stdout=output,
        stderr=output,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def serving_process(service: str, servers: Servers, keys: Keys, port: int, **more: str) -> AsyncIterator[Process]:
    """A service in a process of its own that says SERVING."""
    variables = environment(service, servers, keys, port, **more)
    # Its log goes to pytest: nobody reads a pipe while it serves.
    async with spawned(service, variables, output=None) as process:
        client = Client(f"127.0.0.1:{port}", service, keys)
        try:
            await eventually(lambda: says(client, health_pb2.HealthCheckResponse.SERVING))
        finally:
            await client.close()
        yield process


@contextmanager
def stopped(process: Process) -> Iterator[None]:
    """SIGSTOP: the process keeps its connections and does nothing. It goes on afterwards."""
    process.send_signal(SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(SIGCONT)


async def says(client: Client, state: int) -> bool:
    """Whether the health service says this state."""
    stub: Any = health_pb2_grpc.HealthStub(client.channel)
    try:
        reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
    except grpc.aio.AioRpcError:
        return False
    return bool(reply.status == state)
