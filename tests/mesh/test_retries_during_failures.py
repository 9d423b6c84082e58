"""Retries of placed orders while a service that placing needs is down."""

from __future__ import annotations

import pytest

from mesh.errors import MeshError
from tests.mesh.house import House, all_of, another_order_worker, order_service_restarted
from tests.services import new_key, refused

DOWN = ("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE")


def cause(error: object) -> tuple[str, str]:
    """Code and reason of an error."""
    assert isinstance(error, MeshError), error
    return error.code.name, error.reason


@pytest.mark.parametrize("down", ["product", "customer"])
async def test_retry_gets_its_order_while_a_peer_is_down_and_fresh_orders_beside_it_fail(
    mesh: House, down: str
) -> None:
    buyer, product, key = await mesh.buyer("tok_visa"), await mesh.product(100), new_key()
    first = await mesh.order(buyer, {product: 1}, key=key)
    await mesh.services[down].stop()
    keys = [new_key() for _ in range(20)]
    keys[10] = key
    results = await all_of(*(mesh.order(buyer, {product: 1}, key=each) for each in keys))
    assert results[10] == first
    fresh = [*results[:10], *results[11:]]
    assert {cause(result) for result in fresh} == {DOWN}
    error = await refused(mesh.order(buyer, {product: 2}, key=key))
    assert error.reason == "IDEMPOTENCY_KEY_REUSED"


@pytest.mark.parametrize("down", ["product", "customer"])
async def test_retry_in_another_worker_gets_its_order_while_a_peer_is_down(mesh: House, down: str) -> None:
    buyer, product, key = await mesh.buyer("tok_visa"), await mesh.product(100), new_key()
    first = await mesh.order(buyer, {product: 1}, key=key)
    async with another_order_worker(mesh, buyer) as there:
        await mesh.services[down].stop()
        assert await mesh.order(there, {product: 1}, key=key) == first
        assert cause(await refused(mesh.order(there, {product: 1}))) == DOWN


@pytest.mark.parametrize("down", ["product", "customer"])
async def test_retry_after_a_restart_gets_its_order_while_a_peer_is_down(mesh: House, down: str) -> None:
    buyer, product, key = await mesh.buyer("tok_visa"), await mesh.product(100), new_key()
    first = await mesh.order(buyer, {product: 1}, key=key)
    await mesh.services[down].stop()
    async with order_service_restarted(mesh):
        results = await all_of(*(mesh.order(buyer, {product: 1}, key=each) for each in (new_key(), key, new_key())))
        assert results[1] == first
        assert {cause(results[0]), cause(results[2])} == {DOWN}
