"""The product service, wired: settings in, service out. Read it as the table of contents."""

from __future__ import annotations

from pydantic import Field

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
from mesh.rpc.server import Server
from mesh.settings import ServiceSettings, Target, secret_bytes
from product_svc.consumers import order_events
from product_svc.peers import OrderPeer
from product_svc.rpc import InventoryService, ProductService
from product_svc.usecases import Catalogue, Holds, Inventory

_SALES_LINGER_S = 0.25
"""Nobody waits for a sale to be written: what is sold is held until then. The more are written at once, the more of
them are of the same product, whose stock is changed once then, and told of once (ADR-0012)."""


class Settings(ServiceSettings):
    """The product service's settings."""

    order_target: Target
    """Where the order service is."""
    low_stock_threshold: int = Field(default=10, ge=0)
    """A stock that falls to this number or below is announced as low."""
    hold_sweep_seconds: float = Field(default=5.0, gt=0)
    """How often holds whose time is over are looked for."""


def build(settings: Settings) -> Service:
    """Wire the service."""
    database = Database(settings.database_url.get_secret_value(), max_connections=settings.database_connections)
    bus = Bus(settings.nats_url.get_secret_value(), name="product", replicas=settings.nats_replicas)
    relay = Relay("product", database, bus)
    units = UnitsOfWork(database, relay)
    pages = Pages(secret_bytes(settings.page_secret))
    orders = Peer("order", settings.order_target, settings)

    threshold = settings.low_stock_threshold
    catalogue = Catalogue(units, pages)
    inventory = Inventory(units, pages, low_stock_threshold=threshold)
    holds = Holds(units, OrderPeer(orders), low_stock_threshold=threshold)

    return Service(
        "product",
        [
            database,
            bus,
            orders,
            relay,
            *housekeeping(database),
            Periodic("hold sweep", settings.hold_sweep_seconds, holds.sweep),
            Consumer("product", "order", order_events(holds), bus=bus, units=units, linger=_SALES_LINGER_S),
            Server(
                settings,
                {
                    "commerce.product.v1.ProductService": ProductService(catalogue),
                    "commerce.product.v1.InventoryService": InventoryService(inventory, holds),
                },
                checks=[database.check],
            ),
        ],
    )
