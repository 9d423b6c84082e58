"""The order service, wired: settings in, service out. Read it as the table of contents."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from pydantic import Field

from mesh.cache.versioned import VersionedCache
from mesh.db.database import Database
from mesh.db.housekeeping import housekeeping
from mesh.db.paging import Pages
from mesh.db.unit_of_work import UnitsOfWork
from mesh.events.bus import Bus
from mesh.events.consumers import Consumer
from mesh.events.relay import Relay
from mesh.jobs import Periodic
from mesh.lifecycle import Service
from mesh.rpc.clients import Peer
from mesh.rpc.revocations import Revocations
from mesh.rpc.server import Server
from mesh.settings import ServiceSettings, Target, secret_bytes
from order_svc import wire
from order_svc.consumers import payment_events
from order_svc.domain import Order
from order_svc.peers import CustomerPeer, PaymentPeer, ProductPeer, StockPeer
from order_svc.rpc import OrderService
from order_svc.store import APPEND_HISTORY, ErasureStore, OrderStore
from order_svc.usecases import (
    Cancellation,
    Drafts,
    Erasures,
    Fulfilment,
    Holds,
    Payments,
    Placement,
    Reading,
    Timeline,
    UnusedHolds,
    Watching,
)


class Settings(ServiceSettings):
    """The order service's settings."""

    customer_target: Target
    """Where the customer service is."""
    product_target: Target
    """Where the product service is."""
    payment_target: Target
    """Where the payment service is."""
    payment_deadline: float = Field(default=900.0, gt=0)
    """Seconds in which an order must be paid, or it is cancelled."""
    hold_margin: float = Field(default=300.0, gt=0)
    """Seconds that a hold outlives the payment deadline; more than the two databases' clocks differ by."""
    deadline_sweep_seconds: float = Field(default=1.0, gt=0)
    """How often orders past their deadline are looked for."""
    cancelling_timeout: float = Field(default=300.0, gt=0)
    """Seconds that an order may be cancelling before the payment service is asked again; after twice that it was."""
    draft_lifetime: float = Field(default=30 * 86_400.0, gt=0)
    """Seconds after its last change after which a draft is cancelled."""
    placing_timeout: float = Field(default=86_400.0, gt=0)
    """Seconds after which a draft is cancelled whose placing began and was neither finished nor refused."""
    draft_sweep_seconds: float = Field(default=60.0, gt=0)
    """The time between two sweeps for expired drafts."""
    erasure_sweep_seconds: float = Field(default=10.0, gt=0)
    """The time between two sweeps for erasures of customers that are due: the first time at once, for stored replies,
    and once more when no placing from before the erasure can still be committed."""


_REMEMBERED_FOR_S = 600.0
"""The longest time for which a process remembers an order that it has placed."""


def build(settings: Settings) -> Service:
    """Wire the service."""
    database = Database(settings.database_url.get_secret_value(), max_connections=settings.database_connections)
    bus = Bus(settings.nats_url.get_secret_value(), name="order", replicas=settings.nats_replicas)
    relay = Relay("order", database, bus)
    revocations = Revocations(settings.redis_url.get_secret_value())
    units = UnitsOfWork(database, relay, event_of=wire.event, history=APPEND_HISTORY)
    customers = Peer("customer", settings.customer_target, settings)
    products = Peer("product", settings.product_target, settings)
    payers = Peer("payment", settings.payment_target, settings)

    cache = VersionedCache("orders", Order, settings.redis_url.get_secret_value(), is_cached=Order.is_at_rest)
    orders = OrderStore(cache)
    stock = StockPeer(products)
    unused_holds = UnusedHolds(units, orders, stock)
    wallets = CustomerPeer(customers)
    placement = Placement(
        units,
        orders,
        wallets,
        stock,
        unused_holds,
        payment_deadline=timedelta(seconds=settings.payment_deadline),
        hold_margin=timedelta(seconds=settings.hold_margin),
    )
    drafts = Drafts(units, orders, wallets, ProductPeer(products))
    reading = Reading(units, orders, Pages(secret_bytes(settings.page_secret)))
    cancellation = Cancellation(units, orders)
    fulfilment = Fulfilment(units, orders)
    payments = Payments(units, orders)
    holds = Holds(units, orders)
    timeline = Timeline(units, orders, stock, PaymentPeer(payers), event_of=wire.timeline_event)
    watching = Watching(units, orders, bus)
    erasures = Erasures(
        units,
        orders,
        ErasureStore(),
        # An order can be committed until its hold is released, which the other service does by its own clock.
        longest_placing=timedelta(seconds=settings.payment_deadline + 2 * settings.hold_margin),
    )
    unfinished = timedelta(seconds=settings.placing_timeout)
    lifetime = timedelta(seconds=settings.draft_lifetime)
    timeout = timedelta(seconds=settings.cancelling_timeout)

    return Service(
        "order",
        [
            database,
            bus,
            customers,
            products,
            payers,
            relay,
            cache,
            *housekeeping(database),
            Periodic("payment deadlines", settings.deadline_sweep_seconds, cancellation.cancel_overdue),
            Periodic("cancellations", timeout.total_seconds(), partial(cancellation.cancel_again, timeout)),
            Periodic(
                "expired drafts", settings.draft_sweep_seconds, partial(cancellation.cancel_expired_drafts, lifetime)
            ),
            Periodic(
                "unfinished placings", settings.draft_sweep_seconds, partial(cancellation.cancel_unfinished, unfinished)
            ),
            Periodic("remembered orders", _REMEMBERED_FOR_S, orders.forget_remembered),
            Periodic("erasures", settings.erasure_sweep_seconds, erasures.repeat),
            Consumer(
                "order", "payment", payment_events(payments), bus=bus, units=units, max_attempts=settings.event_attempts
            ),
            unused_holds,
            revocations,
            watching.watches,
            Server(
                settings,
                {
                    "commerce.order.v1.OrderService": OrderService(
                        placement, drafts, reading, cancellation, fulfilment, holds, timeline, watching, erasures
                    )
                },
                checks=[database.check],
                revoked=revocations.ids,
            ),
        ],
    )
