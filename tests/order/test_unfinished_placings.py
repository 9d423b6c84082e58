"""Placings of drafts whose outcome is not known, and those that meet another change."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from commerce.order.v1 import order_pb2
from mesh.db.database import Database
from mesh.db.idempotency import IdempotencyKey, IdempotencyKeyReused
from mesh.errors import FailedPrecondition, MeshError, StaleWrite, Unavailable
from mesh.rpc.call import Call, Caller, Kind
from mesh.rpc.replies import Change, Reply
from order_svc import wire
from order_svc.domain import (
    CancelReason,
    CurrencyNotSupported,
    HoldDecision,
    HoldRequest,
    Order,
    OrderRequest,
    OrderState,
    Status,
    Total,
)
from order_svc.usecases import Placing
from tests.order.process import OrderProcess, Reserved, Stock, Wallets, placing, process_of
from tests.services import new_key

DAY = timedelta(days=1)


def change_of(customer: UUID) -> Change[Order]:
    """A change that a customer asks for, without a key."""
    call = Call("PlaceOrder", caller=Caller(Kind.CUSTOMER, str(customer)))
    return Change(call, lambda order: order_pb2.PlaceOrderResponse(order=wire.order(order)))


def keyed(customer: UUID, order_id: UUID, key: str) -> Change[Order]:
    """A placing of a draft with an idempotency key."""
    caller = Caller(Kind.CUSTOMER, str(customer))
    request = order_pb2.PlaceOrderRequest(order_id=str(order_id))
    call = Call("PlaceOrder", caller=caller, key=IdempotencyKey.of(key, caller, "PlaceOrder", request))
    return Change(call, lambda order: order_pb2.PlaceOrderResponse(order=wire.order(order)))


async def draft_of(process: OrderProcess, customer: UUID) -> Order:
    """A draft with one item."""
    return (await process.drafts.create_draft(change_of(customer), OrderRequest({uuid4(): 2}))).value


async def read(process: OrderProcess, order_id: UUID) -> Order:
    """An order as it is now."""
    async with process.database.reading() as reading:
        return (await process.orders.read(reading, [order_id]))[order_id]


async def unfinished(process: OrderProcess, stock: Stock, customer: UUID) -> Order:
    """A draft whose placing has begun, and nobody knows whether its stock is held."""
    draft = await draft_of(process, customer)

    async def silent() -> Reserved:
        raise Unavailable("no answer")

    stock.instead = silent
    with pytest.raises(Unavailable):
        await process.placement.place_draft(change_of(customer), draft.id, OrderRequest({}), etag="1")
    stock.instead = None
    return await read(process, draft.id)


async def test_draft_that_may_hold_stock_is_not_edited_and_is_placed_by_a_retry(database: Database) -> None:
    stock, customer = Stock(), uuid4()
    process = process_of(database, stock)
    draft = await unfinished(process, stock, customer)
    assert draft.status is Status.PLACING
    assert wire.order(draft).status == order_pb2.ORDER_STATUS_DRAFT
    with pytest.raises(OrderState) as refusal:
        await process.drafts.remove_item(change_of(customer), draft.id, item_id=draft.items[0].id, etag="")
    assert refusal.value.metadata["status"] == "ORDER_STATUS_DRAFT"
    call = Call("ListOrders", caller=Caller(Kind.CUSTOMER, str(customer)))
    listed, _ = await process.reading.list_orders(
        call, customer_id=None, status=Status.DRAFT, page_size=10, page_token=""
    )
    assert listed == [draft]
    # A refusal now does not prove that the attempt before holds nothing.
    stock.instead = stock_insufficient
    with pytest.raises(FailedPrecondition, match="nothing left"):
        await process.placement.place_draft(change_of(customer), draft.id, OrderRequest({}), etag="1")
    assert await read(process, draft.id) == draft
    stock.instead = None
    placed = (await process.placement.place_draft(change_of(customer), draft.id, OrderRequest({}), etag="1")).value
    assert (placed.id, placed.status) == (draft.id, Status.PENDING)
    assert await read(process, draft.id) == placed


@pytest.mark.parametrize("second", ["held", "refused", "not known"])
async def test_draft_can_be_edited_when_its_last_open_placing_is_refused_and_not_before(
    database: Database, second: str
) -> None:
    here, there, customer = Stock(), Stock(), uuid4()
    process, other = process_of(database, here), process_of(database, there)
    draft = await draft_of(process, customer)
    there.instead, reserve = stock_insufficient, here.reserve

    async def edited() -> Order:
        change, item_id = change_of(customer), draft.items[0].id
        return (await process.drafts.change_quantity(change, draft.id, item_id=item_id, quantity=7, etag="1")).value

    async def refused_beside(*arguments: Any) -> Reserved:
        # Another placing begins and is refused while this one is under way.
        with pytest.raises(FailedPrecondition, match="nothing left"):
            await other.placement.place_draft(change_of(customer), draft.id, OrderRequest({}), etag="1")
        with pytest.raises(OrderState):
            await edited()
        if second == "not known":
            raise Unavailable("no answer")
        return await (reserve(*arguments) if second == "held" else stock_insufficient())

    here.reserve = refused_beside  # type: ignore[assignment, method-assign]
    placing = process.placement.place_draft(change_of(customer), draft.id, OrderRequest({}), etag="1")
    if second == "held":
        assert (await placing).value.status is Status.PENDING
        return
    with pytest.raises(MeshError):
        await placing
    if second == "refused":
        assert (await edited()).items[0].quantity == 7
    else:
        with pytest.raises(OrderState):
            await edited()


async def test_draft_whose_hold_is_not_used_is_not_edited(database: Database) -> None:
    stock, customer, key = Stock(), uuid4(), new_key()
    process = process_of(database, stock)
    used, draft = await draft_of(process, customer), await draft_of(process, customer)

    await process_of(database).placement.place_draft(keyed(customer, used.id, key), used.id, OrderRequest({}), etag="")
    with pytest.raises(IdempotencyKeyReused):
        await process.placement.place_draft(keyed(customer, draft.id, key), draft.id, OrderRequest({}), etag="")
    assert stock.asked == [1]
    assert (await read(process, draft.id)).status is Status.PLACING
    placed = await process.placement.place_draft(change_of(customer), draft.id, OrderRequest({}), etag="1")
    assert placed.value.status is Status.PENDING


async def test_draft_can_be_edited_after_a_placing_that_failed_before_its_hold(database: Database) -> None:
    stock, wallets, customer = Stock(), Wallets(), uuid4()
    process = process_of(database, stock, wallets=wallets)
    draft = await draft_of(process, customer)
    wallets.failure = Unavailable("no answer")
    with pytest.raises(Unavailable):
        await process.placement.place_draft(change_of(customer), draft.id, OrderRequest({}), etag="1")
    assert stock.asked == []
    edited = await process.drafts.change_quantity(
        change_of(customer), draft.id, item_id=draft.items[0].id, quantity=7, etag="1"
    )
    assert edited.value.items[0].quantity == 7


async def stock_insufficient() -> Reserved:
    """No hold."""
    return [FailedPrecondition("nothing left", reason="STOCK_INSUFFICIENT")]


async def test_retries_of_a_placing_ask_for_its_hold_and_other_calls_for_one_of_their_own(database: Database) -> None:
    stock, customer, key = Stock(), uuid4(), new_key()
    process = process_of(database, stock)
    drafts = [await draft_of(process, customer) for _ in range(2)]
    asked, reserve = list[tuple[UUID, bytes]](), stock.reserve

    async def noted(wanted: Sequence[HoldRequest], *arguments: Any) -> Reserved:
        asked.extend((each.order_id, each.key) for each in wanted)
        await reserve(wanted, *arguments)
        raise Unavailable("no answer")

    stock.reserve = noted  # type: ignore[assignment, method-assign]
    for draft, change in (
        (drafts[0], keyed(customer, drafts[0].id, key)),
        (drafts[0], keyed(customer, drafts[0].id, key)),
        (drafts[0], keyed(customer, drafts[0].id, new_key())),
        (drafts[0], change_of(customer)),
        (drafts[1], keyed(customer, drafts[1].id, key)),
    ):
        with pytest.raises(Unavailable):
            await process.placement.place_draft(change, draft.id, OrderRequest({}), etag="")
    assert [order_id for order_id, _ in asked] == [drafts[0].id] * 4 + [drafts[1].id]
    first, retry, *others = (hold_key for _, hold_key in asked)
    assert first == retry
    assert len({first, *others}) == 4


async def test_hold_of_a_draft_is_kept_until_the_draft_is_cancelled(database: Database) -> None:
    stock, customer = Stock(), uuid4()
    process = process_of(database, stock)
    draft, placing_one = await draft_of(process, customer), await unfinished(process, stock, customer)
    ids = [draft.id, placing_one.id]
    assert set((await process.holds.resolve_holds(ids)).values()) == {HoldDecision.KEEP}
    for order_id in ids:
        cancelled = (await process.cancellation.cancel_order(change_of(customer), order_id, note="", etag="")).value
        assert cancelled.status is Status.CANCELLED
    assert set((await process.holds.resolve_holds(ids)).values()) == {HoldDecision.RELEASE}


async def test_draft_cancelled_while_it_is_placed_stays_cancelled_and_others_of_the_batch_are_placed(
    database: Database,
) -> None:
    stock, customer = Stock(), uuid4()
    process, there = process_of(database, stock), process_of(database)
    draft = await unfinished(process, stock, customer)
    wanted = Placing(change_of(customer), customer, draft.complete(OrderRequest({})), draft)
    other = placing(uuid4(), new_key(), {uuid4(): 1})
    reserve = stock.reserve

    async def cancelled_meanwhile(*arguments: Any) -> Reserved:
        await there.cancellation.cancel_order(change_of(customer), draft.id, note="", etag="")
        return await reserve(*arguments)

    stock.reserve = cancelled_meanwhile  # type: ignore[assignment, method-assign]
    failed, placed = await process.place(wanted, other)
    assert stock.asked[-1] == 2, "both in one batch"
    assert isinstance(failed, StaleWrite)
    assert isinstance(placed, Reply)
    assert (await read(process, draft.id)).status is Status.CANCELLED
    assert (await read(process, other.order_id)).status is Status.PENDING
    await process.unused_holds.idle()
    assert stock.released == [], "the event of the cancelled draft releases its hold"


async def test_two_placings_of_one_draft_in_a_batch_place_it_once(database: Database) -> None:
    stock, customer = Stock(), uuid4()
    process = process_of(database, stock)
    draft = await unfinished(process, stock, customer)
    wanted = [Placing(change_of(customer), customer, draft.complete(OrderRequest({})), draft) for _ in range(2)]
    placed, failed = await process.place(*wanted)
    assert stock.asked[-1] == 2, "both in one batch"
    assert isinstance(failed, StaleWrite)
    assert isinstance(placed, Reply)
    assert await read(process, draft.id) == placed.value
    connection = await asyncpg.connect(database.url)
    types = await connection.fetch("SELECT type FROM mesh.outbox WHERE aggregate_id = $1", draft.id)
    await connection.close()
    assert [row["type"] for row in types] == ["commerce.order.placed"]


async def test_placing_unfinished_for_a_day_is_cancelled_with_an_event(database: Database) -> None:
    stock, customer = Stock(), uuid4()
    process = process_of(database, stock)
    old, young = [await unfinished(process, stock, customer) for _ in range(2)]
    connection = await asyncpg.connect(database.url)
    for order_id, age in ((old.id, DAY + timedelta(minutes=1)), (young.id, DAY - timedelta(minutes=1))):
        await connection.execute("UPDATE orders SET update_time = now() - $2::interval WHERE id = $1", order_id, age)
    assert await process.cancellation.cancel_unfinished(DAY) is False
    found = await read(process, old.id)
    assert (found.status, found.cancel_reason) == (Status.CANCELLED, CancelReason.DRAFT_EXPIRED)
    assert (await read(process, young.id)).status is Status.PLACING
    types = await connection.fetch("SELECT type FROM mesh.outbox WHERE aggregate_id = ANY($1)", [old.id, young.id])
    await connection.close()
    assert [row["type"] for row in types] == ["commerce.order.cancelled"]


async def test_drafts_and_new_orders_are_placed_in_one_batch(database: Database) -> None:
    stock, customer = Stock(), uuid4()
    process = process_of(database, stock)
    drafts = [await unfinished(process, stock, customer) for _ in range(3)]
    batch = [Placing(change_of(customer), customer, each.complete(OrderRequest({})), each) for each in drafts] + [
        placing(uuid4(), new_key(), {uuid4(): 1})
    ]
    stock.price = Decimal(11)
    results = await process.place(*batch)
    assert stock.asked[-1] == 4, "all in one batch"
    for wanted, result in zip(batch, results, strict=True):
        assert isinstance(result, Reply)
        order = await read(process, wanted.order_id)
        assert order == result.value
        assert order.status is Status.PENDING
        assert [item.unit_price for item in order.items] == [Decimal(11)]


async def test_currency_that_the_provider_does_not_take_is_refused_before_the_hold_if_it_is_known(
    database: Database,
) -> None:
    stock, customer = Stock(), uuid4()
    process = process_of(database, stock, wallets=Wallets(currencies=["USD", "JPY"]))
    draft = await draft_of(process, customer)
    with pytest.raises(CurrencyNotSupported):
        await process.placement.place_draft(change_of(customer), draft.id, OrderRequest({}), etag="")
    wanted = OrderRequest({uuid4(): 1}, expected_total=Total(Decimal(10), "EUR"))
    with pytest.raises(CurrencyNotSupported):
        await process.placement.place(change_of(customer), wanted)
    assert stock.asked == []
    # The draft can be edited.
    assert (await read(process, draft.id)).status is Status.DRAFT
    await process.drafts.remove_item(change_of(customer), draft.id, item_id=draft.items[0].id, etag=str(draft.version))
