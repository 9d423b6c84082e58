"""An attempt and its retry that meet in the product service."""

import asyncio
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg

from commerce.product.v1 import inventory_pb2, inventory_pb2_grpc
from mesh.rpc import wire
from tests.mesh.house import House, all_of
from tests.services import eventually, new_key


async def test_a_retry_that_overtakes_its_attempt_waits_for_it_and_adopts_its_hold(mesh: House) -> None:
    product, first, key = await mesh.product(5), uuid4(), uuid4().bytes
    connection = await asyncpg.connect(mesh.servers.postgres.url_for("product_svc"))
    try:
        attempt = connection.transaction()
        await attempt.start()
        # The first attempt, in another process, just before its commit.
        await connection.execute(
            "INSERT INTO holds (order_id, key, customer_id, state, expire_time) VALUES ($1, $2, $1, 'HELD', now())",
            first,
            key,
        )
        await connection.execute(
            "INSERT INTO hold_lines (order_id, product_id, quantity, sku, name, unit_price, currency) "
            "VALUES ($1, $2, 1, 'SKU', 'A thing', 10, 'EUR')",
            first,
            UUID(product),
        )
        request = inventory_pb2.ReserveStockRequest(
            reservations=[
                inventory_pb2.Reservation(
                    order_id=str(uuid4()),
                    hold_key=key,
                    customer_id=str(uuid4()),
                    lines=[inventory_pb2.ReservationLine(product_id=product, quantity=1)],
                    expire_time=wire.timestamp(datetime.now(UTC)),
                )
            ]
        )
        async with mesh.as_service("order", to="product") as client:
            stub = inventory_pb2_grpc.InventoryServiceStub(client.channel)
            retry = asyncio.create_task(client(stub.ReserveStock, request))

            async def waiting() -> bool:
                blocked = "SELECT FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))"
                return bool(await mesh.sql("product_svc", blocked, connection.get_server_pid()))

            await eventually(waiting)
            await attempt.commit()
            reply = await retry
        assert reply.results[0].hold.order_id == str(first)
        assert (await mesh.stock(product)).reserved == 0
    finally:
        await mesh.sql("product_svc", "UPDATE holds SET state = 'RELEASED' WHERE order_id = $1", first)
        await connection.close()


async def test_duplicate_attempts_never_release_the_hold_of_the_one_that_won(mesh: House) -> None:
    buyer = await mesh.buyer("tok_visa")
    product = await mesh.product(100)
    for _ in range(10):
        key = new_key()
        attempts = await all_of(*(mesh.order(buyer, {product: 1}, key=key) for _ in range(6)))
        assert len({attempt.id for attempt in attempts}) == 1
        await mesh.decided(buyer, attempts[0].id)

    async def sold() -> bool:
        stock = await mesh.stock(product)
        return (stock.on_hand, stock.reserved) == (90, 0)

    await eventually(sold)
