"""Health checks without a certificate: the replies to probes, and that nothing else is reachable on that port."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc

from commerce.product.v1 import product_pb2, product_pb2_grpc
from mesh.errors import Unavailable
from mesh.rpc.call import Call
from mesh.rpc.health import LIVENESS, READINESS
from mesh.rpc.server import Server
from tests.runtime.served import GET, client_of, found, serving
from tests.services import TEST_TIMEOUT_S, Keys, eventually

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def address(server: Server) -> str:
    return f"127.0.0.1:{server.health.port}"


async def check(server: Server, service: str) -> Any:
    """The reply to a probe without a certificate."""
    async with grpc.aio.insecure_channel(address(server)) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TEST_TIMEOUT_S)).status


async def grpcurl(*arguments: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("grpcurl")), "-plaintext", "-max-time", "60", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()


@asynccontextmanager
async def plain_channel(server: Server) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(address(server)) as channel:
        yield channel


@pytest.mark.parametrize("service", ["", READINESS, LIVENESS, "commerce.product.v1.ProductService"])
async def test_probe_without_a_certificate_learns_that_the_service_serves(keys: Keys, service: str) -> None:
    async with serving(keys, found) as server:
        assert await check(server, service) == SERVING


async def test_probe_of_an_unknown_name_gets_not_found(keys: Keys) -> None:
    async with serving(keys, found) as server:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await check(server, "nothing")
        assert refusal.value.code() is grpc.StatusCode.NOT_FOUND


async def test_readiness_follows_the_checks_and_liveness_does_not(keys: Keys) -> None:
    is_broken = True

    async def database() -> None:
        if is_broken:
            raise Unavailable("the database is away")

    async with serving(keys, found, checks=(database,)) as server:
        assert [await check(server, each) for each in ("", READINESS, LIVENESS)] == [NOT_SERVING, NOT_SERVING, SERVING]
        is_broken = False

        async def is_ready() -> bool:
            return bool(await check(server, READINESS) == SERVING)

        await eventually(is_ready)


async def test_draining_service_is_alive_and_not_ready(keys: Keys) -> None:
    is_called, may_end = asyncio.Event(), asyncio.Event()

    async def slow(request: Any, call: Call) -> Any:
        is_called.set()
        await may_end.wait()
        return await found(request, call)

    async with serving(keys, slow) as server, client_of(server, keys) as client:
        call = asyncio.create_task(client(product_pb2_grpc.ProductServiceStub(client.channel).GetProduct, GET))
        await is_called.wait()
        stop = asyncio.create_task(server.stop())

        async def is_draining() -> bool:
            return bool(await check(server, READINESS) == NOT_SERVING)

        await eventually(is_draining)
        assert await check(server, LIVENESS) == SERVING
        may_end.set()
        await call
        await stop


async def test_liveness_does_not_answer_while_the_event_loop_is_blocked(keys: Keys) -> None:
    def probe() -> Any:
        with grpc.insecure_channel(address(server)) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            return stub.Check(health_pb2.HealthCheckRequest(service=LIVENESS), timeout=1)

    async with serving(keys, found) as server:
        with ThreadPoolExecutor() as threads:
            blocking = threads.submit(probe).exception()
        assert isinstance(blocking, grpc.RpcError)
        assert blocking.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await check(server, LIVENESS) == SERVING


async def test_grpcurl_learns_the_health_and_is_refused_everything_else(keys: Keys, folder: Path) -> None:
    protos = folder / "protos.binpb"
    files = [descriptor_pb2.FileDescriptorProto.FromString(each.serialized_pb) for each in descriptors()]
    protos.write_bytes(descriptor_pb2.FileDescriptorSet(file=files).SerializeToString())
    async with serving(keys, found) as server:
        known = ("-protoset", str(protos), address(server))
        code, said = await grpcurl("-d", '{"service": "liveness"}', *known, "grpc.health.v1.Health/Check")
        assert (code, json.loads(said)) == (0, {"status": "SERVING"})
        for method in ("grpc.health.v1.Health/Watch", "commerce.product.v1.ProductService/GetProduct"):
            code, said = await grpcurl(*known, method)
            assert code != 0
            assert "Code: Unimplemented" in said
        code, said = await grpcurl(address(server), "list")
        assert code != 0
        assert "server does not support the reflection API" in said


def descriptors() -> list[FileDescriptor]:
    """The contracts of health and of products, each file after those that it imports."""
    files: dict[str, FileDescriptor] = {}

    def add(file: Any) -> None:
        for each in file.dependencies:
            add(each)
        files[file.name] = file

    add(health_pb2.DESCRIPTOR)
    add(product_pb2.DESCRIPTOR)
    return list(files.values())


@pytest.mark.parametrize(
    "method",
    [
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/commerce.product.v1.ProductService/GetProduct",
        "/commerce.product.v1.ProductService/CreateProduct",
        "/grpc.health.v1.Health/Check/",
        "/",
    ],
)
async def test_plain_port_refuses_every_other_method(keys: Keys, method: str) -> None:
    async with serving(keys, found) as server, plain_channel(server) as channel:
        call = channel.unary_stream(method)(b"", timeout=TEST_TIMEOUT_S)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            async for _ in call:
                pass
        assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_plain_port_names_the_error_of_a_request_that_is_no_message(keys: Keys) -> None:
    async with serving(keys, found) as server, plain_channel(server) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await channel.unary_unary("/grpc.health.v1.Health/Check")(b"\xff", timeout=TEST_TIMEOUT_S)
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_taken_plain_port_keeps_the_service_from_starting(keys: Keys) -> None:
    async with serving(keys, found) as server:
        with pytest.raises(Unavailable, match=f"cannot listen on {address(server)}"):
            async with serving(keys, found, health_listen=address(server)):
                raise AssertionError("started")
