"""A service with streams that do what a test says, behind the real server. Its contract is `watching.proto`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from mesh.rpc.call import CLIENT_ADDRESS, Call
from mesh.rpc.reflection import load_contracts
from mesh.rpc.server import Server
from tests.runtime.served import settings
from tests.services import Client, Keys

PACKAGE = "tests.watching.v1"
SERVICE = f"{PACKAGE}.NumberService"
_ROOT = Path(__file__).parents[2]

Watch = Callable[[Any, Call], AsyncGenerator[Any, None]]


def _compiled() -> descriptor_pb2.FileDescriptorSet:
    with tempfile.TemporaryDirectory(prefix="watching-") as folder:
        into = Path(folder) / "watching.binpb"
        subprocess.run(
            [
                sys.executable,
                "-m",
                "grpc_tools.protoc",
                f"-I{Path(__file__).parent}",
                f"--descriptor_set_in={_ROOT / 'gen' / 'commerce' / 'commerce.binpb'}",
                f"--descriptor_set_out={into}",
                "watching.proto",
            ],
            check=True,
        )
        return descriptor_pb2.FileDescriptorSet.FromString(into.read_bytes())


load_contracts()
for _file in _compiled().file:
    descriptor_pool.Default().AddSerializedFile(_file.SerializeToString())

Request: Any = message_factory.GetMessageClass(
    descriptor_pool.Default().FindMessageTypeByName(f"{PACKAGE}.WatchNumbersRequest")
)
Response: Any = message_factory.GetMessageClass(
    descriptor_pool.Default().FindMessageTypeByName(f"{PACKAGE}.WatchNumbersResponse")
)


class Numbers:
    """Streams what the test says, from both of its streams."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    async def WatchNumbers(self, request: Any, call: Call) -> AsyncIterator[Any]:  # named as in the contract
        async for each in self._watch(request, call):
            yield each

    async def WatchPublicNumbers(self, request: Any, call: Call) -> AsyncIterator[Any]:
        async for each in self._watch(request, call):
            yield each


@asynccontextmanager
async def streaming(keys: Keys, watch: Watch, *, revoked: Collection[str] = (), **more: Any) -> AsyncIterator[Server]:
    """The server of the numbers; `more` are its settings."""
    server = Server(settings(keys, **more), {SERVICE: Numbers(watch)}, checks=(), revoked=revoked)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def watching(
    client: Client,
    token: str = "",
    *,
    method: str = "WatchNumbers",
    topic: str = "",
    address: str = "",
    timeout: float | None = None,
) -> Any:
    """Call a stream as the person with this token, from this address."""
    stub: Any = client.channel.unary_stream(
        f"/{SERVICE}/{method}",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=Response.FromString,
    )
    metadata = {"authorization": token and f"Bearer {token}", CLIENT_ADDRESS: address}
    sent = tuple((name, value) for name, value in metadata.items() if value)
    return stub(Request(topic=topic), metadata=sent, timeout=timeout)
