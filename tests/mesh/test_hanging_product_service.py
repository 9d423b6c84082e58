"""Orders while the product service hangs: what fails, what goes on, and that all is well afterwards."""

from __future__ import annotations

from functools import partial

from commerce.order.v1 import order_pb2
from mesh.errors import Unavailable
from stack.servers import Servers
from tests.mesh.house import House, all_of
from tests.processes import serving_process, stopped
from tests.services import Keys, eventually, new_key, refused


async def test_orders_fail_at_once_and_reads_go_on_while_the_product_service_hangs(
    mesh: House, servers: Servers, keys: Keys
) -> None:
    await mesh.services["product"].stop()
    port = int(mesh.addresses["product"].rpartition(":")[2])
    async with serving_process("product", servers, keys, port, MESH_ORDER_TARGET=mesh.addresses["order"]) as process:
        buyer, product = await mesh.buyer("tok_visa"), await mesh.product(100)
        key, keys_of_failed = new_key(), [new_key() for _ in range(16)]
        placed = await mesh.order(buyer, {product: 1}, key=key)
        with stopped(process):
            failures = await all_of(*(mesh.order(buyer, {product: 1}, key=each) for each in keys_of_failed))
            for failure in [*failures, await refused(mesh.order(buyer, {product: 1}))]:
                assert isinstance(failure, Unavailable), failure
                assert failure.reason == "DEPENDENCY_UNAVAILABLE"
                assert failure.retry_after
            assert (await mesh.read(buyer, placed.id)).id == placed.id
            assert await mesh.order(buyer, {product: 1}, key=key) == placed

        async def place(key: str) -> order_pb2.Order | None:
            try:
                return await mesh.order(buyer, {product: 1}, key=key)
            except Unavailable:
                return None

        orders = [await eventually(partial(place, each)) for each in keys_of_failed]
        assert len({order.id for order in orders}) == 16
        # A retry adopts the hold that its failed attempt may have made.
        assert (await mesh.unreserved(product)).on_hand == 100 - 1 - 16
