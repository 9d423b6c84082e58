"""Malformed requests and faults: callers get a named error without internal details."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection_pb2

from commerce.product.v1 import product_pb2, product_pb2_grpc
from mesh.errors import Internal, MeshError, NotFound
from mesh.rpc import reflection, status
from mesh.rpc.call import Call
from mesh.rpc.server import Server
from tests.runtime.served import GET, client_of, found, serving
from tests.services import Keys, eventually

PRODUCTS = "/commerce.product.v1.ProductService"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
NO_MESSAGE = {
    "no field": b"\xff\xff\xff",
    "text that is no UTF-8": b"\x0a\x02\xff\xfe",
    "text that ends too early": b"\x0a\x24abc",
    "a group that does not end": b"\x0b",
}
OF_THE_INSIDE = ("class", "Exception", "DecodeError", "Error parsing", "Traceback", "google.protobuf", "secret")


@asynccontextmanager
async def channel_to(server: Server, keys: Keys) -> AsyncIterator[Any]:
    """A connection on which a test sends arbitrary bytes."""
    async with client_of(server, keys) as client:
        yield client.channel


async def failure_of(call: Any) -> grpc.aio.AioRpcError:
    """The error of a call. The test fails if the call succeeds."""

    async def end() -> None:
        if not hasattr(call, "__aiter__"):
            await call
        else:
            async for _ in call:
                pass

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await end()
    told = f"{raised.value.details()} {raised.value.trailing_metadata()}"
    assert [word for word in OF_THE_INSIDE if word in told] == []
    return raised.value


def named(failure: grpc.aio.AioRpcError) -> tuple[str, str]:
    """The code and the reason of a failed call."""
    error = status.from_rpc_error(failure, "tested")
    return failure.code().name, error.reason


@pytest.mark.parametrize("data", NO_MESSAGE.values(), ids=NO_MESSAGE)
async def test_bytes_that_are_no_message_are_refused_as_malformed(keys: Keys, data: bytes) -> None:
    async with serving(keys, found) as server, channel_to(server, keys) as channel:
        failure = await failure_of(channel.unary_unary(f"{PRODUCTS}/GetProduct")(data))
    assert named(failure) == ("INVALID_ARGUMENT", "REQUEST_MALFORMED")


async def test_a_field_of_another_type_counts_as_not_sent(keys: Keys) -> None:
    async with serving(keys, found) as server, channel_to(server, keys) as channel:
        failure = await failure_of(channel.unary_unary(f"{PRODUCTS}/GetProduct")(b"\x08\x01"))
    assert named(failure) == ("INVALID_ARGUMENT", "VALIDATION_FAILED")


async def test_only_who_may_call_learns_that_a_request_is_malformed(keys: Keys) -> None:
    staff = (("authorization", f"Bearer {keys.token('staff', uuid4())}"),)
    async with serving(keys, found) as server, channel_to(server, keys) as channel:
        call: Any = channel.unary_unary(f"{PRODUCTS}/CreateProduct")
        stranger, member = await failure_of(call(b"\xff")), await failure_of(call(b"\xff", metadata=staff))
    assert named(stranger) == ("UNAUTHENTICATED", "TOKEN_MISSING")
    assert named(member) == ("INVALID_ARGUMENT", "REQUEST_MALFORMED")


async def test_health_and_reflection_refuse_malformed_requests_like_the_others(keys: Keys) -> None:
    async with serving(keys, found) as server, channel_to(server, keys) as channel:
        calls = [
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"\xff"),
            channel.unary_stream("/grpc.health.v1.Health/Watch")(b"\xff"),
            channel.stream_stream(REFLECTION)(iter([b"\xff"])),
        ]
        assert {named(await failure_of(call)) for call in calls} == {("INVALID_ARGUMENT", "REQUEST_MALFORMED")}


async def test_fault_of_reflection_becomes_internal_without_its_text(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object, __: str) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(reflection.Pool, "FindFileContainingSymbol", fail)
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="commerce.order.v1.OrderService")
    async with serving(keys, found) as server, channel_to(server, keys) as channel:
        failure = await failure_of(channel.stream_stream(REFLECTION)(iter([request.SerializeToString()])))
    assert named(failure) == ("INTERNAL", "INTERNAL")


@pytest.mark.parametrize("reply", [None, "secret", product_pb2.GetProductResponse])
async def test_reply_that_cannot_be_sent_becomes_internal(keys: Keys, reply: object) -> None:
    async def behave(_: Any, __: Call) -> object:
        return reply

    async with serving(keys, behave) as server, channel_to(server, keys) as channel:
        failure = await failure_of(product_pb2_grpc.ProductServiceStub(channel).GetProduct(GET))
    assert named(failure) == ("INTERNAL", "INTERNAL")


async def test_text_of_a_peer_or_library_is_not_sent_to_the_caller(keys: Keys) -> None:
    said = grpc.aio.AioRpcError(
        grpc.StatusCode.UNKNOWN, grpc.aio.Metadata(), grpc.aio.Metadata(), "Unexpected <class 'KeyError'>: 'secret'"
    )
    failures: list[MeshError] = [
        status.from_rpc_error(said, "order"),
        status.from_status(status_pb2.Status(code=13, message="the secret of the inside")),
        Internal("a secret", metadata={"secret": "secret"}),
    ]
    for failure in failures:

        async def fail(_: Any, __: Call, failure: MeshError = failure) -> None:
            raise failure

        async with serving(keys, fail) as server, channel_to(server, keys) as channel:
            refused = await failure_of(product_pb2_grpc.ProductServiceStub(channel).GetProduct(GET))
        error = status.from_rpc_error(refused, "product")
        assert (error.code.name, error.message) == ("INTERNAL", "an internal error; quote the trace id")
        assert error.metadata.keys() == {"traceId"}
        assert error_details_pb2.ErrorInfo.DESCRIPTOR.name in str(refused.trailing_metadata())


async def test_aborted_call_leaves_no_reference_cycle(keys: Keys) -> None:
    async def behave(request: Any, _: Call) -> None:
        raise NotFound("no", reason="PRODUCT_NOT_FOUND") if request.product_id == GET.product_id else ZeroDivisionError

    def calls_in_memory() -> int:
        return sum(type(each).__name__ == "_ServicerContext" for each in gc.get_objects())

    other = product_pb2.GetProductRequest(product_id=str(uuid4()))
    requests = [b"\xff", b"", GET.SerializeToString(), other.SerializeToString()]
    async with serving(keys, behave) as server, channel_to(server, keys) as channel:
        gc.collect()
        before = calls_in_memory()
        gc.disable()
        try:
            for request in requests:
                await failure_of(channel.unary_unary(f"{PRODUCTS}/GetProduct")(request))

            async def gone() -> bool:
                return calls_in_memory() == before

            await eventually(gone)
        finally:
            gc.enable()
