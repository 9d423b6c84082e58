"""An order from its placing to its end, through all four services and their events."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

from commerce.order.v1 import order_pb2, order_pb2_grpc
from commerce.payment.v1 import payment_pb2
from mesh.errors import MeshError
from tests.mesh.house import House, all_of, another
from tests.services import eventually, new_key, refused, running

PENDING = order_pb2.ORDER_STATUS_PENDING
CONFIRMED = order_pb2.ORDER_STATUS_CONFIRMED
CANCELLING = order_pb2.ORDER_STATUS_CANCELLING
CANCELLED = order_pb2.ORDER_STATUS_CANCELLED


async def test_a_paid_order_is_confirmed_and_its_stock_sold(mesh: House) -> None:
    buyer = await mesh.buyer("tok_visa")
    products = [await mesh.product(10, units=price) for price in (10, 20, 30)]
    placed = await mesh.order(buyer, dict(zip(products, (1, 2, 3), strict=True)))
    assert placed.status == PENDING
    assert placed.total_amount.units == 10 + 2 * 20 + 3 * 30
    order = await mesh.decided(buyer, placed.id)
    assert order.status == CONFIRMED
    payment = await mesh.payment(buyer, order.id)
    assert payment.status == payment_pb2.PAYMENT_STATUS_CAPTURED
    assert payment.amount == order.total_amount
    assert order.payment_id == payment.id
    stocks = [await mesh.unreserved(product) for product in products]
    assert [stock.on_hand for stock in stocks] == [9, 8, 7]


async def test_the_same_key_gives_the_same_order_and_another_body_is_refused(mesh: House) -> None:
    buyer = await mesh.buyer("tok_visa")
    product, key = await mesh.product(10), new_key()
    first, *others = await all_of(*(mesh.order(buyer, {product: 2}, key=key) for _ in range(8)))
    assert isinstance(first, order_pb2.Order)
    assert all(other == first for other in others)
    error = await refused(mesh.order(buyer, {product: 3}, key=key))
    assert error.reason == "IDEMPOTENCY_KEY_REUSED"
    await mesh.decided(buyer, first.id)
    assert await mesh.order(buyer, {product: 2}, key=key) == first
    stock = await mesh.unreserved(product)
    assert stock.on_hand == 8


async def test_a_declined_payment_cancels_the_order_and_frees_the_stock(mesh: House) -> None:
    for token in ("tok_declined", "tok_insufficient_funds"):
        buyer = await mesh.buyer(token)
        product = await mesh.product(3)
        order = await mesh.decided(buyer, (await mesh.order(buyer, {product: 3})).id)
        assert order.status == CANCELLED
        assert order.cancel_reason == order_pb2.CANCEL_REASON_PAYMENT_DECLINED
        assert (await mesh.unreserved(product)).on_hand == 3


async def test_every_approving_token_ends_in_one_charge(mesh: House) -> None:
    buyer = await mesh.buyer("tok_slow", "tok_timeout", "tok_flaky")
    product = await mesh.product(3)
    orders = await all_of(*(mesh.order(buyer, {product: 1}, method=method) for method in buyer.methods.values()))
    for placed in orders:
        assert (await mesh.decided(buyer, placed.id)).status == CONFIRMED
        payment = await mesh.payment(buyer, placed.id)
        charges = await mesh.sql(
            "payment_svc",
            "SELECT FROM sandbox.charges JOIN payments ON payments.provider_key = charges.key WHERE payments.id = $1",
            payment.id,
        )
        assert len(charges) == 1
    assert (await mesh.unreserved(product)).on_hand == 0


async def test_too_many_is_refused_and_holds_nothing(mesh: House) -> None:
    buyer = await mesh.buyer("tok_visa")
    plenty, few = await mesh.product(100), await mesh.product(2)
    error = await refused(mesh.order(buyer, {plenty: 5, few: 3}))
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "STOCK_INSUFFICIENT")
    assert error.metadata == {"productId": few, "requested": "3", "available": "2"}
    assert [(await mesh.stock(each)).reserved for each in (plenty, few)] == [0, 0]
    listed = await buyer.orders(
        order_pb2_grpc.OrderServiceStub(buyer.orders.channel).ListOrders, order_pb2.ListOrdersRequest()
    )
    assert not listed.orders


async def test_what_an_order_cannot_be_placed_for_is_named(mesh: House) -> None:
    buyer, poor = await mesh.buyer("tok_visa"), await mesh.buyer()
    euros, dollars = await mesh.product(5), await mesh.product(5, currency="USD")
    assert (await refused(mesh.order(poor, {euros: 1}))).reason == "PAYMENT_METHOD_MISSING"
    assert (await refused(mesh.order(poor, {euros: 1}, method=str(uuid4())))).reason == "PAYMENT_METHOD_NOT_FOUND"
    assert (await refused(mesh.order(buyer, {str(uuid4()): 1}))).reason == "PRODUCT_NOT_FOUND"
    assert (await refused(mesh.order(buyer, {euros: 1, dollars: 1}))).reason == "CURRENCY_MISMATCH"
    assert (await refused(mesh.order(buyer, {}))).reason == "VALIDATION_FAILED"
    assert [(await mesh.unreserved(each)).on_hand for each in (euros, dollars)] == [5, 5]


async def test_one_bad_order_of_a_group_fails_alone(mesh: House) -> None:
    buyer, poor = await mesh.buyer("tok_visa"), await mesh.buyer()
    product, gone = await mesh.product(40), str(uuid4())
    results = await all_of(
        *(
            mesh.order(poor if index % 7 == 0 else buyer, {gone if index % 5 == 1 else product: 1})
            for index in range(40)
        )
    )
    for index, result in enumerate(results):
        if index % 7 == 0:
            assert isinstance(result, MeshError)
            assert result.reason == "PAYMENT_METHOD_MISSING"
        elif index % 5 == 1:
            assert isinstance(result, MeshError)
            assert result.reason == "PRODUCT_NOT_FOUND"
        else:
            assert isinstance(result, order_pb2.Order), result


async def test_a_hundred_buyers_of_fifty_get_fifty(mesh: House) -> None:
    buyer = await mesh.buyer("tok_visa")
    product = await mesh.product(50)
    results = await all_of(*(mesh.order(buyer, {product: 1}) for _ in range(100)))
    placed = [result for result in results if isinstance(result, order_pb2.Order)]
    refusals = [result for result in results if isinstance(result, MeshError)]
    assert len(placed) == 50
    assert {refusal.reason for refusal in refusals} == {"STOCK_INSUFFICIENT"}
    for order in placed:
        assert (await mesh.decided(buyer, order.id)).status == CONFIRMED
    assert (await mesh.unreserved(product)).on_hand == 0


async def test_a_confirmed_order_is_cancelled_only_after_the_refund(mesh: House) -> None:
    buyer = await mesh.buyer("tok_visa")
    product = await mesh.product(4)
    order = await mesh.decided(buyer, (await mesh.order(buyer, {product: 4})).id)
    assert (await mesh.unreserved(product)).on_hand == 0
    key = new_key()
    cancelling = await mesh.cancel(buyer, order.id, key=key, etag=order.etag)
    assert cancelling.status == CANCELLING
    assert await mesh.cancel(buyer, order.id, key=key, etag=order.etag) == cancelling
    cancelled = await mesh.decided(buyer, order.id)
    assert (cancelled.status, cancelled.cancel_reason) == (CANCELLED, order_pb2.CANCEL_REASON_CUSTOMER_REQUEST)
    payment = await mesh.payment(buyer, order.id)
    assert payment.status == payment_pb2.PAYMENT_STATUS_REFUNDED
    assert payment.refunded_amount == payment.amount

    async def returned() -> bool:
        return (await mesh.stock(product)).on_hand == 4

    await eventually(returned)


async def test_cancelling_again_changes_nothing(mesh: House) -> None:
    buyer = await mesh.buyer("tok_visa", "tok_declined")
    product = await mesh.product(2)
    # Without payments the cancelling order stays so.
    await mesh.services["payment"].stop()
    order = await mesh.order(buyer, {product: 1})
    cancelling = await mesh.cancel(buyer, order.id)
    assert cancelling.status == CANCELLING
    assert await mesh.cancel(buyer, order.id) == cancelling
    async with running(another(mesh, "payment")):
        cancelled = await mesh.decided(buyer, order.id)
        assert await mesh.cancel(buyer, order.id, key=new_key()) == cancelled == await mesh.read(buyer, order.id)
        asked = "SELECT FROM mesh.outbox WHERE aggregate_id = $1 AND type = 'commerce.order.cancelling'"
        assert len(await mesh.sql("order_svc", asked, UUID(order.id))) == 1

        declined = await mesh.order(buyer, {product: 1}, method=buyer.methods["tok_declined"])
        declined = await mesh.decided(buyer, declined.id)
        assert await mesh.cancel(buyer, declined.id) == declined
        assert declined.cancel_reason == order_pb2.CANCEL_REASON_PAYMENT_DECLINED


async def test_an_order_is_cancelled_only_as_the_version_that_the_caller_has_seen(mesh: House) -> None:
    buyer = await mesh.buyer("tok_visa")
    product = await mesh.product(1)
    placed = await mesh.order(buyer, {product: 1})
    confirmed = await mesh.decided(buyer, placed.id)
    error = await refused(mesh.cancel(buyer, placed.id, etag=placed.etag))
    assert (error.code.name, error.reason) == ("ABORTED", "ETAG_MISMATCH")
    assert error.metadata == {"orderId": placed.id}
    assert await mesh.read(buyer, placed.id) == confirmed
    assert (await mesh.cancel(buyer, placed.id, etag=confirmed.etag)).status == CANCELLING


async def test_a_key_that_cancelled_one_order_does_not_cancel_another(mesh: House) -> None:
    buyer = await mesh.buyer("tok_visa")
    product, key = await mesh.product(2), new_key()
    orders = [await mesh.decided(buyer, (await mesh.order(buyer, {product: 1})).id) for _ in range(2)]
    await mesh.cancel(buyer, orders[0].id, key=key)
    error = await refused(mesh.cancel(buyer, orders[1].id, key=key))
    assert (error.code.name, error.reason) == ("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED")
    assert await mesh.read(buyer, orders[1].id) == orders[1]


async def test_what_was_shipped_cannot_be_cancelled(mesh: House) -> None:
    buyer = await mesh.buyer("tok_visa")
    product = await mesh.product(1)
    order = await mesh.decided(buyer, (await mesh.order(buyer, {product: 1})).id)
    await mesh.sql("order_svc", "UPDATE orders SET status = 'SHIPPED' WHERE id = $1", UUID(order.id))
    error = await refused(mesh.cancel(buyer, order.id))
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "ORDER_STATE")
    assert error.metadata == {"orderId": order.id, "status": "ORDER_STATUS_SHIPPED"}


async def test_capture_after_cancelling_is_refunded(mesh: House) -> None:
    buyer = await mesh.buyer("tok_slow")
    product = await mesh.product(1)
    placed = await mesh.order(buyer, {product: 1})

    async def begun() -> bool:
        return bool(await mesh.sql("payment_svc", "SELECT FROM payments WHERE order_id = $1", placed.id))

    await eventually(begun)
    assert (await mesh.cancel(buyer, placed.id)).status == CANCELLING
    order = await mesh.decided(buyer, placed.id)
    assert order.status == CANCELLED
    payment = await mesh.payment(buyer, placed.id)
    assert payment.status in {payment_pb2.PAYMENT_STATUS_REFUNDED, payment_pb2.PAYMENT_STATUS_VOIDED}
    assert (await mesh.unreserved(product)).on_hand == 1
    kept = await mesh.sql(
        "payment_svc",
        "SELECT coalesce(sum(CASE type WHEN 'CAPTURE' THEN amount WHEN 'REFUND' THEN -amount END), 0) AS kept "
        "FROM payment_entries WHERE payment_id = $1",
        payment.id,
    )
    assert kept[0]["kept"] == 0


async def test_cancelling_and_paying_at_once_always_ends_with_the_money_back(mesh: House) -> None:
    buyer = await mesh.buyer("tok_visa")
    product = await mesh.product(20)
    orders = await all_of(*(mesh.order(buyer, {product: 1}) for _ in range(20)))
    await all_of(*(mesh.cancel(buyer, order.id) for order in orders))

    async def cancelled(order_id: str) -> None:
        async def so() -> bool:
            return (await mesh.read(buyer, order_id)).status == CANCELLED

        await eventually(so)

    await asyncio.gather(*(cancelled(order.id) for order in orders))
    for order in orders:
        payment = await mesh.payment(buyer, order.id)
        assert payment.status in {payment_pb2.PAYMENT_STATUS_REFUNDED, payment_pb2.PAYMENT_STATUS_VOIDED}

    async def back() -> bool:
        stock = await mesh.stock(product)
        return (stock.on_hand, stock.reserved) == (20, 0)

    await eventually(back)


async def test_a_strangers_order_does_not_exist(mesh: House) -> None:
    buyer, stranger = await mesh.buyer("tok_visa"), await mesh.buyer("tok_visa")
    product = await mesh.product(2)
    order = await mesh.order(buyer, {product: 1})
    await mesh.decided(buyer, order.id)
    assert (await refused(mesh.read(stranger, order.id))).reason == "ORDER_NOT_FOUND"
    assert (await refused(mesh.cancel(stranger, order.id))).reason == "ORDER_NOT_FOUND"
    assert (await refused(mesh.payment(stranger, order.id))).code.name == "NOT_FOUND"
    foreign = order_pb2.CreateOrderRequest(
        items=[order_pb2.OrderLine(product_id=product, quantity=1)], customer_id=buyer.id
    )
    stub = order_pb2_grpc.OrderServiceStub(stranger.orders.channel)
    assert (await refused(stranger.orders(stub.CreateOrder, foreign))).reason == "CUSTOMER_NOT_FOUND"
    assert (
        await refused(stranger.orders(stub.ListOrders, order_pb2.ListOrdersRequest(customer_id=buyer.id)))
    ).reason == "CUSTOMER_NOT_FOUND"


async def test_staff_place_orders_for_customers_and_must_name_them(mesh: House) -> None:
    buyer = await mesh.buyer("tok_visa")
    product, staff = await mesh.product(2), mesh.staff["order"]
    stub = order_pb2_grpc.OrderServiceStub(staff.channel)
    items = [order_pb2.OrderLine(product_id=product, quantity=1)]
    error = await refused(staff(stub.CreateOrder, order_pb2.CreateOrderRequest(items=items)))
    assert [violation.field for violation in error.violations] == ["customer_id"]
    reply = await staff(stub.CreateOrder, order_pb2.CreateOrderRequest(items=items, customer_id=buyer.id))
    assert reply.order.customer_id == buyer.id
    assert (await mesh.decided(buyer, reply.order.id)).status == CONFIRMED


async def test_lines_of_the_same_product_are_merged(mesh: House) -> None:
    buyer = await mesh.buyer("tok_visa")
    product = await mesh.product(5)
    stub = order_pb2_grpc.OrderServiceStub(buyer.orders.channel)
    lines = [order_pb2.OrderLine(product_id=product, quantity=quantity) for quantity in (1, 2)]
    reply = await buyer.orders(stub.CreateOrder, order_pb2.CreateOrderRequest(items=lines))
    assert [item.quantity for item in reply.order.items] == [3]
    many = [order_pb2.OrderLine(product_id=product, quantity=9_000) for _ in range(2)]
    error = await refused(buyer.orders(stub.CreateOrder, order_pb2.CreateOrderRequest(items=many)))
    assert error.reason == "VALIDATION_FAILED"


async def test_orders_are_listed_newest_first_a_page_at_a_time(mesh: House) -> None:
    buyer = await mesh.buyer("tok_visa")
    product = await mesh.product(5)
    placed = [(await mesh.order(buyer, {product: 1})).id for _ in range(5)]
    stub = order_pb2_grpc.OrderServiceStub(buyer.orders.channel)
    seen, token = [], ""
    while True:
        page = await buyer.orders(stub.ListOrders, order_pb2.ListOrdersRequest(page_size=2, page_token=token))
        seen += [order.id for order in page.orders]
        token = page.next_page_token
        if not token:
            break
    assert seen == placed[::-1]
    bent = order_pb2.ListOrdersRequest(page_token="bm9uc2Vuc2U")
    assert (await refused(buyer.orders(stub.ListOrders, bent))).reason == "PAGE_TOKEN_INVALID"


async def test_an_order_without_items_is_refused_by_the_name_of_the_field(mesh: House) -> None:
    buyer = await mesh.buyer("tok_visa")
    error = await refused(mesh.order(buyer, {}))
    assert (error.reason, [violation.field for violation in error.violations]) == ("VALIDATION_FAILED", ["items"])
