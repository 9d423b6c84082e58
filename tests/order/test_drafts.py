"""Drafts over gRPC, beside the real customer and product services."""

from __future__ import annotations

from uuid import UUID, uuid4

from commerce.order.v1 import events_pb2, order_pb2
from mesh.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound
from tests.mesh.house import Buyer, House
from tests.order.drafts import DRAFT, Stub, add, archive, contents, create, kind, remove, set_price, update
from tests.services import new_key, refused


async def test_draft_merges_lines_shows_current_prices_and_holds_nothing(mesh: House, buyer: Buyer) -> None:
    one, other = await mesh.product(5, units=10), await mesh.product(0, units=20)
    draft = await create(buyer, [(one, 1), (other, 2), (one, 3)])
    assert (draft.status, draft.etag, draft.customer_id) == (DRAFT, "1", buyer.id)
    assert contents(draft) == [(one, 4, 10), (other, 2, 20)]
    assert (draft.total_amount.units, draft.total_amount.currency_code) == (80, "EUR")
    assert not draft.HasField("payment_deadline")
    assert draft.payment_method_id == ""
    assert await mesh.read(buyer, draft.id) == draft
    assert (await mesh.stock(one)).reserved == 0
    assert await mesh.sql("order_svc", "SELECT FROM mesh.outbox WHERE aggregate_id = $1", UUID(draft.id)) == []


async def test_empty_draft_has_no_total_until_an_item_is_added(mesh: House, buyer: Buyer) -> None:
    product = await mesh.product(5, units=10)
    draft = await create(buyer, method=buyer.methods["tok_visa"])
    assert (list(draft.items), draft.HasField("total_amount")) == ([], False)
    assert draft.payment_method_id == buyer.methods["tok_visa"]
    assert await mesh.read(buyer, draft.id) == draft
    filled = await add(buyer, draft.id, product, 2)
    assert (contents(filled), filled.total_amount.units) == ([(product, 2, 10)], 20)
    emptied = await remove(buyer, draft.id, filled.items[0].id)
    assert (list(emptied.items), emptied.HasField("total_amount"), emptied.etag) == ([], False, "3")
    assert await mesh.read(buyer, draft.id) == emptied


async def test_draft_shows_the_prices_of_its_last_change(mesh: House, buyer: Buyer) -> None:
    one, other, last = await mesh.product(5, units=10), await mesh.product(5, units=20), await mesh.product(5, units=1)
    draft = await create(buyer, {one: 1, other: 1})
    await set_price(mesh, one, 15)
    await set_price(mesh, other, 25)
    assert await mesh.read(buyer, draft.id) == draft
    more = await add(buyer, draft.id, one, 2)
    assert (contents(more), more.total_amount.units) == ([(one, 3, 15), (other, 1, 25)], 70)
    assert [item.id for item in more.items] == [item.id for item in draft.items]
    await set_price(mesh, other, 30)
    changed = await update(buyer, draft.id, draft.items[0].id, 2)
    assert (contents(changed), changed.total_amount.units) == ([(one, 2, 15), (other, 1, 30)], 60)
    await archive(mesh, other)
    await set_price(mesh, other, 99)
    added = await add(buyer, draft.id, last)
    assert contents(added) == [(one, 2, 15), (other, 1, 30), (last, 1, 1)], "what is no longer sold keeps its price"
    await set_price(mesh, last, 2)
    removed = await remove(buyer, draft.id, draft.items[0].id)
    assert (contents(removed), removed.total_amount.units) == ([(other, 1, 30), (last, 1, 2)], 32)
    assert await mesh.read(buyer, draft.id) == removed


async def test_cancelled_draft_is_cancelled_at_once_with_an_event_and_cannot_be_edited(
    mesh: House, buyer: Buyer
) -> None:
    product = await mesh.product(5)
    draft = await create(buyer, {product: 1})
    cancelled = await mesh.cancel(buyer, draft.id)
    assert (cancelled.status, cancelled.etag) == (order_pb2.ORDER_STATUS_CANCELLED, "2")
    assert (cancelled.cancel_reason, cancelled.cancel_note) == (
        order_pb2.CANCEL_REASON_CUSTOMER_REQUEST,
        "changed my mind",
    )
    (row,) = await mesh.sql("order_svc", "SELECT type, payload FROM mesh.outbox WHERE aggregate_id = $1", draft.id)
    assert row["type"] == "commerce.order.cancelled"
    event = events_pb2.OrderCancelled.FromString(row["payload"]).order
    assert event.cancel_note == "", "events say nothing that a person has written"
    event.cancel_note = cancelled.cancel_note
    assert event == cancelled
    assert await mesh.cancel(buyer, draft.id) == cancelled
    for edit in (
        add(buyer, draft.id, product),
        update(buyer, draft.id, draft.items[0].id, 2),
        remove(buyer, draft.id, draft.items[0].id),
    ):
        error = await refused(edit)
        assert kind(error) == (FailedPrecondition, "ORDER_STATE")
        assert error.metadata["status"] == "ORDER_STATUS_CANCELLED"


async def test_placed_order_cannot_be_edited(mesh: House, buyer: Buyer) -> None:
    product = await mesh.product(5)
    placed = await mesh.order(buyer, {product: 1})
    assert kind(await refused(add(buyer, placed.id, product))) == (FailedPrecondition, "ORDER_STATE")
    await mesh.decided(buyer, placed.id)


async def test_draft_is_listed_for_its_customer_and_unknown_to_strangers(mesh: House, buyer: Buyer) -> None:
    stranger, product = await mesh.buyer(), await mesh.product(5)
    draft = await create(buyer, {product: 1})
    listing = Stub(buyer.orders.channel).ListOrders
    for request in (order_pb2.ListOrdersRequest(), order_pb2.ListOrdersRequest(status=DRAFT)):
        assert list((await buyer.orders(listing, request)).orders) == [draft]
        assert list((await stranger.orders(listing, request)).orders) == []
    for attempt in (
        mesh.read(stranger, draft.id),
        add(stranger, draft.id, product),
        # Not that the product is unknown: a stranger learns nothing of an order.
        add(stranger, draft.id, str(uuid4())),
        update(stranger, draft.id, draft.items[0].id, 2),
        remove(stranger, draft.id, draft.items[0].id),
        mesh.cancel(stranger, draft.id),
    ):
        assert kind(await refused(attempt)) == (NotFound, "ORDER_NOT_FOUND")
    assert await mesh.read(buyer, draft.id) == draft


async def test_retry_of_an_edit_gets_its_first_reply_even_when_the_product_is_archived_since(
    mesh: House, buyer: Buyer
) -> None:
    product, keys = await mesh.product(5), [new_key() for _ in range(4)]
    draft = await create(buyer, {product: 1}, key=keys[0])
    added = await add(buyer, draft.id, product, key=keys[1])
    changed = await update(buyer, draft.id, draft.items[0].id, 9, key=keys[2])
    removed = await remove(buyer, draft.id, draft.items[0].id, key=keys[3])
    await archive(mesh, product)
    assert await create(buyer, {product: 1}, key=keys[0]) == draft
    assert await add(buyer, draft.id, product, key=keys[1]) == added
    assert await update(buyer, draft.id, draft.items[0].id, 9, key=keys[2]) == changed
    assert await remove(buyer, draft.id, draft.items[0].id, key=keys[3]) == removed
    assert await mesh.read(buyer, draft.id) == removed


async def test_archived_and_unknown_products_and_a_second_currency_are_refused(mesh: House, buyer: Buyer) -> None:
    euros, dollars, archived = await mesh.product(5), await mesh.product(5, currency="USD"), await mesh.product(5)
    unknown = str(uuid4())
    await archive(mesh, archived)
    draft = await create(buyer, {euros: 1})
    refusals = {
        archived: (FailedPrecondition, "PRODUCT_ARCHIVED"),
        unknown: (NotFound, "PRODUCT_NOT_FOUND"),
        dollars: (InvalidArgument, "CURRENCY_MISMATCH"),
    }
    for product, refusal in refusals.items():
        assert kind(await refused(create(buyer, {euros: 1, product: 1}))) == refusal
        assert kind(await refused(add(buyer, draft.id, product))) == refusal
    assert await mesh.read(buyer, draft.id) == draft


async def test_unknown_payment_method_item_and_old_etag_are_refused(mesh: House, buyer: Buyer) -> None:
    product = await mesh.product(5)
    error = await refused(create(buyer, method=str(uuid4())))
    assert kind(error) == (NotFound, "PAYMENT_METHOD_NOT_FOUND")
    draft = await create(buyer, {product: 1})
    item_id = draft.items[0].id
    for edit in (update(buyer, draft.id, str(uuid4()), 2), remove(buyer, draft.id, str(uuid4()))):
        assert kind(await refused(edit)) == (NotFound, "ORDER_ITEM_NOT_FOUND")
    assert (await add(buyer, draft.id, product, etag="1")).etag == "2"
    for edit in (
        add(buyer, draft.id, product, etag="1"),
        update(buyer, draft.id, item_id, 5, etag="1"),
        remove(buyer, draft.id, item_id, etag="1"),
    ):
        assert kind(await refused(edit)) == (Aborted, "ETAG_MISMATCH")


async def test_draft_has_at_most_100_items_10_000_of_each_and_a_total_below_10_to_the_15(
    mesh: House, buyer: Buyer
) -> None:
    products = [await mesh.product(0) for _ in range(101)]
    full = await create(buyer, dict.fromkeys(products[:100], 1))
    error = await refused(add(buyer, full.id, products[100]))
    assert kind(error) == (InvalidArgument, "VALIDATION_FAILED")
    assert [each.field for each in error.violations] == ["items"]
    assert (await add(buyer, full.id, products[0], 9_999)).items[0].quantity == 10_000
    assert kind(await refused(add(buyer, full.id, products[0]))) == (InvalidArgument, "VALIDATION_FAILED")
    dear = await mesh.product(0, units=10**14)
    draft = await create(buyer, {dear: 9})
    assert kind(await refused(add(buyer, draft.id, dear))) == (InvalidArgument, "VALIDATION_FAILED")
    assert kind(await refused(update(buyer, draft.id, draft.items[0].id, 10))) == (InvalidArgument, "VALIDATION_FAILED")
    assert await mesh.read(buyer, draft.id) == draft


async def test_staff_create_drafts_for_a_customer_they_name_and_customers_only_for_themselves(
    mesh: House, buyer: Buyer
) -> None:
    staff, stranger = mesh.staff["order"], await mesh.buyer()
    method = Stub(staff.channel).CreateOrder
    request = order_pb2.CreateOrderRequest(draft=True, customer_id=buyer.id)
    draft = (await staff(method, request)).order
    assert await mesh.read(buyer, draft.id) == draft
    assert kind(await refused(stranger.orders(method, request))) == (NotFound, "CUSTOMER_NOT_FOUND")
    unknown = order_pb2.CreateOrderRequest(draft=True, customer_id=str(uuid4()))
    assert kind(await refused(staff(method, unknown))) == (NotFound, "CUSTOMER_NOT_FOUND")
    error = await refused(staff(method, order_pb2.CreateOrderRequest(draft=True)))
    assert kind(error) == (InvalidArgument, "VALIDATION_FAILED")
    assert [each.field for each in error.violations] == ["customer_id"]
