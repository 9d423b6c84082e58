"""What happens to an order when time runs out, and to a hold whose order never came."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from commerce.order.v1 import order_pb2, order_pb2_grpc
from commerce.payment.v1 import payment_pb2
from commerce.product.v1 import inventory_pb2, inventory_pb2_grpc
from mesh.db.idempotency import IdempotencyKey
from mesh.errors import Aborted
from mesh.rpc.call import Caller, Kind
from stack.servers import Servers
from tests.mesh.house import House, another, house, order_service_restarted
from tests.services import Keys, eventually, new_key, refused, running


async def test_order_not_paid_in_time_is_cancelled_and_a_late_capture_refunded(servers: Servers, keys: Keys) -> None:
    settings = {
        "order": {"payment_deadline": 0.2, "deadline_sweep_seconds": 0.1},
        "payment": {"sandbox_slow_seconds": 2.5},
    }
    async with house(servers, keys, **settings) as mesh:
        buyer = await mesh.buyer("tok_slow")
        product = await mesh.product(1)
        order = await mesh.decided(buyer, (await mesh.order(buyer, {product: 1})).id)
        assert order.status == order_pb2.ORDER_STATUS_CANCELLED
        assert order.cancel_reason == order_pb2.CANCEL_REASON_PAYMENT_TIMEOUT
        payment = await mesh.payment(buyer, order.id)
        assert payment.status in {payment_pb2.PAYMENT_STATUS_REFUNDED, payment_pb2.PAYMENT_STATUS_VOIDED}
        assert (await mesh.unreserved(product)).on_hand == 1


async def test_a_payment_deadline_outlives_the_process_that_set_it(servers: Servers, keys: Keys) -> None:
    # This one never looks for what is overdue once it has started.
    settings = {"order": {"payment_deadline": 0.2, "deadline_sweep_seconds": 3600.0}}
    async with house(servers, keys, **settings) as mesh:
        buyer = await mesh.buyer("tok_visa")
        product = await mesh.product(1)
        await mesh.services["payment"].stop()
        placed = await mesh.order(buyer, {product: 1})
        async with order_service_restarted(mesh):

            async def is_given_up() -> bool:
                return (await mesh.read(buyer, placed.id)).status == order_pb2.ORDER_STATUS_CANCELLING

            await eventually(is_given_up)
            async with running(another(mesh, "payment")):
                order = await mesh.decided(buyer, placed.id)
            assert order.status == order_pb2.ORDER_STATUS_CANCELLED
            assert order.cancel_reason == order_pb2.CANCEL_REASON_PAYMENT_TIMEOUT
            assert (await mesh.unreserved(product)).on_hand == 1


@pytest.mark.parametrize("left", [0, 9])
@pytest.mark.parametrize("sold", [True, False])
async def test_a_retry_after_a_restart_gets_the_order_of_the_first_attempt(
    servers: Servers, keys: Keys, left: int, sold: bool
) -> None:
    # Its hold is either sold by then, or kept while there is no payment.
    async with house(servers, keys) as mesh:
        buyer = await mesh.buyer("tok_visa")
        product, key = await mesh.product(1 + left), new_key()
        if not sold:
            await mesh.services["payment"].stop()
        placed = await mesh.order(buyer, {product: 1}, key=key)
        if sold:
            await mesh.decided(buyer, placed.id)
            await mesh.unreserved(product)
        async with order_service_restarted(mesh):
            assert await mesh.order(buyer, {product: 1}, key=key) == placed
            assert (await refused(mesh.order(buyer, {product: 2}, key=key))).reason == "IDEMPOTENCY_KEY_REUSED"
            expected = (left, 0) if sold else (1 + left, 1)

            async def is_as_before() -> bool:
                stock = await mesh.stock(product)
                return (stock.on_hand, stock.reserved) == expected

            # A retry may hold stock once more, which is released in the background.
            await eventually(is_as_before)
            orders = await mesh.sql("order_svc", "SELECT FROM orders WHERE customer_id = $1", UUID(buyer.id))
            assert len(orders) == 1


async def test_an_order_whose_cancelling_nobody_heard_of_is_cancelled_all_the_same(
    servers: Servers, keys: Keys
) -> None:
    async with house(servers, keys, order={"cancelling_timeout": 0.5}) as mesh:
        buyer = await mesh.buyer("tok_visa")
        product = await mesh.product(1)
        confirmed = await mesh.decided(buyer, (await mesh.order(buyer, {product: 1})).id)
        # The event that told of it is among the dead letters, say.
        await mesh.sql(
            "order_svc",
            "UPDATE orders SET status = 'CANCELLING', cancel_reason = 'CUSTOMER_REQUEST', update_time = now(), "
            "version = version + 1 WHERE id = $1",
            UUID(confirmed.id),
        )

        async def cancelled() -> bool:
            return (await mesh.read(buyer, confirmed.id)).status == order_pb2.ORDER_STATUS_CANCELLED

        await eventually(cancelled)
        payment = await mesh.payment(buyer, confirmed.id)
        assert payment.status == payment_pb2.PAYMENT_STATUS_REFUNDED


async def hold(mesh: House, product: str, *, order_id: str, key: bytes, expires_in: float) -> str:
    """Hold one of a product as the order service would; the order id that the hold is under."""
    expires = Timestamp()
    expires.FromDatetime(datetime.now(UTC) + timedelta(seconds=expires_in))
    request = inventory_pb2.ReserveStockRequest(
        reservations=[
            inventory_pb2.Reservation(
                order_id=order_id,
                hold_key=key,
                customer_id=str(uuid4()),
                lines=[inventory_pb2.ReservationLine(product_id=product, quantity=1)],
                expire_time=expires,
            )
        ]
    )
    async with mesh.as_service("order", to="product") as client:
        reply = await client(inventory_pb2_grpc.InventoryServiceStub(client.channel).ReserveStock, request)
    held: str = reply.results[0].hold.order_id
    return held


async def test_a_hold_whose_order_never_came_is_swept_and_the_order_can_never_come(
    servers: Servers, keys: Keys
) -> None:
    async with house(servers, keys, product={"hold_sweep_seconds": 0.1}) as mesh:
        product, order_id = await mesh.product(1), str(uuid4())
        await hold(mesh, product, order_id=order_id, key=uuid4().bytes, expires_in=-1)
        assert (await mesh.unreserved(product)).on_hand == 1
        row = await mesh.sql("order_svc", "SELECT status FROM orders WHERE id = $1", UUID(order_id))
        assert row[0]["status"] == "ABANDONED"
        staff = mesh.staff["order"]
        stub = order_pb2_grpc.OrderServiceStub(staff.channel)
        error = await refused(staff(stub.GetOrder, order_pb2.GetOrderRequest(order_id=order_id)))
        assert error.reason == "ORDER_NOT_FOUND"


async def test_decisions_about_holds_come_in_the_order_of_the_question(mesh: House) -> None:
    buyer = await mesh.buyer("tok_visa")
    product = await mesh.product(3)
    paid = [(await mesh.decided(buyer, (await mesh.order(buyer, {product: 1})).id)).id for _ in range(3)]
    unknown = sorted(str(uuid4()) for _ in range(3))
    asked = [unknown[2], paid[1], unknown[0], paid[2], paid[0], unknown[1]]
    async with mesh.as_service("product", to="order") as client:
        resolve = order_pb2_grpc.OrderServiceStub(client.channel).ResolveHolds
        reply = await client(resolve, order_pb2.ResolveHoldsRequest(order_ids=asked))
    decisions = dict.fromkeys(paid, order_pb2.HOLD_RESOLUTION_COMMIT) | dict.fromkeys(
        unknown, order_pb2.HOLD_RESOLUTION_RELEASE
    )
    assert [(each.order_id, each.resolution) for each in reply.decisions] == [(each, decisions[each]) for each in asked]


async def test_the_hold_of_a_living_order_is_never_swept(servers: Servers, keys: Keys) -> None:
    async with house(servers, keys, product={"hold_sweep_seconds": 0.05}) as mesh:
        buyer = await mesh.buyer("tok_visa")
        product = await mesh.product(1)
        await mesh.services["payment"].stop()
        placed = await mesh.order(buyer, {product: 1})
        await mesh.sql(
            "product_svc", "UPDATE holds SET expire_time = now() - interval '1 s' WHERE order_id = $1", UUID(placed.id)
        )

        async def asked_and_kept() -> bool:
            rows = await mesh.sql(
                "product_svc",
                "SELECT FROM holds WHERE order_id = $1 AND expire_time > now() AND state = 'HELD'",
                UUID(placed.id),
            )
            return bool(rows)

        await eventually(asked_and_kept)
        assert (await mesh.stock(product)).reserved == 1
        async with running(another(mesh, "payment")):
            assert (await mesh.decided(buyer, placed.id)).status == order_pb2.ORDER_STATUS_CONFIRMED
            assert (await mesh.unreserved(product)).on_hand == 0


async def test_a_retry_adopts_the_hold_of_an_attempt_that_died(mesh: House) -> None:
    buyer = await mesh.buyer("tok_visa")
    product, key, order_id = await mesh.product(1), new_key(), str(uuid4())
    await hold(mesh, product, order_id=order_id, key=digest(buyer.id, key), expires_in=60)
    assert (await mesh.stock(product)).available == 0
    placed = await mesh.order(buyer, {product: 1}, key=key)
    assert placed.id == order_id
    assert (await mesh.decided(buyer, placed.id)).status == order_pb2.ORDER_STATUS_CONFIRMED
    assert (await mesh.unreserved(product)).on_hand == 0


async def test_an_attempt_whose_hold_was_given_up_cannot_use_it_and_its_retry_makes_a_new_one(mesh: House) -> None:
    buyer = await mesh.buyer("tok_visa")
    product, key, order_id = await mesh.product(1), new_key(), str(uuid4())
    await hold(mesh, product, order_id=order_id, key=digest(buyer.id, key), expires_in=60)
    async with mesh.as_service("product", to="order") as client:
        resolve = order_pb2_grpc.OrderServiceStub(client.channel).ResolveHolds
        reply = await client(resolve, order_pb2.ResolveHoldsRequest(order_ids=[order_id]))
    assert reply.decisions[0].resolution == order_pb2.HOLD_RESOLUTION_RELEASE
    error = await refused(mesh.order(buyer, {product: 1}, key=key))
    assert (error.code.name, error.reason) == ("ABORTED", "HOLD_LOST")
    # What the sweep does once it has its answer:
    await mesh.sql("product_svc", "UPDATE holds SET expire_time = now() WHERE order_id = $1", UUID(order_id))

    async def placed() -> order_pb2.Order | None:
        try:
            return await mesh.order(buyer, {product: 1}, key=key)
        except Aborted:  # not swept yet
            return None

    order = await eventually(placed)
    assert order.id != order_id
    assert (await mesh.decided(buyer, order.id)).status == order_pb2.ORDER_STATUS_CONFIRMED


def digest(customer_id: str, key: str) -> bytes:
    """The identity that the order service gives to an attempt."""
    caller = Caller(Kind.CUSTOMER, customer_id)
    return IdempotencyKey.of(key, caller, "", order_pb2.CreateOrderRequest()).digest
