"""Orders on their real database, with a customer and a product service that do what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import asyncpg
import pytest
import sqlalchemy as sa
from google.type.money_pb2 import Money

from commerce.order.v1 import events_pb2, order_pb2
from commerce.payment.v1 import events_pb2 as payment_events
from commerce.payment.v1 import payment_pb2
from mesh.batch.group_commit import run_batch
from mesh.db.database import Database, Statement
from mesh.db.idempotency import IdempotencyKey, IdempotencyKeyReused, Replay
from mesh.db.recent import Recent
from mesh.db.unit_of_work import UnitsOfWork
from mesh.errors import DeadlineExceeded, FailedPrecondition, Internal, MeshError, ResourceExhausted, Unavailable
from mesh.events.bus import Bus
from mesh.events.cloudevents import Received
from mesh.events.relay import Relay
from mesh.ids import new_id
from mesh.rpc.call import Call, Caller, Kind
from mesh.rpc.replies import Change, Reply
from order_svc.domain import HeldLine, Hold, HoldRequest, Order, PaymentMethod, PaymentMethodMissing, Status
from order_svc.peers import CustomerPeer, StockPeer
from order_svc.store import get, orders
from order_svc.usecases import Placed, Placement, Placing, Saga, UnusedHolds, unused_holds
from stack.servers import Servers
from tests.services import eventually, migrated, new_key

ORDERS = Statement(sa.select(orders.c.id).where(orders.c.status != Status.ABANDONED.value))
SOLD_OUT = FailedPrecondition("nothing left", reason="STOCK_INSUFFICIENT")
Reserved = list[Hold | MeshError]


class Wallets(CustomerPeer):
    """A customer service whose customers all have a card or none, unless it fails."""

    def __init__(self, *, empty: bool = False) -> None:
        self.failure: MeshError | None = None
        self.empty = empty

    async def payment_methods(
        self, wanted: Sequence[tuple[UUID, UUID | None]], calls: Sequence[Call]
    ) -> list[PaymentMethod | MeshError | None]:
        """The card of each."""
        assert len(calls) == len(wanted)
        if self.failure:
            raise self.failure
        if self.empty:
            return [None] * len(wanted)
        return [PaymentMethod(new_id(), "sandbox") for _ in wanted]


class Stock(StockPeer):
    """A product service that holds whatever is asked for, in the currencies that a test says."""

    def __init__(self, currencies: Sequence[str] = ("EUR",)) -> None:
        self.asked: list[int] = []
        """How many holds were asked for, each time."""
        self.instead: Callable[[], Awaitable[Reserved]] | None = None
        """What is done and answered in place of it."""
        self.released: list[UUID] = []
        """Orders whose holds were to be given back."""
        self.releasing: Callable[[], Awaitable[None]] | None = None
        """What a release waits for."""
        self.currencies = currencies
        self.price = Decimal(10)

    async def reserve(
        self,
        wanted: Sequence[HoldRequest],
        expire_time: datetime,  # noqa: ARG002  # as the peer has it
        calls: Sequence[Call],
    ) -> Reserved:
        """Hold stock for each."""
        assert len(calls) == len(wanted)
        self.asked.append(len(wanted))
        if self.instead:
            return await self.instead()
        return [
            Hold(
                each.order_id,
                tuple(
                    HeldLine(product_id, "SKU", "A thing", quantity, self.price, currency)
                    for (product_id, quantity), currency in zip(each.quantities.items(), self.currencies, strict=False)
                ),
            )
            for each in wanted
        ]

    async def release(self, order_ids: Sequence[UUID]) -> None:
        """Never works."""
        self.released += order_ids
        if self.releasing:
            await self.releasing()
        raise RuntimeError(order_ids)


@pytest.fixture(scope="module")
async def database(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Database]:
    """The database of orders, with no service at work on it."""
    async with Servers.started(tmp_path_factory.mktemp("orders"), only={"postgres"}) as servers:
        await migrated(servers)
        opened = Database(servers.postgres.url_for("order_svc"), max_connections=4)
        await opened.start()
        yield opened
        await opened.stop()


def placement_of(database: Database, stock: Stock, *, wallets: Wallets | None = None) -> Placement:
    """What one process of the order service places with. Events stay in the outbox: its relay is not started."""
    units = UnitsOfWork(database, Relay("order", database, Bus("nats://127.0.0.1:1", name="test")))
    return Placement(
        units,
        wallets or Wallets(),
        stock,
        UnusedHolds(units, stock),
        recent=Recent(),
        payment_deadline=timedelta(minutes=15),
        hold_margin=timedelta(minutes=5),
    )


def placing(customer: UUID, key: str, products: Mapping[UUID, int]) -> Placing:
    """A wish for these products."""
    caller = Caller(Kind.CUSTOMER, str(customer))
    request = order_pb2.CreateOrderRequest(
        items=[order_pb2.OrderLine(product_id=str(each), quantity=quantity) for each, quantity in products.items()]
    )
    call = Call("CreateOrder", caller=caller, key=IdempotencyKey.of(key, caller, "CreateOrder", request))
    change: Change[order_pb2.Order] = Change(
        call, lambda placed: order_pb2.CreateOrderResponse(order=placed)
    )  # as rpc.py does
    return Placing(change, customer, dict(products), None)


async def count(database: Database) -> int:
    """Orders that were placed."""
    async with database.reading() as reading:
        return len(await reading.fetch(ORDERS))


async def test_a_retry_whose_hold_was_refused_since_the_first_attempt_has_its_goods_gets_the_order(
    database: Database,
) -> None:
    customer, key, product = uuid4(), new_key(), uuid4()
    here, there = Stock(), Stock()
    first, retry = (placing(customer, key, {product: 1}) for _ in range(2))
    placed: list[object] = []

    async def stale_write() -> Reserved:
        # The other process commits the first attempt, whose hold is sold at once: nothing to adopt, nothing left.
        placed.extend(await placement_of(database, there)._place([first]))
        return [SOLD_OUT]

    here.instead = stale_write
    (result,) = await placement_of(database, here)._place([retry])
    assert isinstance(placed[0], Reply)
    assert isinstance(result, Replay)
    assert order_pb2.CreateOrderResponse.FromString(result.wire).order == placed[0].value


@pytest.mark.parametrize("hold", ["adopted", "one of its own"])
async def test_a_retry_whose_first_attempt_is_placed_meanwhile_gets_its_order_and_the_others_of_the_batch_theirs(
    database: Database, hold: str
) -> None:
    customer, key, product, before = uuid4(), new_key(), uuid4(), await count(database)
    here, there = Stock(), Stock()
    first, retry = (placing(customer, key, {product: 1}) for _ in range(2))
    other = placing(uuid4(), new_key(), {product: 1})
    placed: list[object] = []

    async def stale_write() -> Reserved:
        placed.extend(await placement_of(database, there)._place([first]))
        held_by = first if hold == "adopted" else retry
        return [
            Hold(each.order_id, (HeldLine(product, "SKU", "A thing", 1, Decimal(10), "EUR"),))
            for each in (other, held_by)
        ]

    here.instead, process = stale_write, placement_of(database, here)
    results = await process._place([other, retry])
    assert isinstance(placed[0], Reply)
    assert isinstance(results[0], Reply)
    assert isinstance(results[1], Replay)
    assert order_pb2.CreateOrderResponse.FromString(results[1].wire).order == placed[0].value
    assert await count(database) == before + 2
    await process.unused_holds.idle()
    assert here.released == ([] if hold == "adopted" else [retry.order_id])


async def test_a_refusal_stays_one_and_only_refusals_cost_a_second_look(database: Database) -> None:
    stock = Stock()
    placement, before = placement_of(database, stock), database.statements
    await placement._place([placing(uuid4(), new_key(), {uuid4(): 1})])
    accepted = database.statements - before

    async def sold_out() -> Reserved:
        return [SOLD_OUT]

    stock.instead, before = sold_out, database.statements
    assert await placement._place([placing(uuid4(), new_key(), {uuid4(): 1})]) == [SOLD_OUT]
    assert database.statements - before == 1, "the look after"
    assert accepted == 1, "all that is written in one"


async def test_many_calls_under_one_key_in_one_batch_are_placed_as_one(database: Database) -> None:
    customer, key, product, stock = uuid4(), new_key(), uuid4(), Stock()
    placement, orders_before, before = placement_of(database, stock), await count(database), database.statements
    batch = [placing(customer, key, {product: 1}) for _ in range(199)] + [placing(customer, key, {product: 2})]
    results = await asyncio.gather(*(placement.group.submit(each) for each in batch), return_exceptions=True)
    assert stock.asked == [1]
    assert database.statements - before == 1
    assert await count(database) == orders_before + 1
    first, *duplicates, other = results
    assert isinstance(first, Reply)
    assert isinstance(other, IdempotencyKeyReused)
    for duplicate in duplicates:
        assert isinstance(duplicate, Replay)
        assert order_pb2.CreateOrderResponse.FromString(duplicate.wire).order == first.value

    again, before = [placing(customer, key, {product: 2}), placing(customer, key, {product: 1})], database.statements
    assert [type(each) for each in await placement._place(again)] == [IdempotencyKeyReused, Replay]
    assert database.statements - before == 1, "a look"
    assert stock.asked == [1], "who has come here before is known for a retry"


@pytest.mark.parametrize("same", [True, False])
async def test_a_retry_in_a_process_that_has_not_seen_the_first_attempt_changes_nothing(
    database: Database, same: bool
) -> None:
    customer, key, product, here = uuid4(), new_key(), uuid4(), Stock()
    (first,) = await placement_of(database, Stock())._place([placing(customer, key, {product: 1})])
    assert isinstance(first, Reply)
    placement, before = placement_of(database, here), await count(database)
    other, retry = placing(uuid4(), new_key(), {product: 1}), placing(customer, key, {product: 1 if same else 2})
    results = await placement._place([other, retry])
    assert isinstance(results[0], Reply), "who is in one batch with it gets what is asked for"
    if same:
        assert isinstance(results[1], Replay)
        assert order_pb2.CreateOrderResponse.FromString(results[1].wire).order == first.value
    else:
        assert isinstance(results[1], IdempotencyKeyReused)
    assert await count(database) == before + 1
    assert here.asked == [2]
    await placement.unused_holds.idle()
    assert here.released == [retry.order_id], "the first attempt's hold was sold, so it got one of its own"


async def test_a_retry_whose_goods_have_become_unsellable_together_since_gets_the_order_of_the_first_attempt(
    database: Database,
) -> None:
    customer, key, products = uuid4(), new_key(), {uuid4(): 1, uuid4(): 1}
    euros, mixed = Stock(currencies=("EUR", "EUR")), Stock(currencies=("EUR", "USD"))
    (first,) = await placement_of(database, euros)._place([placing(customer, key, products)])
    assert isinstance(first, Reply)
    retry = placing(customer, key, products)
    process = placement_of(database, mixed)
    (result,) = await process._place([retry])
    assert isinstance(result, Replay)
    assert order_pb2.CreateOrderResponse.FromString(result.wire).order == first.value
    await process.unused_holds.idle()
    assert mixed.released == [retry.order_id]


async def test_duplicates_of_a_call_that_is_refused_are_refused_like_it(database: Database) -> None:
    stock = Stock()

    async def sold_out() -> Reserved:
        return [SOLD_OUT]

    stock.instead = sold_out
    customer, key, product = uuid4(), new_key(), uuid4()
    batch = [placing(customer, key, {product: 1}) for _ in range(50)]
    assert await placement_of(database, stock)._place(batch) == [SOLD_OUT] * 50
    assert stock.asked == [1]


async def test_orders_are_placed_once_though_unused_holds_cannot_be_given_back(database: Database) -> None:
    stock, before = Stock(currencies=("EUR", "USD")), await count(database)
    good, mixed = (placing(uuid4(), new_key(), dict.fromkeys((uuid4() for _ in range(n)), 1)) for n in (1, 2))
    placement = placement_of(database, stock)
    results = await asyncio.gather(*(placement.group.submit(each) for each in (good, mixed)), return_exceptions=True)
    assert isinstance(results[0], Reply)
    assert isinstance(results[1], MeshError)
    assert results[1].reason == "CURRENCY_MISMATCH"
    assert (stock.asked, await count(database)) == ([2], before + 1)


@pytest.mark.parametrize("down", ["customer", "product"])
@pytest.mark.parametrize("failure", [Unavailable("down"), DeadlineExceeded("late"), ResourceExhausted("full")])
@pytest.mark.parametrize("known", [True, False])
async def test_transient_failure_of_a_peer_fails_fresh_orders_and_not_the_retry_beside_them(
    database: Database, down: str, failure: MeshError, known: bool
) -> None:
    customer, key, product = uuid4(), new_key(), uuid4()
    wallets, stock = Wallets(), Stock()
    here = placement_of(database, stock, wallets=wallets)
    first_process = here if known else placement_of(database, Stock())
    (first,) = await first_process._place([placing(customer, key, {product: 1})])

    async def fail() -> Reserved:
        raise failure

    if down == "customer":
        wallets.failure = failure
    else:
        stock.instead = fail
    fresh, before = [placing(uuid4(), new_key(), {product: 1}) for _ in range(2)], database.statements
    results = await here._place([fresh[0], placing(customer, key, {product: 1}), fresh[1]])
    assert replayed(results[1]) == placed_order(first)
    assert [results[0], results[2]] == [failure, failure]
    assert database.statements - before == (2 if known else 1), "a look at known retries, and one at failures"


@pytest.mark.parametrize("alone", [True, False])
async def test_retry_gets_its_order_though_a_peer_answers_with_a_fault(database: Database, alone: bool) -> None:
    customer, key, product, stock = uuid4(), new_key(), uuid4(), Stock()
    (first,) = await placement_of(database, Stock())._place([placing(customer, key, {product: 1})])

    async def fail() -> Reserved:
        raise Internal("a fault over there")

    stock.instead = fail
    fresh = [] if alone else [placing(uuid4(), new_key(), {product: 1})]
    results = await run_batch(placement_of(database, stock)._place, [*fresh, placing(customer, key, {product: 1})])
    assert replayed(results[-1]) == placed_order(first)
    assert [type(result) for result in results[:-1]] == [Internal] * len(fresh)


@pytest.mark.parametrize("empty", [True, False])
async def test_order_that_costs_nothing_has_no_payment_method(database: Database, empty: bool) -> None:
    stock, wallets = Stock(), Wallets(empty=empty)
    stock.price = Decimal(0)
    placement = placement_of(database, stock, wallets=wallets)
    (result,) = await placement._place([placing(uuid4(), new_key(), {uuid4(): 3})])
    order = placed_order(result)
    assert (order.payment_method_id, order.total_amount) == ("", Money(currency_code="EUR"))
    connection = await asyncpg.connect(database.url)
    payload = await connection.fetchval("SELECT payload FROM mesh.outbox WHERE aggregate_id = $1", UUID(order.id))
    await connection.close()
    event = events_pb2.OrderPlaced.FromString(payload)
    assert (event.order, event.provider) == (order, "")
    async with database.reading() as reading:
        assert (await get(reading, [UUID(order.id)]))[UUID(order.id)].payment_method_id is None


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        ("PRICE_CHANGED", "PAYMENT_METHOD_MISSING"),
        ("PRODUCT_NOT_FOUND", "PAYMENT_METHOD_MISSING"),
        ("STOCK_INSUFFICIENT", "STOCK_INSUFFICIENT"),
        ("DEPENDENCY_UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"),
    ],
)
async def test_customer_without_payment_method_is_told_so_unless_the_total_is_zero(
    database: Database, refusal: str, told: str
) -> None:
    stock, customer = Stock(), uuid4()

    async def refuse() -> Reserved:
        return [MeshError("no hold", reason=refusal)]

    stock.instead = refuse
    placement = placement_of(database, stock, wallets=Wallets(empty=True))
    (error,) = await placement._place([placing(customer, new_key(), {uuid4(): 1})])
    assert isinstance(error, MeshError)
    assert error.reason == told
    if told == "PAYMENT_METHOD_MISSING":
        assert (error.code.name, error.metadata) == ("FAILED_PRECONDITION", {"customerId": str(customer)})


async def test_hold_that_costs_something_is_released_for_a_customer_without_payment_method(database: Database) -> None:
    stock = Stock()
    placement = placement_of(database, stock, wallets=Wallets(empty=True))
    wanted = placing(uuid4(), new_key(), {uuid4(): 1})
    (error,) = await placement._place([wanted])
    assert isinstance(error, PaymentMethodMissing)
    await placement.unused_holds.idle()
    assert stock.released == [wanted.order_id]


async def test_known_retry_gets_its_order_while_a_batch_waits_for_a_peer(database: Database) -> None:
    customer, key, product, stock = uuid4(), new_key(), uuid4(), Stock()
    placement, answer = placement_of(database, stock), asyncio.Event()
    first = await place(placement, placing(customer, key, {product: 1}))

    async def hang() -> Reserved:
        await answer.wait()
        raise Unavailable("after all")

    stock.instead = hang
    fresh = asyncio.create_task(place(placement, placing(uuid4(), new_key(), {product: 1})))

    async def asked() -> bool:
        return stock.asked == [1, 1]

    await eventually(asked)
    async with asyncio.timeout(10):
        with pytest.raises(Replay) as retried:
            await place(placement, placing(customer, key, {product: 1}))
    assert replayed(retried.value) == first
    with pytest.raises(IdempotencyKeyReused):
        await place(placement, placing(customer, key, {product: 2}))
    answer.set()
    with pytest.raises(Unavailable):
        await fresh


@pytest.mark.parametrize("answered", [True, False])
async def test_release_of_unused_holds_delays_no_batch_and_ends_with_the_service(
    database: Database, monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    customer, key, product, stock = uuid4(), new_key(), uuid4(), Stock()
    await placement_of(database, Stock())._place([placing(customer, key, {product: 1})])
    placement, answer, ended = placement_of(database, stock), asyncio.Event(), list[bool]()

    async def wait() -> None:
        ended.append(await answer.wait())

    stock.releasing = wait
    fresh, retry = placing(uuid4(), new_key(), {product: 1}), placing(customer, key, {product: 1})
    async with asyncio.timeout(10):
        results = await placement._place([fresh, retry])
    assert [type(result) for result in results] == [Reply, Replay]

    async def releasing() -> bool:
        return stock.released == [retry.order_id]

    await eventually(releasing)
    if answered:
        stopping = asyncio.create_task(placement.unused_holds.stop())
        answer.set()
        await stopping
    else:
        monkeypatch.setattr(unused_holds, "STOP_SECONDS", 0.01)
        await placement.unused_holds.stop()
    assert ended == ([True] if answered else [])


async def test_who_is_cancelling_too_long_is_asked_about_again_and_once_in_that_time(database: Database) -> None:
    placement = placement_of(database, Stock())
    saga, patience = Saga(placement._units, placement._recent), timedelta(minutes=5)
    placed = await placement._place([placing(uuid4(), new_key(), {uuid4(): 1}) for _ in range(3)])
    stuck, young, paid = (UUID(order.value.id) for order in placed if isinstance(order, Reply))
    connection = await asyncpg.connect(database.url)
    for order_id, status, age in ((stuck, "CANCELLING", 6), (young, "CANCELLING", 4), (paid, "CONFIRMED", 6)):
        await connection.execute(
            "UPDATE orders SET status = $2, update_time = now() - $3::interval WHERE id = $1",
            order_id,
            status,
            timedelta(minutes=age),
        )
    assert await saga.cancel_again(patience, most=1) is True
    assert await saga.cancel_again(patience, most=1) is False
    asked = await connection.fetch("SELECT * FROM mesh.outbox WHERE type = 'commerce.order.cancelling'")
    assert [(row["aggregate_id"], row["sequence"]) for row in asked] == [(stuck, 2)]
    assert events_pb2.OrderCancelling.FromString(asked[0]["payload"]).order.etag == "2"
    await connection.close()


async def test_an_order_that_this_process_has_placed_is_confirmed_without_being_read(database: Database) -> None:
    placement = placement_of(database, Stock())
    saga, order_id = Saga(placement._units, placement._recent), await one_placed(placement)
    before = database.statements
    await hear(saga, "captured", order_id)
    assert database.statements == before + 1
    assert await status_of(database, order_id) == (Status.CONFIRMED, 2)


@pytest.mark.parametrize(("said", "becomes"), [("captured", (Status.CANCELLING, 2)), ("voided", (Status.CANCELLED, 3))])
async def test_news_of_an_order_that_another_process_has_changed_meanwhile_meet_what_it_is_now(
    database: Database, said: str, becomes: tuple[Status, int]
) -> None:
    placement = placement_of(database, Stock())
    here, there = (Saga(placement._units, recent) for recent in (placement._recent, Recent[UUID, Placed]()))
    order_id = await one_placed(placement)
    clerk = Call("CancelOrder", caller=Caller(Kind.STAFF, "clerk"))
    change: Change[Order] = Change(clerk, lambda _: order_pb2.CancelOrderResponse())
    await there.cancel_order(change, order_id, note="", etag="")
    # Voided cannot be of an order that is not being cancelled, and captured would confirm it.
    await hear(here, said, order_id)
    assert await status_of(database, order_id) == becomes


async def place(placement: Placement, wanted: Placing) -> order_pb2.Order:
    """Place an order as a call does."""
    placed = await placement.place(
        wanted.change, wanted.customer_id, wanted.quantities.items(), wanted.payment_method_id, draft=False
    )
    return placed.value


def placed_order(result: Reply[order_pb2.Order] | Exception) -> order_pb2.Order:
    """The order in the reply of a placing."""
    assert isinstance(result, Reply)
    order: order_pb2.Order = result.value
    return order


def replayed(result: object) -> order_pb2.Order:
    """The order in a stored reply."""
    assert isinstance(result, Replay)
    return order_pb2.CreateOrderResponse.FromString(result.wire).order


async def one_placed(placement: Placement) -> UUID:
    """The id of a new order."""
    (order,) = await placement._place([placing(uuid4(), new_key(), {uuid4(): 1})])
    assert isinstance(order, Reply)
    return UUID(order.value.id)


async def hear(saga: Saga, said: str, order_id: UUID) -> None:
    """News of an order's payment, as the consumer brings them."""
    payment = payment_pb2.Payment(id=str(new_id()), order_id=str(order_id))
    payload = payment_events.PaymentCaptured(payment=payment)
    news = Received(new_id(), f"commerce.payment.{said}", UUID(payment.id), 2, "", payload)
    await saga._units.run_optimistically(lambda work: saga.on_payment(work, [news]))


async def status_of(database: Database, order_id: UUID) -> tuple[Status, int]:
    """How an order stands, and its version."""
    async with database.reading() as reading:
        order = (await get(reading, [order_id]))[order_id]
    return order.status, order.version
