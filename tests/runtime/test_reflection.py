"""Reflection of a service: it can be turned off, and its streams are bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from mesh.rpc import status
from mesh.rpc.reflection import Limits
from tests.runtime.served import client_of, found, serving
from tests.services import TEST_TIMEOUT_S, Client, Keys

LIST = reflection_pb2.ServerReflectionRequest(list_services="")


class Stream:
    """A stream of reflection that stays open until it is closed."""

    def __init__(self, client: Client) -> None:
        self._left = asyncio.Event()
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(client.channel)  # type: ignore[arg-type]  # or an aio one
        self._call = stub.ServerReflectionInfo(self._requests())

    async def _requests(self) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield LIST
        await self._left.wait()

    async def reply(self) -> reflection_pb2.ServerReflectionResponse:
        """The reply to the request."""
        reply: reflection_pb2.ServerReflectionResponse = await self._call.read()
        return reply

    async def error(self) -> grpc.aio.AioRpcError:
        """The error with which the stream ends."""
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await self._call.read()
        return failure.value

    async def leave(self) -> None:
        """End the stream like a client without further requests."""
        self._left.set()
        assert await self._call.read() is grpc.aio.EOF


async def test_reflection_is_not_served_when_it_is_off(keys: Keys) -> None:
    async with serving(keys, found, reflection=False) as server, client_of(server, keys) as client:
        error = await Stream(client).error()
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def limited(**limits: Any) -> dict[str, Any]:
    return {"reflection_limits": Limits(**limits)}


async def test_idle_stream_of_reflection_ends(keys: Keys) -> None:
    async with (
        asyncio.timeout(TEST_TIMEOUT_S),
        serving(keys, found, limits=limited(seconds=1)) as server,
        client_of(server, keys) as client,
    ):
        stream = Stream(client)
        assert (await stream.reply()).list_services_response.service
        error = status.from_rpc_error(await stream.error(), "tested")
    assert (error.code.name, error.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")


async def test_more_streams_of_reflection_than_allowed_are_refused(keys: Keys) -> None:
    async with (
        asyncio.timeout(TEST_TIMEOUT_S),
        serving(keys, found, limits=limited(streams=2)) as server,
        client_of(server, keys) as client,
    ):
        streams = [Stream(client) for _ in range(2)]
        for stream in streams:
            await stream.reply()
        error = status.from_rpc_error(await Stream(client).error(), "tested")
        assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        await streams[0].leave()
        assert (await Stream(client).reply()).list_services_response.service
