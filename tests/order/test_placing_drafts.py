"""Placing drafts over gRPC, beside the real customer and product services."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest
from google.type.money_pb2 import Money

from commerce.order.v1 import order_pb2
from mesh.errors import Aborted, FailedPrecondition, NotFound, Unavailable
from order_svc.peers import StockPeer
from tests.mesh.house import Buyer, House, all_of
from tests.order.drafts import DRAFT, Stub, add, contents, create, kind, place, set_price, update
from tests.services import new_key, refused


async def test_draft_is_placed_at_the_prices_of_that_moment_and_keeps_its_ids(mesh: House, buyer: Buyer) -> None:
    one, other = await mesh.product(5, units=10), await mesh.product(5, units=20)
    draft = await create(buyer, {one: 2, other: 1})
    await set_price(mesh, one, 15)
    placed = await place(buyer, draft.id, etag="1")
    assert (placed.id, placed.status) == (draft.id, order_pb2.ORDER_STATUS_PENDING)
    assert contents(placed) == [(one, 2, 15), (other, 1, 20)]
    assert placed.total_amount.units == 50
    assert [item.id for item in placed.items] == [item.id for item in draft.items]
    assert placed.payment_method_id == buyer.methods["tok_visa"]
    assert placed.HasField("payment_deadline")
    order = await mesh.decided(buyer, draft.id)
    assert (order.status, list(order.items)) == (order_pb2.ORDER_STATUS_CONFIRMED, list(placed.items))
    assert (await mesh.payment(buyer, draft.id)).amount.units == 50
    assert [(await mesh.unreserved(product)).on_hand for product in (one, other)] == [3, 4]


async def test_draft_is_paid_by_the_method_that_it_names_unless_placing_names_another(mesh: House) -> None:
    buyer, product = await mesh.buyer("tok_visa", "tok_flaky"), await mesh.product(5)
    default, other = buyer.methods["tok_visa"], buyer.methods["tok_flaky"]
    drafts = [await create(buyer, {product: 1}, method=other) for _ in range(2)]
    assert (await place(buyer, drafts[0].id)).payment_method_id == other
    assert (await place(buyer, drafts[1].id, method=default)).payment_method_id == default
    for draft in drafts:
        await mesh.decided(buyer, draft.id)


async def test_retries_of_a_placing_get_its_reply_and_a_second_placing_is_refused(mesh: House, buyer: Buyer) -> None:
    product, key = await mesh.product(5), new_key()
    draft = await create(buyer, {product: 2})
    placed, *others = await asyncio.gather(*(place(buyer, draft.id, etag="1", key=key) for _ in range(8)))
    assert all(other == placed for other in others)
    await mesh.decided(buyer, draft.id)
    assert await place(buyer, draft.id, etag="1", key=key) == placed
    assert kind(await refused(place(buyer, draft.id, key=new_key()))) == (FailedPrecondition, "ORDER_STATE")
    assert (await mesh.unreserved(product)).on_hand == 3


async def test_one_of_several_placings_of_a_draft_at_once_places_it(mesh: House, buyer: Buyer) -> None:
    product = await mesh.product(20)
    draft = await create(buyer, {product: 2})
    results = await asyncio.gather(*(place(buyer, draft.id, key=new_key()) for _ in range(8)), return_exceptions=True)
    placed = [result for result in results if isinstance(result, order_pb2.Order)]
    assert len(placed) == 1, results
    assert {type(result) for result in results} <= {order_pb2.Order, FailedPrecondition, Unavailable}
    assert (await mesh.decided(buyer, draft.id)).status == order_pb2.ORDER_STATUS_CONFIRMED
    assert (await mesh.unreserved(product)).on_hand == 18


async def test_refused_placing_holds_nothing_and_the_draft_can_be_edited_and_placed(mesh: House, buyer: Buyer) -> None:
    product, penniless = await mesh.product(3), await mesh.buyer()
    draft = await create(buyer, {product: 4})
    assert kind(await refused(place(buyer, draft.id))) == (FailedPrecondition, "STOCK_INSUFFICIENT")
    unpaid = await create(penniless, {product: 1})
    assert kind(await refused(place(penniless, unpaid.id))) == (FailedPrecondition, "PAYMENT_METHOD_MISSING")
    assert (await mesh.stock(product)).reserved == 0
    assert (await mesh.read(buyer, draft.id)).status == DRAFT
    await update(buyer, draft.id, draft.items[0].id, 3, etag=draft.etag)
    assert (await place(buyer, draft.id)).status == order_pb2.ORDER_STATUS_PENDING
    assert (await mesh.decided(buyer, draft.id)).status == order_pb2.ORDER_STATUS_CONFIRMED
    assert (await mesh.unreserved(product)).on_hand == 0


async def test_refused_placing_beside_another_leaves_no_hold_on_a_draft_that_can_be_edited(mesh: House) -> None:
    buyer, product = await mesh.buyer("tok_visa"), await mesh.product(100)
    drafts = [await create(buyer, {product: 1}) for _ in range(20)]
    methods = [buyer.methods["tok_visa"], str(uuid4())]
    for draft in drafts:
        await all_of(*(place(buyer, draft.id, method=method) for method in methods))
        methods.reverse()
    for draft in drafts:
        order = await mesh.read(buyer, draft.id)
        if order.status == DRAFT:
            await update(buyer, draft.id, draft.items[0].id, 2)
            query = "SELECT FROM holds WHERE order_id = $1 AND state = 'HELD'"
            assert await mesh.sql("product_svc", query, UUID(draft.id)) == []
            await place(buyer, draft.id)
        order = await mesh.decided(buyer, draft.id)
        assert order.status == order_pb2.ORDER_STATUS_CONFIRMED
    await mesh.unreserved(product)


async def test_empty_cancelled_and_strange_drafts_and_an_old_etag_are_not_placed(mesh: House, buyer: Buyer) -> None:
    stranger, product = await mesh.buyer("tok_visa"), await mesh.product(3)
    empty = await create(buyer)
    assert kind(await refused(place(buyer, empty.id))) == (FailedPrecondition, "ORDER_EMPTY")
    draft = await add(buyer, empty.id, product)
    assert kind(await refused(place(buyer, draft.id, etag="1"))) == (Aborted, "ETAG_MISMATCH")
    assert kind(await refused(place(stranger, draft.id))) == (NotFound, "ORDER_NOT_FOUND")
    assert kind(await refused(place(buyer, str(uuid4())))) == (NotFound, "ORDER_NOT_FOUND")
    assert await mesh.read(buyer, draft.id) == draft
    await mesh.cancel(buyer, draft.id)
    assert kind(await refused(place(buyer, draft.id))) == (FailedPrecondition, "ORDER_STATE")
    assert (await mesh.stock(product)).reserved == 0


async def test_changed_total_is_refused_with_both_amounts_and_nothing_is_held_or_charged(
    mesh: House, buyer: Buyer
) -> None:
    product = await mesh.product(5, units=10)
    draft = await create(buyer, {product: 1})
    await set_price(mesh, product, 15)
    error = await refused(place(buyer, draft.id, expected=10))
    assert kind(error) == (FailedPrecondition, "PRICE_CHANGED")
    assert error.metadata == {"expectedTotal": "10 EUR", "total": "15 EUR"}
    assert (await mesh.stock(product)).reserved == 0
    assert await mesh.sql("product_svc", "SELECT FROM holds WHERE order_id = $1", UUID(draft.id)) == []
    assert await mesh.sql("payment_svc", "SELECT FROM payments WHERE order_id = $1", UUID(draft.id)) == []
    assert (await mesh.read(buyer, draft.id)).status == DRAFT
    assert (await place(buyer, draft.id, expected=15)).total_amount.units == 15
    unasked = await create(buyer, {product: 1})
    await place(buyer, unasked.id)
    for order_id in (draft.id, unasked.id):
        assert (await mesh.decided(buyer, order_id)).status == order_pb2.ORDER_STATUS_CONFIRMED
        assert (await mesh.payment(buyer, order_id)).amount.units == 15


@pytest.mark.parametrize("call", ["a retry", "another call"])
async def test_draft_whose_hold_had_a_lost_reply_is_placed_at_the_prices_of_its_call(
    mesh: House, buyer: Buyer, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    product, key = await mesh.product(2, units=10), new_key()
    draft = await create(buyer, {product: 2})
    reserve = StockPeer.reserve

    async def without_a_reply(*arguments: Any) -> Any:
        await reserve(*arguments)
        raise Unavailable("the reply is lost")

    monkeypatch.setattr(StockPeer, "reserve", without_a_reply)
    assert isinstance(await refused(place(buyer, draft.id, key=key)), Unavailable)
    monkeypatch.undo()
    assert (await mesh.stock(product)).reserved == 2, "the control"
    await set_price(mesh, product, 15)
    placed = await place(buyer, draft.id, key=key if call == "a retry" else new_key())
    assert placed.total_amount.units == (20 if call == "a retry" else 30)
    assert (await mesh.decided(buyer, draft.id)).status == order_pb2.ORDER_STATUS_CONFIRMED
    assert (await mesh.payment(buyer, draft.id)).amount.units == placed.total_amount.units
    assert (await mesh.unreserved(product)).on_hand == 0


async def test_new_order_or_draft_is_refused_unless_its_total_is_the_expected_one(mesh: House, buyer: Buyer) -> None:
    product, free, penniless = await mesh.product(5, units=10), await mesh.product(5, units=0), await mesh.buyer()

    async def order(who: Buyer, ordered: str, expected: Money, *, draft: bool = False) -> order_pb2.Order:
        request = order_pb2.CreateOrderRequest(
            items=[order_pb2.OrderLine(product_id=ordered, quantity=2)], expected_total=expected, draft=draft
        )
        made: order_pb2.Order = (await who.orders(Stub(who.orders.channel).CreateOrder, request, key=new_key())).order
        return made

    for draft in (True, False):
        for wrong in (Money(currency_code="EUR", units=19, nanos=990_000_000), Money(currency_code="USD", units=20)):
            error = await refused(order(buyer, product, wrong, draft=draft))
            assert kind(error) == (FailedPrecondition, "PRICE_CHANGED")
            assert error.metadata["total"] == "20 EUR"
    right = Money(currency_code="EUR", units=20)
    assert (await order(buyer, product, right, draft=True)).total_amount == right
    placed = await order(buyer, product, right)
    assert placed.total_amount == right
    await mesh.decided(buyer, placed.id)
    assert (await mesh.unreserved(product)).on_hand == 3
    # Without a payment method.
    error = await refused(order(penniless, product, Money(currency_code="EUR", units=20)))
    assert kind(error) == (FailedPrecondition, "PAYMENT_METHOD_MISSING")
    error = await refused(order(penniless, product, Money(currency_code="EUR")))
    assert kind(error) == (FailedPrecondition, "PRICE_CHANGED")
    assert (await order(penniless, free, Money(currency_code="EUR"))).status == order_pb2.ORDER_STATUS_PENDING
    assert len(await mesh.sql("product_svc", "SELECT FROM holds WHERE customer_id = $1", UUID(penniless.id))) == 1
