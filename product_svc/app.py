"""The product service, wired: settings in, service out. Read it as the table of contents."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from pydantic import Field

from mesh.batch.group_commit import GroupCommit
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
from product_svc import wire
from product_svc.consumers import order_events
from product_svc.domain import Hold, Product, Reservation
from product_svc.peers import OrderPeer
from product_svc.rpc import InventoryService, ProductService
from product_svc.store import APPEND_HISTORY, HoldStore, ProductLists, ProductStore, StockStore
from product_svc.usecases import Catalogue, Holds, HoldSweep, Inventory, Orders, Reservations, Watching

_READS_LINGER_S = 0.005
_SALES_LINGER_S = 0.25
"""No caller waits for a sale, and its stock is held until it is committed. The longer a batch of sales lingers, the
more of them are of the same product: its row then changes once, and its event is published once (ADR-0012)."""


class Settings(ServiceSettings):
    """The product service's settings."""

    order_target: Target
    """Where the order service is."""
    low_stock_threshold: int = Field(default=10, ge=0)
    """The low stock threshold of new products that are created without one. The event `stock_low` is published when the
    quantity on hand of a product falls to its threshold or below it."""
    hold_sweep_seconds: float = Field(default=5.0, gt=0)
    """The time between two sweeps for expired holds."""


@dataclass(frozen=True, slots=True)
class UseCases:
    """Everything that the product service can do."""

    catalogue: Catalogue
    reads: GroupCommit[UUID, Product]
    """Reads of single products: `Catalogue.get_each` for all that are requested at the same time."""
    inventory: Inventory
    reservations: GroupCommit[Reservation, Hold]
    """Requests for holds: `Reservations.reserve_each` for all that are made at the same time."""
    holds: Holds
    sweep: HoldSweep


def use_cases(units: UnitsOfWork, pages: Pages, orders: Orders, *, low_stock_threshold: int) -> UseCases:
    """Wire the use cases to their stores."""
    products, stocks, holds = ProductStore(), StockStore(), HoldStore()
    catalogue = Catalogue(units, products, ProductLists(), stocks, pages, low_stock_threshold=low_stock_threshold)
    reserving = Reservations(units, holds)
    resolving = Holds(units, holds, stocks)
    return UseCases(
        catalogue=catalogue,
        reads=GroupCommit("product reads", catalogue.get_each, linger=_READS_LINGER_S),
        inventory=Inventory(units, stocks, pages),
        reservations=GroupCommit("stock holds", reserving.reserve_each, max_batch=1000, max_waiting=20_000),
        holds=resolving,
        sweep=HoldSweep(units, holds, resolving, orders),
    )


def build(settings: Settings) -> Service:
    """Wire the service."""
    database = Database(settings.database_url.get_secret_value(), max_connections=settings.database_connections)
    bus = Bus(settings.nats_url.get_secret_value(), name="product", replicas=settings.nats_replicas)
    relay = Relay("product", database, bus)
    revocations = Revocations(settings.redis_url.get_secret_value())
    units = UnitsOfWork(database, relay, event_of=wire.event, history=APPEND_HISTORY)
    orders = Peer("order", settings.order_target, settings)
    pages = Pages(secret_bytes(settings.page_secret))
    use = use_cases(units, pages, OrderPeer(orders), low_stock_threshold=settings.low_stock_threshold)
    watching = Watching(units, StockStore(), bus)

    return Service(
        "product",
        [
            database,
            bus,
            orders,
            relay,
            *housekeeping(database),
            Periodic("hold sweep", settings.hold_sweep_seconds, use.sweep.run),
            Consumer(
                "product",
                "order",
                order_events(use.holds),
                bus=bus,
                units=units,
                linger=_SALES_LINGER_S,
                max_attempts=settings.event_attempts,
            ),
            revocations,
            watching.watches,
            Server(
                settings,
                {
                    "commerce.product.v1.ProductService": ProductService(use.catalogue, use.reads),
                    "commerce.product.v1.InventoryService": InventoryService(
                        use.inventory, use.holds, use.reservations, watching
                    ),
                },
                checks=[database.check],
                revoked=revocations.ids,
            ),
        ],
    )
