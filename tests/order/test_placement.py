"""Placing orders: retries, duplicates, failures of other services, and holds that no order uses."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from uuid import UUID, uuid4

import asyncpg
import pytest
import sqlalchemy as sa
from google.type.money_pb2 import Money

from commerce.order.v1 import events_pb2
from mesh.db.database import Database, Statement
from mesh.db.idempotency import IdempotencyKeyReused, Replay
from mesh.errors import DeadlineExceeded, FailedPrecondition, Internal, MeshError, ResourceExhausted, Unavailable
from mesh.rpc.replies import Reply
from order_svc.domain import CurrencyNotSupported, HeldLine, Hold, Order, PaymentMethodMissing, Status
from order_svc.store.tables import orders
from tests.order.process import Reserved, Stock, Wallets, message_of, placing, process_of, replayed
from tests.services import TEST_TIMEOUT_S, eventually, new_key

ORDERS = Statement(sa.select(orders.c.id).where(orders.c.status != Status.ABANDONED.value))
SOLD_OUT = FailedPrecondition("nothing left", reason="STOCK_INSUFFICIENT")


async def count(database: Database) -> int:
    """Orders that were placed."""
    async with database.reading() as reading:
        return len(await reading.fetch(ORDERS))


async def test_retry_whose_hold_is_refused_gets_the_order_of_its_first_attempt(
    database: Database,
) -> None:
    customer, key, product = uuid4(), new_key(), uuid4()
    here, there = Stock(), Stock()
    first, retry = (placing(customer, key, {product: 1}) for _ in range(2))
    placed: list[Reply[Order] | BaseException] = []

    async def commit_the_first() -> Reserved:
        # The other process commits the first attempt, whose hold is sold at once: nothing to adopt, nothing left.
        placed.extend(await process_of(database, there).place(first))
        return [SOLD_OUT]

    here.instead = commit_the_first
    (result,) = await process_of(database, here).place(retry)
    assert replayed(result) == message_of(placed[0])


@pytest.mark.parametrize("hold", ["adopted", "one of its own"])
async def test_retry_whose_first_attempt_commits_meanwhile_gets_its_order(database: Database, hold: str) -> None:
    customer, key, product, before = uuid4(), new_key(), uuid4(), await count(database)
    here, there = Stock(), Stock()
    first, retry = (placing(customer, key, {product: 1}) for _ in range(2))
    other = placing(uuid4(), new_key(), {product: 1})
    placed: list[Reply[Order] | BaseException] = []

    async def commit_the_first() -> Reserved:
        placed.extend(await process_of(database, there).place(first))
        held_by = first if hold == "adopted" else retry
        return [
            Hold(each.order_id, (HeldLine(product, "SKU", "A thing", 1, Decimal(10), "EUR"),))
            for each in (other, held_by)
        ]

    here.instead, process = commit_the_first, process_of(database, here)
    results = await process.place(other, retry)
    assert isinstance(results[0], Reply)
    assert replayed(results[1]) == message_of(placed[0])
    assert await count(database) == before + 2
    await process.unused_holds.idle()
    assert here.released == ([] if hold == "adopted" else [retry.order_id])


async def test_only_a_refused_order_costs_a_statement_to_find_a_stored_reply(database: Database) -> None:
    stock = Stock()
    process, before = process_of(database, stock), database.statements
    await process.place(placing(uuid4(), new_key(), {uuid4(): 1}))
    accepted = database.statements - before

    async def sold_out() -> Reserved:
        return [SOLD_OUT]

    stock.instead, before = sold_out, database.statements
    assert await process.place(placing(uuid4(), new_key(), {uuid4(): 1})) == [SOLD_OUT]
    assert database.statements - before == 1, "the stored replies"
    assert accepted == 1, "all that is written in one"


async def test_duplicates_in_one_batch_are_placed_once(database: Database) -> None:
    customer, key, product, stock = uuid4(), new_key(), uuid4(), Stock()
    process, orders_before, before = process_of(database, stock), await count(database), database.statements
    batch = [placing(customer, key, {product: 1}) for _ in range(199)] + [placing(customer, key, {product: 2})]
    results = await process.place(*batch)
    assert stock.asked == [1]
    assert database.statements - before == 1
    assert await count(database) == orders_before + 1
    first, *duplicates, other = results
    assert isinstance(other, IdempotencyKeyReused)
    for duplicate in duplicates:
        assert replayed(duplicate) == message_of(first)

    again, before = [placing(customer, key, {product: 2}), placing(customer, key, {product: 1})], database.statements
    assert [type(each) for each in await process.place(*again)] == [IdempotencyKeyReused, Replay]
    assert database.statements - before == 1, "the stored replies"
    assert stock.asked == [1], "the process knows the key"


@pytest.mark.parametrize("same", [True, False])
async def test_retry_in_another_process_changes_nothing(database: Database, same: bool) -> None:
    customer, key, product, here = uuid4(), new_key(), uuid4(), Stock()
    (first,) = await process_of(database, Stock()).place(placing(customer, key, {product: 1}))
    process, before = process_of(database, here), await count(database)
    other, retry = placing(uuid4(), new_key(), {product: 1}), placing(customer, key, {product: 1 if same else 2})
    results = await process.place(other, retry)
    assert isinstance(results[0], Reply), "the order beside it is placed"
    if same:
        assert replayed(results[1]) == message_of(first)
    else:
        assert isinstance(results[1], IdempotencyKeyReused)
    assert await count(database) == before + 1
    assert here.asked == [2]
    await process.unused_holds.idle()
    assert here.released == [retry.order_id], "the hold of the first attempt is sold, so the retry made its own"


async def test_retry_whose_products_now_differ_in_currency_gets_its_order(
    database: Database,
) -> None:
    customer, key, products = uuid4(), new_key(), {uuid4(): 1, uuid4(): 1}
    euros, mixed = Stock(currencies=("EUR", "EUR")), Stock(currencies=("EUR", "USD"))
    (first,) = await process_of(database, euros).place(placing(customer, key, products))
    retry = placing(customer, key, products)
    process = process_of(database, mixed)
    (result,) = await process.place(retry)
    assert replayed(result) == message_of(first)
    await process.unused_holds.idle()
    assert mixed.released == [retry.order_id]


async def test_duplicates_of_a_refused_call_are_refused(database: Database) -> None:
    stock = Stock()

    async def sold_out() -> Reserved:
        return [SOLD_OUT]

    stock.instead = sold_out
    customer, key, product = uuid4(), new_key(), uuid4()
    batch = [placing(customer, key, {product: 1}) for _ in range(50)]
    assert await process_of(database, stock).place(*batch) == [SOLD_OUT] * 50
    assert stock.asked == [1]


async def test_order_is_placed_though_the_unused_hold_beside_it_cannot_be_released(database: Database) -> None:
    stock, before = Stock(currencies=("EUR", "USD")), await count(database)
    good, mixed = (placing(uuid4(), new_key(), dict.fromkeys((uuid4() for _ in range(n)), 1)) for n in (1, 2))
    process = process_of(database, stock)
    results = await process.place(good, mixed)
    assert isinstance(results[0], Reply)
    assert isinstance(results[1], MeshError)
    assert results[1].reason == "CURRENCY_MISMATCH"
    assert (stock.asked, await count(database)) == ([2], before + 1)
    await process.unused_holds.idle()


@pytest.mark.parametrize("down", ["customer", "product"])
@pytest.mark.parametrize("failure", [Unavailable("down"), DeadlineExceeded("late"), ResourceExhausted("full")])
@pytest.mark.parametrize("known", [True, False])
async def test_transient_failure_of_a_peer_fails_fresh_orders_and_not_the_retry_beside_them(
    database: Database, down: str, failure: MeshError, known: bool
) -> None:
    customer, key, product = uuid4(), new_key(), uuid4()
    wallets, stock = Wallets(), Stock()
    here = process_of(database, stock, wallets=wallets)
    first_process = here if known else process_of(database, Stock())
    (first,) = await first_process.place(placing(customer, key, {product: 1}))

    async def fail() -> Reserved:
        raise failure

    if down == "customer":
        wallets.failure = failure
    else:
        stock.instead = fail
    fresh, before = [placing(uuid4(), new_key(), {product: 1}) for _ in range(2)], database.statements
    results = await here.place(fresh[0], placing(customer, key, {product: 1}), fresh[1])
    assert replayed(results[1]) == message_of(first)
    assert [results[0], results[2]] == [failure, failure]
    assert database.statements - before == (2 if known else 1), (
        "the stored replies of known retries, and those of failures"
    )


@pytest.mark.parametrize("alone", [True, False])
async def test_retry_gets_its_order_though_a_peer_answers_with_a_fault(database: Database, alone: bool) -> None:
    customer, key, product, stock = uuid4(), new_key(), uuid4(), Stock()
    (first,) = await process_of(database, Stock()).place(placing(customer, key, {product: 1}))

    async def fail() -> Reserved:
        raise Internal("a fault over there")

    stock.instead = fail
    fresh = [] if alone else [placing(uuid4(), new_key(), {product: 1})]
    results = await process_of(database, stock).place(*fresh, placing(customer, key, {product: 1}))
    assert replayed(results[-1]) == message_of(first)
    assert [type(result) for result in results[:-1]] == [Internal] * len(fresh)


@pytest.mark.parametrize("empty", [True, False])
async def test_order_that_costs_nothing_has_no_payment_method(database: Database, empty: bool) -> None:
    stock, wallets = Stock(), Wallets(empty=empty)
    stock.price = Decimal(0)
    process = process_of(database, stock, wallets=wallets)
    (result,) = await process.place(placing(uuid4(), new_key(), {uuid4(): 3}))
    order = message_of(result)
    assert (order.payment_method_id, order.total_amount) == ("", Money(currency_code="EUR"))
    connection = await asyncpg.connect(database.url)
    payload = await connection.fetchval("SELECT payload FROM mesh.outbox WHERE aggregate_id = $1", UUID(order.id))
    await connection.close()
    event = events_pb2.OrderPlaced.FromString(payload)
    assert (event.order, event.provider) == (order, "")
    async with database.reading() as reading:
        assert (await process.orders.read(reading, [UUID(order.id)]))[UUID(order.id)].payment_method_id is None


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        ("PRICE_CHANGED", "PAYMENT_METHOD_MISSING"),
        ("PRODUCT_NOT_FOUND", "PAYMENT_METHOD_MISSING"),
        ("STOCK_INSUFFICIENT", "STOCK_INSUFFICIENT"),
        ("DEPENDENCY_UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"),
    ],
)
async def test_customer_without_payment_method_orders_only_what_costs_nothing(
    database: Database, refusal: str, reason: str
) -> None:
    stock, customer = Stock(), uuid4()

    async def refuse() -> Reserved:
        return [MeshError("no hold", reason=refusal)]

    stock.instead = refuse
    process = process_of(database, stock, wallets=Wallets(empty=True))
    (error,) = await process.place(placing(customer, new_key(), {uuid4(): 1}))
    assert isinstance(error, MeshError)
    assert error.reason == reason
    if reason == "PAYMENT_METHOD_MISSING":
        assert (error.code.name, error.metadata) == ("FAILED_PRECONDITION", {"customerId": str(customer)})


async def test_hold_with_a_total_is_released_for_a_customer_without_payment_method(database: Database) -> None:
    stock = Stock()
    process = process_of(database, stock, wallets=Wallets(empty=True))
    wanted = placing(uuid4(), new_key(), {uuid4(): 1})
    (error,) = await process.place(wanted)
    assert isinstance(error, PaymentMethodMissing)
    await process.unused_holds.idle()
    assert stock.released == [wanted.order_id]


async def test_hold_in_a_currency_that_the_provider_does_not_take_is_released(database: Database) -> None:
    stock = Stock()
    process = process_of(database, stock, wallets=Wallets(currencies=["USD", "JPY"]))
    refused_one, placed_one = placing(uuid4(), new_key(), {uuid4(): 1}), placing(uuid4(), new_key(), {uuid4(): 1})
    (error,) = await process.place(refused_one)
    assert isinstance(error, CurrencyNotSupported)
    assert error.metadata == {"provider": "sandbox", "currency": "EUR"}
    await process.unused_holds.idle()
    assert stock.released == [refused_one.order_id]
    stock.currencies = ("USD",)
    (placed,) = await process.place(placed_one)
    assert message_of(placed).total_amount.currency_code == "USD"


async def test_known_retry_gets_its_order_while_a_batch_waits_for_a_peer(database: Database) -> None:
    customer, key, product, stock = uuid4(), new_key(), uuid4(), Stock()
    process, answer = process_of(database, stock), asyncio.Event()
    (first,) = await process.place(placing(customer, key, {product: 1}))

    async def hang() -> Reserved:
        await answer.wait()
        raise Unavailable("after all")

    stock.instead = hang
    fresh = asyncio.create_task(process.place(placing(uuid4(), new_key(), {product: 1})))

    async def asked() -> bool:
        return stock.asked == [1, 1]

    await eventually(asked)
    async with asyncio.timeout(TEST_TIMEOUT_S):
        (retried,) = await process.place(placing(customer, key, {product: 1}))
        (reused,) = await process.place(placing(customer, key, {product: 2}))
    assert replayed(retried) == message_of(first)
    assert isinstance(reused, IdempotencyKeyReused)
    answer.set()
    assert [type(result) for result in await fresh] == [Unavailable]


@pytest.mark.parametrize("answered", [True, False])
async def test_release_of_unused_holds_delays_no_batch_and_ends_with_the_service(
    database: Database, answered: bool
) -> None:
    customer, key, product, stock = uuid4(), new_key(), uuid4(), Stock()
    await process_of(database, Stock()).place(placing(customer, key, {product: 1}))
    # A release that does not end is waited for until then.
    process = process_of(database, stock, stop_timeout=3600 if answered else 0.01)
    answer, ended = asyncio.Event(), list[bool]()

    async def wait() -> None:
        ended.append(await answer.wait())

    stock.releasing = wait
    fresh, retry = placing(uuid4(), new_key(), {product: 1}), placing(customer, key, {product: 1})
    async with asyncio.timeout(TEST_TIMEOUT_S):
        results = await process.place(fresh, retry)
    assert [type(result) for result in results] == [Reply, Replay]

    async def releasing() -> bool:
        return stock.released == [retry.order_id]

    await eventually(releasing)
    if answered:
        stopping = asyncio.create_task(process.unused_holds.stop())
        answer.set()
        await stopping
    else:
        await process.unused_holds.stop()
    assert ended == ([True] if answered else [])
