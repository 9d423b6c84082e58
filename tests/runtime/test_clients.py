"""Clients of other services: safe retries, bounded deadlines, and verified peers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest

from commerce.product.v1 import product_pb2, product_pb2_grpc
from mesh.errors import DeadlineExceeded, NotFound, Unavailable
from mesh.rpc.call import Call
from mesh.rpc.clients import Peer
from tests.runtime.served import GET, found, serving, settings
from tests.services import NOWHERE, Keys, eventually

CREATE = product_pb2.CreateProductRequest(sku="TEA", name="Tea")
CREATE.price.currency_code, CREATE.price.units = "EUR", 1


async def ask(peer: Peer, **more: Any) -> Any:
    return await peer.ask(product_pb2_grpc.ProductServiceStub(peer.channel).GetProduct, GET, **more)


async def test_unavailable_call_is_retried_with_the_same_idempotency_key(keys: Keys) -> None:
    seen: list[bytes] = []

    async def flaky(_: Any, call: Call) -> product_pb2.CreateProductResponse:
        assert call.key is not None
        seen.append(call.key.digest)
        if len(seen) < 3:
            raise Unavailable("not yet")
        return product_pb2.CreateProductResponse()

    async with serving(keys, flaky) as server:
        peer = Peer("product", (f"127.0.0.1:{server.port}",), settings(keys, "order"))
        staff = Call("/test", metadata={"authorization": f"Bearer {keys.token('staff', uuid4())}"})
        stub = product_pb2_grpc.ProductServiceStub(peer.channel)
        await peer.ask(stub.CreateProduct, CREATE, on_behalf_of=staff)
        assert len(seen) == 3
        assert len(set(seen)) == 1
        await peer.ask(stub.CreateProduct, CREATE, on_behalf_of=staff)
        assert len(set(seen)) == 2, "another change has another key"
        await peer.ask(stub.CreateProduct, CREATE, on_behalf_of=staff, key="given")
        await peer.ask(stub.CreateProduct, CREATE, on_behalf_of=staff, key="given")
        assert len(set(seen)) == 3
        await peer.stop()


async def test_other_error_of_a_call_is_raised_and_not_retried(keys: Keys) -> None:
    calls = 0

    async def missing(_: Any, __: Call) -> None:
        nonlocal calls
        calls += 1
        raise NotFound("none", reason="PRODUCT_NOT_FOUND", metadata={"productId": "1"})

    async with serving(keys, missing) as server:
        peer = Peer("product", (f"127.0.0.1:{server.port}",), settings(keys, "order"))
        with pytest.raises(NotFound) as refusal:
            await ask(peer)
        assert (refusal.value.reason, refusal.value.metadata) == ("PRODUCT_NOT_FOUND", {"productId": "1"})
        assert calls == 1
        await peer.stop()


@pytest.mark.parametrize(
    ("waits", "timeout", "least", "most"),
    [
        ((), 30.0, 0, 30),
        ((20.0,), 600.0, 0, 20),
        ((10.0, 40.0), 600.0, 10, 40),
        ((500.0,), 30.0, 0, 30),
        ((None, 20.0), 600.0, 0, 20),
    ],
)
async def test_deadline_is_the_latest_of_the_waiting_calls_within_the_limit(
    keys: Keys, waits: Sequence[float | None], timeout: float, least: float, most: float
) -> None:
    left: list[float | None] = []

    async def note(request: Any, call: Call) -> Any:
        left.append(call.remaining())
        return await found(request, call)

    now = asyncio.get_running_loop().time()
    calls = [Call("/test", deadline=None if wait is None else now + wait) for wait in waits]
    async with serving(keys, note) as server:
        peer = Peer("product", (f"127.0.0.1:{server.port}",), settings(keys, "order"))
        await ask(peer, calls=calls, timeout=timeout)
        await peer.stop()
    assert left[0] is not None
    assert least < left[0] <= most


async def test_call_ends_at_the_deadline(keys: Keys) -> None:
    async def slow(_: Any, __: Call) -> None:
        await asyncio.Event().wait()

    async with serving(keys, slow) as server:
        peer = Peer("product", (f"127.0.0.1:{server.port}",), settings(keys, "order"))
        with pytest.raises(DeadlineExceeded):
            await ask(peer, timeout=0.2)
        await peer.stop()


async def test_calls_go_round_robin_over_all_addresses_that_answer(keys: Keys) -> None:
    served: Counter[str] = Counter()

    def counting(name: str) -> Any:
        async def count(request: Any, call: Call) -> Any:
            served[name] += 1
            return await found(request, call)

        return count

    async with serving(keys, counting("one")) as one:
        async with serving(keys, counting("two")) as two:
            target = (f"127.0.0.1:{one.port}", f"127.0.0.1:{two.port}")
            peer = Peer("product", target, settings(keys, "order"))

            async def both() -> bool:
                await ask(peer)
                return len(served) == 2

            await eventually(both)
            served.clear()
            for _ in range(20):
                await ask(peer)
            assert served == {"one": 10, "two": 10}
        served.clear()
        for _ in range(10):
            await ask(peer)
        assert served == {"one": 10}
        await peer.stop()


async def test_server_with_the_certificate_of_another_service_gets_no_call(keys: Keys) -> None:
    async def never(_: Any, __: Call) -> None:
        raise AssertionError("was asked")

    async with serving(keys, never, name="payment") as server:
        peer = Peer("product", (f"127.0.0.1:{server.port}",), settings(keys, "order"))
        with pytest.raises(Unavailable):
            await ask(peer, timeout=3)
        await peer.stop()


async def test_missing_service_is_unavailable_and_named(keys: Keys) -> None:
    peer = Peer("product", NOWHERE, settings(keys, "order"))
    with pytest.raises(Unavailable) as refusal:
        await ask(peer)
    assert (refusal.value.reason, refusal.value.metadata) == ("DEPENDENCY_UNAVAILABLE", {"service": "product"})
    await peer.stop()
