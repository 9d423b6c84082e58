"""gRPC reflection for the whole mesh: every service answers for all contracts (ADR-0008).

A stream of reflection asks a few questions and ends. Its duration and the number of streams are bounded here, because
reflection does not pass the chain, which bounds other calls.
"""

from __future__ import annotations

import asyncio
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

import commerce
from commerce.access.v1 import access_pb2
from mesh.errors import DeadlineExceeded, ResourceExhausted
from mesh.rpc.access import rule_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator

    from google.protobuf.descriptor import FileDescriptor
    from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

    from mesh.rpc.chain import Context
    from mesh.rpc.foreign import Guarded


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the streams of reflection."""

    seconds: float = 10.0
    """The duration after which a stream ends with DEADLINE_EXCEEDED."""
    streams: int = 64
    """The maximum number of concurrent streams. Further streams are rejected as OVERLOADED."""


DEFAULT_LIMITS = Limits()


def enable(server: Guarded, limits: Limits = DEFAULT_LIMITS) -> None:
    """Let `server` describe all public services of the mesh, and reflection itself."""
    names = [*public_services(), reflection.SERVICE_NAME]
    servicer = reflection.aio.ReflectionServicer(names, pool=Pool(descriptor_pool.Default()))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_Bounded(servicer, limits), server)  # type: ignore[no-untyped-call]


def public_services() -> list[str]:
    """The full names of all services of the mesh that people may call."""
    pool = descriptor_pool.Default()
    services = (service for name in load_contracts() for service in pool.FindFileByName(name).services_by_name.values())
    return sorted(
        service.full_name
        for service in services
        if any(rule_of(method) != access_pb2.ACCESS_SERVICE for method in service.methods)
    )


def load_contracts() -> list[str]:
    """Import all generated contracts. Returns the names of their files."""
    files = []
    for root in map(Path, commerce.__path__):
        for found in sorted(root.rglob("*_pb2.py")):
            name = ".".join(found.relative_to(root.parent).with_suffix("").parts)
            files.append(importlib.import_module(name).DESCRIPTOR.name)
    return files


class _Bounded:
    """The servicer of the library, with bounds."""

    def __init__(self, servicer: Any, limits: Limits) -> None:
        self._servicer = servicer
        self._limits = limits
        self._streams = 0

    async def ServerReflectionInfo(  # noqa: N802  # the method's name in the contract
        self, requests: AsyncIterable[ServerReflectionRequest], context: Context
    ) -> AsyncIterator[ServerReflectionResponse]:
        """Raises ResourceExhausted and DeadlineExceeded."""
        if self._streams >= self._limits.streams:
            raise ResourceExhausted(f"{self._streams} streams of reflection are open", retry_after=1.0)
        self._streams += 1
        try:
            async for reply in self._servicer.ServerReflectionInfo(_received(requests, self._limits.seconds), context):
                yield reply
        finally:
            self._streams -= 1


async def _received(
    requests: AsyncIterable[ServerReflectionRequest], seconds: float
) -> AsyncIterator[ServerReflectionRequest]:
    """The requests of a stream until it ends. Raises DeadlineExceeded if it is still open after `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    iterator = aiter(requests)
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                request = await anext(iterator)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise DeadlineExceeded(f"a stream of reflection ends after {seconds:g} s") from error
        yield request


class Pool:
    """The descriptor pool, extended to find a method by its full name, which `grpcurl describe` requires."""

    def __init__(self, pool: descriptor_pool.DescriptorPool) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> object:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802  # the pool's name for it
        """The file of a message, enum, service or method. Raises KeyError."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            service, _, method = symbol.rpartition(".")
            found = self._pool.FindServiceByName(service)
            if method not in found.methods_by_name:
                raise
            return found.file
