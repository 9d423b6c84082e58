"""Prices change while orders are placed: each order is charged what it shows."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import cycle

from google.type.money_pb2 import Money

from commerce.order.v1 import order_pb2
from commerce.payment.v1 import payment_pb2
from commerce.product.v1 import product_pb2, product_pb2_grpc
from mesh.rpc import wire
from tests.mesh.house import House
from tests.services import new_key

ORDERS = 60
AT_ONCE = 8


async def test_orders_that_race_price_changes_are_charged_their_totals(mesh: House) -> None:
    buyer, product = await mesh.buyer("tok_visa"), await mesh.product(2 * (ORDERS + AT_ONCE), units=1)
    staff = mesh.staff["product"]
    stub = product_pb2_grpc.ProductServiceStub(staff.channel)

    async def change_price(units: int) -> None:
        price = Money(currency_code="EUR", units=units)
        request = product_pb2.UpdateProductRequest(product=product_pb2.Product(id=product, price=price))
        await staff(stub.UpdateProduct, request, key=new_key())

    async def keep_changing() -> None:
        for units in cycle(range(1, 10)):
            await change_price(units)

    orders: list[order_pb2.Order] = []

    async def place() -> None:
        while len(orders) < ORDERS:
            orders.append(await mesh.order(buyer, {product: 2}, key=new_key()))

    changing = asyncio.create_task(keep_changing())
    await asyncio.gather(*(place() for _ in range(AT_ONCE)))
    changing.cancel()
    with suppress(asyncio.CancelledError):
        await changing
    assert len({order.total_amount.units for order in orders}) > 1, "prices changed in between"

    for placed in orders:
        order = await mesh.decided(buyer, placed.id)
        assert order.status == order_pb2.ORDER_STATUS_CONFIRMED
        (item,) = order.items
        assert wire.amount(order.total_amount) == wire.amount(item.line_total) == 2 * wire.amount(item.unit_price)
        payment = await mesh.payment(buyer, order.id)
        assert payment.status == payment_pb2.PAYMENT_STATUS_CAPTURED
        assert payment.amount == order.total_amount == placed.total_amount
