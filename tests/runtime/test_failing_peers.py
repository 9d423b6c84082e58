"""Calls to a service that hangs, is slow or drains: what fails, how, and what goes to another worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from commerce.product.v1 import product_pb2, product_pb2_grpc
from mesh.errors import MeshError, Unavailable
from mesh.rpc.breaker import State
from mesh.rpc.call import Call
from mesh.rpc.clients import Peer
from stack.ports import free_ports
from stack.servers import Servers
from tests.processes import serving_process, stopped
from tests.runtime.served import GET, found, serving, settings
from tests.services import TEST_TIMEOUT_S, Keys, eventually, refused

LONG_S = 30.0
"""Seconds: longer than the breaker needs, and shorter than the limit of a test."""


@asynccontextmanager
async def peer_of(keys: Keys, *ports: int, **more: Any) -> AsyncIterator[Peer]:
    peer = Peer("product", [f"127.0.0.1:{port}" for port in ports], settings(keys, "order"), **more)
    await peer.start()
    try:
        yield peer
    finally:
        await peer.stop()


async def list_products(peer: Peer) -> Any:
    stub = peer.stub(product_pb2_grpc.ProductServiceStub)
    return await peer.ask(stub.ListProducts, product_pb2.ListProductsRequest(), timeout=LONG_S)


async def get(peer: Peer) -> Any:
    return await peer.ask(peer.stub(product_pb2_grpc.ProductServiceStub).GetProduct, GET, timeout=LONG_S)


async def test_hanging_peer_fails_pending_and_new_calls_until_it_goes_on(servers: Servers, keys: Keys) -> None:
    (port,) = free_ports(1)
    async with serving_process("product", servers, keys, port) as process, peer_of(keys, port) as peer:
        await list_products(peer)
        with stopped(process):
            pending = [asyncio.create_task(list_products(peer)) for _ in range(3)]
            for error in [await refused(each) for each in pending] + [await refused(list_products(peer))]:
                assert isinstance(error, Unavailable)
                assert (error.reason, error.metadata) == ("DEPENDENCY_UNAVAILABLE", {"service": "product"})
                assert error.retry_after
            assert (peer.breaker.state, peer.breaker.opened) == (State.OPEN, 1)
            assert (peer.breaker.interrupted, peer.breaker.refused) == (3, 1)

        async def answers() -> bool:
            try:
                await list_products(peer)
            except Unavailable:
                return False
            return True

        await eventually(answers)
        assert peer.breaker.state is State.CLOSED


async def test_hanging_worker_fails_no_call_while_another_one_answers(servers: Servers, keys: Keys) -> None:
    ports = free_ports(2)
    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(serving_process("product", servers, keys, port)) for port in ports]
        peer = await stack.enter_async_context(peer_of(keys, *ports, suspect_after=0.2))
        for process in processes:
            # Both are connected, so round robin must find the other one.
            await list_products(peer)
            with stopped(process):
                for _ in range(4):
                    await list_products(peer)
        assert peer.retries.hedged > 0
        assert peer.breaker.opened == 0


async def test_worker_that_goes_on_hanging_gets_no_more_calls(servers: Servers, keys: Keys) -> None:
    ports = free_ports(2)
    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(serving_process("product", servers, keys, port)) for port in ports]
        peer = await stack.enter_async_context(peer_of(keys, *ports, suspect_after=0.2))
        await list_products(peer)

        async def nothing_hangs() -> bool:
            hedged = peer.retries.hedged
            for _ in range(4):
                await list_products(peer)
            return peer.retries.hedged == hedged

        with stopped(processes[0]):
            assert not await nothing_hangs()
            await eventually(nothing_hangs)


async def test_slow_peer_is_not_cut_off_before_its_deadline(keys: Keys) -> None:
    peers: list[Peer] = []

    async def slow(request: Any, call: Call) -> Any:
        async def probed() -> bool:
            return peers[0].breaker.probes > 3

        await eventually(probed)
        return await found(request, call)

    async with serving(keys, slow) as server, peer_of(keys, server.port, suspect_after=0.05) as peer:
        peers.append(peer)
        assert (await get(peer)).product.id == GET.product_id
        assert (peer.breaker.state, peer.breaker.opened) == (State.CLOSED, 0)


@pytest.mark.parametrize("drain_seconds", [0, 5], ids=["at once", "with time"])
async def test_drained_worker_fails_no_call_that_another_worker_can_take(keys: Keys, drain_seconds: int) -> None:
    """This includes the calls in progress that the drain interrupts."""
    cut_off = asyncio.Event()

    async def until_cut_off(request: Any, call: Call) -> Any:
        cut_off.set()
        if drain_seconds == 0:
            await asyncio.Event().wait()
        return await found(request, call)

    async with serving(keys, found) as stays, AsyncExitStack() as stack:
        drained = await stack.enter_async_context(serving(keys, until_cut_off, drain_seconds=drain_seconds))
        peer = await stack.enter_async_context(peer_of(keys, stays.port, drained.port, suspect_after=LONG_S))
        ended = False

        async def keep_calling() -> int:
            calls = 0
            while not ended:
                await get(peer)
                calls += 1
            return calls

        callers = [asyncio.create_task(keep_calling()) for _ in range(8)]
        await asyncio.wait_for(cut_off.wait(), TEST_TIMEOUT_S)
        await drained.stop()
        for _ in range(20):
            await get(peer)
        ended = True
        assert all(await asyncio.gather(*callers))
        assert peer.breaker.opened == 0


async def test_failing_peer_gets_few_more_attempts_than_calls(keys: Keys) -> None:
    attempts = 0

    async def fails(_: Any, __: Call) -> None:
        nonlocal attempts
        attempts += 1
        raise Unavailable("its database is away")

    async def call() -> MeshError:
        return await refused(get(peer))

    calls = 400
    async with serving(keys, fails) as server, peer_of(keys, server.port) as peer:
        errors = await asyncio.gather(*(call() for _ in range(calls)))
        assert {error.message for error in errors} == {"its database is away"}
        assert peer.retries.over_budget > 0
        assert attempts == calls + peer.retries.retried
        assert attempts <= calls * 1.1 + 50
        assert peer.breaker.opened == 0, "the peer answers"
