"""The server and its chain over real mutual TLS: what is refused, with which error, and without which details."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from commerce.product.v1 import product_pb2, product_pb2_grpc
from mesh.db.idempotency import Replay
from mesh.errors import MeshError, NotFound, Unavailable
from mesh.rpc.access import AccessUndeclared
from mesh.rpc.call import Call
from mesh.rpc.clients import Peer
from mesh.rpc.reflection import public_services
from mesh.rpc.server import MethodUnknown, Server
from mesh.rpc.sizes import MAX_METADATA_BYTES, MAX_TRANSPORT_BYTES
from stack import pki
from tests.runtime.served import GET, Products, client_of, found, serving, settings
from tests.services import TEST_TIMEOUT_S, Keys, eventually, new_key, refused


async def test_servicer_gets_the_caller_of_a_call(keys: Keys) -> None:
    seen: list[Call] = []
    ada = uuid4()

    async def note(request: Any, call: Call) -> product_pb2.GetProductResponse:
        seen.append(call)
        return await found(request, call)

    async with serving(keys, note) as server, client_of(server, keys, token=keys.token("customer", ada)) as client:
        stub = product_pb2_grpc.ProductServiceStub(client.channel)
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        reply = await client(stub.GetProduct, GET, metadata=(("traceparent", trace),), timeout=7)
    assert reply.product.id == GET.product_id
    call = seen[0]
    assert (str(call.caller), call.peer) == (f"customer:{ada}", "gateway")
    assert call.method == "/commerce.product.v1.ProductService/GetProduct"
    assert call.trace.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert call.key is None, "a read takes no key"


async def test_unexpected_exception_becomes_internal_with_a_trace_id_and_no_details(
    keys: Keys,
) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"

    async def fault(_: Any, __: Call) -> None:
        raise RuntimeError("SELECT secret FROM inside")

    async with serving(keys, fault) as server, client_of(server, keys) as client:
        stub = product_pb2_grpc.ProductServiceStub(client.channel)
        with pytest.raises(grpc.aio.AioRpcError) as raw:
            await stub.GetProduct(GET, metadata=(("traceparent", f"00-{trace_id}-b7ad6b7169203331-01"),))
        error = await refused(client(stub.GetProduct, GET))
    everything = f"{raw.value.details()} {raw.value.trailing_metadata()} {raw.value.debug_error_string()}"
    assert "secret" not in everything
    assert "RuntimeError" not in everything
    assert trace_id in everything
    assert (error.code.name, error.reason) == ("INTERNAL", "INTERNAL")
    assert len(error.metadata["traceId"]) == 32


async def test_named_error_keeps_its_reason_metadata_and_retry_delay(keys: Keys) -> None:
    async def refuse(_: Any, __: Call) -> None:
        raise Unavailable("gone", metadata={"service": "x"}, retry_after=2.5)

    async with serving(keys, refuse) as server, client_of(server, keys) as client:
        stub = product_pb2_grpc.ProductServiceStub(client.channel)
        error = await refused(client(stub.GetProduct, GET))
    assert (error.code.name, error.reason, error.metadata, error.retry_after) == (
        "UNAVAILABLE",
        "DEPENDENCY_UNAVAILABLE",
        {"service": "x"},
        2.5,
    )


async def test_validation_names_each_invalid_field_by_its_path(keys: Keys) -> None:
    async with serving(keys, found) as server, client_of(server, keys, peer="order") as client:
        products = product_pb2_grpc.ProductServiceStub(client.channel)
        error = await refused(client(products.GetProduct, product_pb2.GetProductRequest(product_id="no id")))
        assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "VALIDATION_FAILED")
        assert [violation.field for violation in error.violations] == ["product_id"]
        error = await refused(
            client(products.BatchGetProducts, product_pb2.BatchGetProductsRequest(product_ids=[str(uuid4()), "x", "y"]))
        )
        assert {violation.field for violation in error.violations} == {"product_ids[1]", "product_ids[2]"}
        assert all(violation.description for violation in error.violations)


async def test_call_that_takes_too_long_ends_at_its_deadline(keys: Keys) -> None:
    cancelled = asyncio.Event()

    async def slow(_: Any, __: Call) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with serving(keys, slow, default_timeout=0.2) as server, client_of(server, keys) as client:
        stub = product_pb2_grpc.ProductServiceStub(client.channel)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.GetProduct(GET)  # no deadline: the server's own applies
        assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert b"DEADLINE_EXCEEDED" in dict(failure.value.trailing_metadata() or ())["grpc-status-details-bin"]
        assert cancelled.is_set()
        cancelled.clear()
        error = await refused(client(stub.GetProduct, GET, timeout=1))
        assert error.code.name == "DEADLINE_EXCEEDED"
        async with asyncio.timeout(TEST_TIMEOUT_S):
            await cancelled.wait()


async def test_timeout_inside_a_servicer_is_not_reported_as_the_deadline(keys: Keys) -> None:
    async def inner(_: Any, __: Call) -> None:
        raise TimeoutError

    async with serving(keys, inner) as server, client_of(server, keys) as client:
        stub = product_pb2_grpc.ProductServiceStub(client.channel)
        assert (await refused(client(stub.GetProduct, GET))).code.name == "INTERNAL"


async def test_deadline_is_passed_to_the_next_service(keys: Keys) -> None:
    remaining: list[float] = []

    async def last(request: Any, call: Call) -> product_pb2.GetProductResponse:
        left = call.remaining()
        assert left is not None
        remaining.append(left)
        return await found(request, call)

    async with serving(keys, last) as behind:
        peer = Peer("product", (f"127.0.0.1:{behind.port}",), settings(keys, "order"))

        async def pass_on(request: Any, call: Call) -> Any:
            return await peer.ask(
                product_pb2_grpc.ProductServiceStub(peer.channel).GetProduct, request, calls=[call], timeout=600
            )

        async with serving(keys, pass_on) as front, client_of(front, keys) as client:
            stub = product_pb2_grpc.ProductServiceStub(client.channel)
            await client(stub.GetProduct, GET, timeout=30)
        await peer.stop()
    assert 0 < remaining[0] <= 30


async def test_method_without_an_implementation_is_unimplemented(keys: Keys) -> None:
    async with serving(keys, found) as server:
        staff = keys.token("staff", uuid4())
        async with client_of(server, keys, token=staff) as client:
            stub = product_pb2_grpc.ProductServiceStub(client.channel)
            archive = product_pb2.ArchiveProductRequest(product_id=str(uuid4()))
            error = await refused(client(stub.ArchiveProduct, archive))
            assert (error.code.name, error.reason) == ("UNIMPLEMENTED", "METHOD_UNIMPLEMENTED")
            stranger = await refused(client.as_("")(stub.ArchiveProduct, archive))
            assert stranger.reason == "TOKEN_MISSING", "only callers with access learn it"


async def test_replayed_reply_has_a_header_that_says_so(keys: Keys) -> None:
    made = product_pb2.CreateProductResponse(product=product_pb2.Product(id="1"))

    async def replay(_: Any, call: Call) -> None:
        assert call.key is not None
        raise Replay(made.SerializeToString())

    create = product_pb2.CreateProductRequest(sku="TEA", name="Tea")
    create.price.currency_code, create.price.units = "EUR", 1
    async with serving(keys, replay) as server, client_of(server, keys) as client:
        call = product_pb2_grpc.ProductServiceStub(client.channel).CreateProduct(
            create,
            metadata=(("idempotency-key", new_key()), ("authorization", f"Bearer {keys.token('staff', uuid4())}")),
        )
        assert ("idempotency-replayed", "true") in tuple(await call.initial_metadata())
        assert await call == made


async def test_invalid_idempotency_key_is_refused(keys: Keys) -> None:
    create = product_pb2.CreateProductRequest(sku="TEA", name="Tea")
    create.price.currency_code, create.price.units = "EUR", 1
    async with serving(keys, found) as server, client_of(server, keys, token=keys.token("staff", uuid4())) as client:
        stub = product_pb2_grpc.ProductServiceStub(client.channel)
        error = await refused(client(stub.CreateProduct, create, key="with space"))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "IDEMPOTENCY_KEY_INVALID")


@pytest.mark.parametrize("header", ["Bearer junk", "Basic dXNlcg==", "Bearer ", "junk"])
async def test_invalid_token_is_refused_even_by_a_public_method(keys: Keys, header: str) -> None:
    async with serving(keys, found) as server, client_of(server, keys) as client:
        stub = product_pb2_grpc.ProductServiceStub(client.channel)
        error = await refused(client(stub.GetProduct, GET, metadata=(("authorization", header),)))
    assert (error.code.name, error.reason) == ("UNAUTHENTICATED", "TOKEN_INVALID")


async def test_calls_above_the_limit_are_refused_and_the_others_served(keys: Keys) -> None:
    gate, entered = asyncio.Event(), asyncio.Semaphore(0)

    async def wait(request: Any, call: Call) -> product_pb2.GetProductResponse:
        entered.release()
        await gate.wait()
        return await found(request, call)

    async with serving(keys, wait, max_in_flight=2) as server, client_of(server, keys) as client:
        stub = product_pb2_grpc.ProductServiceStub(client.channel)
        served = [asyncio.create_task(client(stub.GetProduct, GET)) for _ in range(2)]
        for _ in served:
            await entered.acquire()
        error = await refused(client(stub.GetProduct, GET))
        assert (error.code.name, error.reason, error.retry_after) == ("RESOURCE_EXHAUSTED", "OVERLOADED", 1.0)
        gate.set()
        assert len(await asyncio.gather(*served)) == 2
        await client(stub.GetProduct, GET)


async def test_call_whose_caller_disconnects_is_cancelled_and_no_longer_counted(keys: Keys) -> None:
    entered, left = asyncio.Event(), asyncio.Event()

    async def wait(_: Any, __: Call) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async with serving(keys, wait, max_in_flight=1) as server, client_of(server, keys) as client:
        call = product_pb2_grpc.ProductServiceStub(client.channel).GetProduct(GET)
        await entered.wait()
        call.cancel()
        async with asyncio.timeout(TEST_TIMEOUT_S):
            await left.wait()

        async def free() -> bool:
            return server.in_flight == 0

        await eventually(free)


async def test_connection_without_a_certificate_of_the_mesh_is_refused(keys: Keys, tmp_path: Path) -> None:
    stranger = pki.issue(tmp_path, ["gateway"])["gateway"]
    ca = keys.peers["gateway"].ca.read_bytes()
    async with serving(keys, found) as server:
        for credentials in (
            grpc.ssl_channel_credentials(ca),
            grpc.ssl_channel_credentials(ca, stranger.key.read_bytes(), stranger.cert.read_bytes()),
            None,
        ):
            target = f"127.0.0.1:{server.port}"
            options = [("grpc.ssl_target_name_override", "product")]
            channel = (
                grpc.aio.secure_channel(target, credentials, options=options)
                if credentials
                else grpc.aio.insecure_channel(target)
            )
            async with channel:
                with pytest.raises(grpc.aio.AioRpcError) as failure:
                    await product_pb2_grpc.ProductServiceStub(channel).GetProduct(GET, timeout=TEST_TIMEOUT_S)
                assert failure.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_server_with_an_incomplete_contract_does_not_start(keys: Keys) -> None:
    class Extra(Products):
        async def MakeCoffee(self, _: Any, __: Call) -> None: ...

    with pytest.raises(MethodUnknown, match="MakeCoffee"):
        Server(settings(keys), {"commerce.product.v1.ProductService": Extra(found)}, checks=())

    # The contract of the gRPC health service declares no access rules.
    class Health:
        async def Check(self, _: Any, __: Call) -> None: ...

    with pytest.raises(AccessUndeclared, match=r"grpc\.health\.v1\.Health\.Check"):
        Server(settings(keys), {"grpc.health.v1.Health": Health()}, checks=())


async def test_health_reports_not_serving_while_a_check_fails(keys: Keys) -> None:
    failing: list[MeshError | Exception] = []

    async def check() -> None:
        for failure in failing:
            raise failure

    async with serving(keys, found, checks=(check,)) as server, client_of(server, keys) as client:
        stub: Any = health_pb2_grpc.HealthStub(client.channel)

        async def says(state: int) -> bool:
            replies = [
                await stub.Check(health_pb2.HealthCheckRequest(service=name))
                for name in ("", "commerce.product.v1.ProductService")
            ]
            return all(reply.status == state for reply in replies)

        serving_, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        await eventually(lambda: says(serving_))
        for failure in (Unavailable("gone"), ZeroDivisionError("a check that is itself at fault")):
            failing.append(failure)
            await eventually(lambda: says(not_serving))
            failing.clear()
            await eventually(lambda: says(serving_))


async def test_check_that_hangs_counts_as_failed(keys: Keys) -> None:
    gate = asyncio.Event()
    gate.set()

    async def check() -> None:
        await gate.wait()

    limits = {"checks_timeout": 0.1}
    async with serving(keys, found, checks=(check,), limits=limits) as server, client_of(server, keys) as client:
        stub: Any = health_pb2_grpc.HealthStub(client.channel)

        async def says(state: int) -> bool:
            return bool((await stub.Check(health_pb2.HealthCheckRequest())).status == state)

        await eventually(lambda: says(health_pb2.HealthCheckResponse.SERVING))
        gate.clear()
        await eventually(lambda: says(health_pb2.HealthCheckResponse.NOT_SERVING))
        gate.set()
        await eventually(lambda: says(health_pb2.HealthCheckResponse.SERVING))


async def test_reflection_lists_the_public_services_of_the_whole_mesh(keys: Keys) -> None:
    async with serving(keys, found) as server, client_of(server, keys) as client:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(client.channel)  # type: ignore[arg-type]  # or an aio one
        names: set[str] = set()
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        async for reply in call:
            names = {service.name for service in reply.list_services_response.service}
            break
    assert (
        {
            "commerce.customer.v1.CustomerService",
            "commerce.customer.v1.SessionService",
            "commerce.order.v1.OrderService",
            "commerce.payment.v1.PaymentService",
            "commerce.product.v1.InventoryService",
            "commerce.product.v1.ProductService",
        }
        == {name for name in names if name.startswith("commerce.")}
        == set(public_services())
    )


async def test_stop_finishes_the_call_in_progress_and_accepts_no_new_one(keys: Keys) -> None:
    gate, entered = asyncio.Event(), asyncio.Event()

    async def wait(request: Any, call: Call) -> product_pb2.GetProductResponse:
        entered.set()
        await gate.wait()
        return await found(request, call)

    async with serving(keys, wait) as server, client_of(server, keys) as client:
        stub = product_pb2_grpc.ProductServiceStub(client.channel)
        in_flight = asyncio.create_task(client(stub.GetProduct, GET))
        await entered.wait()
        stopping = asyncio.create_task(server.stop())

        async def refuses() -> bool:
            async with client_of(server, keys) as late:
                try:
                    await product_pb2_grpc.ProductServiceStub(late.channel).GetProduct(GET, timeout=0.5)
                except grpc.aio.AioRpcError as failure:
                    return failure.code() is grpc.StatusCode.UNAVAILABLE
                return False

        await eventually(refuses)
        assert not in_flight.done()
        gate.set()
        assert (await in_flight).product.id == GET.product_id
        async with asyncio.timeout(TEST_TIMEOUT_S):
            await stopping


async def test_unknown_metadata_of_a_stub_has_no_effect(keys: Keys) -> None:
    async def missing(_: Any, __: Call) -> None:
        raise NotFound("there is none", reason="PRODUCT_NOT_FOUND")

    async with serving(keys, missing) as server, client_of(server, keys) as client:
        stub = product_pb2_grpc.ProductServiceStub(client.channel)
        odd = (("traceparent", "junk"), ("x-anything", "1"), ("idempotency-key", "on a read"))
        assert (await refused(client(stub.GetProduct, GET, metadata=odd))).reason == "PRODUCT_NOT_FOUND"


async def test_metadata_above_the_limit_is_refused_with_a_named_error(keys: Keys) -> None:
    async with serving(keys, found) as server, client_of(server, keys) as client:
        stub = product_pb2_grpc.ProductServiceStub(client.channel)
        for size in (12_000, MAX_METADATA_BYTES - 1024):
            reply = await client(stub.GetProduct, GET, metadata=(("x-long", "y" * size),))
            assert reply.product.id == GET.product_id
        for size in (MAX_METADATA_BYTES, MAX_TRANSPORT_BYTES - 1024):
            error = await refused(client(stub.GetProduct, GET, metadata=(("x-long", "y" * size),)))
            assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "REQUEST_TOO_LARGE")
