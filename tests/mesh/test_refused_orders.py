"""Orders that are refused, most of them before any stock is held for them."""

from __future__ import annotations

from uuid import UUID

import pytest

from commerce.order.v1 import order_pb2
from mesh.errors import Violation
from tests.mesh.house import Buyer, House
from tests.services import refused


async def traces(mesh: House, buyer: Buyer) -> tuple[int, int]:
    """How many holds were ever made for a customer, and how many ids of orders were ever given up."""
    holds = await mesh.sql("product_svc", "SELECT FROM holds WHERE customer_id = $1", UUID(buyer.id))
    return len(holds), len(await mesh.sql("order_svc", "SELECT FROM orders WHERE status = 'ABANDONED'"))


@pytest.mark.parametrize("known", [True, False])
async def test_order_in_two_currencies_is_refused_before_anything_is_held(mesh: House, known: bool) -> None:
    buyer, other = await mesh.buyer("tok_visa"), await mesh.buyer("tok_visa")
    euros, dollars = await mesh.product(5), await mesh.product(5, currency="USD")
    if known:
        for product in (euros, dollars):
            await mesh.order(other, {product: 1})
    _, given_up = await traces(mesh, buyer)
    error = await refused(mesh.order(buyer, {euros: 1, dollars: 1}))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "CURRENCY_MISMATCH")
    assert error.message == "one order, one currency: these products are sold in EUR, USD"
    assert error.metadata == {"currencies": "EUR,USD"}
    assert error.violations == (Violation("items", "are sold in different currencies"),)
    assert await traces(mesh, buyer) == (0, given_up)


async def test_order_whose_total_is_too_large_is_refused_before_anything_is_held(mesh: House) -> None:
    buyer, product, cheap = await mesh.buyer("tok_visa"), await mesh.product(100_000), await mesh.product(1, units=1)
    # More than the contract allows for a price, so that a hundred lines of ten thousand need not be made.
    await mesh.sql(
        "product_svc",
        "UPDATE products SET price = 99999999999.9999, version = version + 1 WHERE id = $1",
        UUID(product),
    )
    _, given_up = await traces(mesh, buyer)
    error = await refused(mesh.order(buyer, {product: 10_000, cheap: 1}))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "VALIDATION_FAILED")
    assert error.violations == (Violation("items", "come to 1000000000000000 EUR: must be at most 999999999999999"),)
    assert await traces(mesh, buyer) == (0, given_up)

    placed = await mesh.order(buyer, {product: 10_000})
    assert (placed.total_amount.units, placed.total_amount.nanos) == (999_999_999_999_999, 0)
    await mesh.decided(buyer, placed.id)
    assert (await mesh.payment(buyer, placed.id)).amount == placed.total_amount


async def test_order_in_a_currency_that_the_provider_does_not_take_is_refused_and_holds_nothing(mesh: House) -> None:
    buyer, francs, free = (
        await mesh.buyer("tok_visa"),
        await mesh.product(5, currency="XPF"),
        await mesh.product(5, units=0, currency="XPF"),
    )
    error = await refused(mesh.order(buyer, {francs: 1}))
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "CURRENCY_NOT_SUPPORTED")
    assert error.metadata == {"provider": "sandbox", "currency": "XPF"}
    assert (await mesh.unreserved(francs)).on_hand == 5
    # No provider hears of an order that costs nothing.
    placed = await mesh.order(buyer, {free: 1})
    assert (await mesh.decided(buyer, placed.id)).status == order_pb2.ORDER_STATUS_CONFIRMED
