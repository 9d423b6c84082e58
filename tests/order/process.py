"""One process of the order service on its real database, beside peers that do what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

from commerce.order.v1 import order_pb2
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.db.idempotency import IdempotencyKey, Replay
from mesh.db.paging import Pages
from mesh.db.unit_of_work import UnitsOfWork
from mesh.errors import MeshError
from mesh.events.bus import Bus
from mesh.events.cloudevents import Received
from mesh.events.relay import Relay
from mesh.ids import new_id
from mesh.rpc.call import Call, Caller, Kind
from mesh.rpc.replies import Change, Reply
from order_svc import wire
from order_svc.domain import (
    Cause,
    HeldLine,
    Hold,
    HoldRequest,
    Offer,
    Order,
    OrderRequest,
    PaymentMethod,
    PaymentResult,
    Selection,
)
from order_svc.peers import CustomerPeer, PaymentPeer, ProductPeer, StockPeer
from order_svc.store import APPEND_HISTORY, ErasureStore, OrderStore
from order_svc.usecases import (
    Cancellation,
    Drafts,
    Erasures,
    Fulfilment,
    Holds,
    Payments,
    Placement,
    Placing,
    Reading,
    Timeline,
    UnusedHolds,
    Watching,
)
from tests.services import new_key

Reserved = list[Hold | MeshError]


class Wallets(CustomerPeer):
    """A customer service whose customers all have a card or none, unless it fails."""

    def __init__(self, *, empty: bool = False, currencies: Sequence[str] = ()) -> None:
        self.failure: MeshError | None = None
        self.empty = empty
        self.currencies = currencies

    async def select(
        self, wanted: Sequence[tuple[UUID, OrderRequest]], calls: Sequence[Call]
    ) -> list[Selection | MeshError]:
        """The card of each."""
        assert len(calls) == len(wanted)
        if self.failure:
            raise self.failure
        if self.empty:
            return [Selection(None, None)] * len(wanted)
        return [Selection(PaymentMethod(new_id(), "sandbox", self.currencies), None) for _ in wanted]


class NoPayments(PaymentPeer):
    """A payment service that is never asked."""

    def __init__(self) -> None:
        pass


class Catalogue(ProductPeer):
    """A product service that sells every product, at 10 euros."""

    def __init__(self) -> None:
        pass

    async def offers(self, product_ids: Sequence[UUID], call: Call) -> dict[UUID, Offer]:  # noqa: ARG002  # as the peer
        """An offer of each."""
        return {each: Offer(each, "SKU", "A thing", Decimal(10), "EUR", False) for each in product_ids}


class Stock(StockPeer):
    """A product service that holds whatever is asked for, in the currencies that a test says."""

    def __init__(self, currencies: Sequence[str] = ("EUR",)) -> None:
        self.asked: list[int] = []
        """How many holds were asked for, each time."""
        self.instead: Callable[[], Awaitable[Reserved]] | None = None
        """What is done and answered in place of it."""
        self.released: list[UUID] = []
        """Orders whose holds were to be released."""
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


@dataclass(frozen=True)
class OrderProcess:
    """What one process of the order service can do. Its relay is not started: events stay in the outbox."""

    database: Database
    units: UnitsOfWork
    orders: OrderStore
    wallets: CustomerPeer
    stock: StockPeer
    unused_holds: UnusedHolds
    placement: Placement
    drafts: Drafts
    payments: Payments
    cancellation: Cancellation
    fulfilment: Fulfilment
    holds: Holds
    reading: Reading
    timeline: Timeline
    watching: Watching
    erasures: Erasures

    async def place(self, *batch: Placing) -> list[Reply[Order] | BaseException]:
        """The results of calls that arrive together, in order."""
        return await asyncio.gather(*(self.placement.group.submit(each) for each in batch), return_exceptions=True)

    async def place_one(self) -> Order:
        """A new order of somebody."""
        (result,) = await self.place(placing(uuid4(), new_key(), {uuid4(): 1}))
        assert isinstance(result, Reply)
        order: Order = result.value
        return order

    async def apply_payment(self, cause: Cause, *order_ids: UUID) -> None:
        """Events of the payment service, as the consumer brings them."""
        events = [
            Received(new_id(), "", order_id, 1, "", PaymentResult(order_id, new_id(), cause)) for order_id in order_ids
        ]
        await self.units.run_optimistically(lambda work: self.payments.apply(work, events))


def process_of(
    database: Database,
    stock: StockPeer | None = None,
    *,
    wallets: CustomerPeer | None = None,
    stop_timeout: float = 5.0,
    clock: Clock | None = None,
) -> OrderProcess:
    """A process that remembers nothing yet."""
    bus = Bus("nats://127.0.0.1:1", name="test")
    relay = Relay("order", database, bus)
    units, orders = UnitsOfWork(database, relay, event_of=wire.event, history=APPEND_HISTORY, clock=clock), OrderStore()
    wallets, stock = wallets or Wallets(), stock or Stock()
    unused_holds = UnusedHolds(units, orders, stock, stop_timeout=stop_timeout)
    placement = Placement(
        units,
        orders,
        wallets,
        stock,
        unused_holds,
        payment_deadline=timedelta(minutes=15),
        hold_margin=timedelta(minutes=5),
    )
    return OrderProcess(
        database,
        units,
        orders,
        wallets,
        stock,
        unused_holds,
        placement,
        Drafts(units, orders, wallets, Catalogue()),
        Payments(units, orders),
        Cancellation(units, orders),
        Fulfilment(units, orders),
        Holds(units, orders),
        Reading(units, orders, Pages(b"a secret of the tests")),
        Timeline(units, orders, stock, NoPayments(), event_of=wire.timeline_event),
        Watching(units, orders, bus),
        Erasures(units, orders, ErasureStore(), longest_placing=timedelta(minutes=20)),
    )


def placing(customer: UUID, key: str, products: Mapping[UUID, int]) -> Placing:
    """A request for these products."""
    caller = Caller(Kind.CUSTOMER, str(customer))
    request = order_pb2.CreateOrderRequest(
        items=[order_pb2.OrderLine(product_id=str(each), quantity=quantity) for each, quantity in products.items()]
    )
    call = Call("CreateOrder", caller=caller, key=IdempotencyKey.of(key, caller, "CreateOrder", request))
    change: Change[Order] = Change(call, lambda placed: order_pb2.CreateOrderResponse(order=wire.order(placed)))
    return Placing(change, customer, OrderRequest(products))


def message_of(result: Reply[Order] | BaseException) -> order_pb2.Order:
    """The order of a placed result, as the client gets it."""
    assert isinstance(result, Reply)
    return wire.order(result.value)


def replayed(result: object) -> order_pb2.Order:
    """The order in a stored reply."""
    assert isinstance(result, Replay)
    return order_pb2.CreateOrderResponse.FromString(result.wire).order
