"""The order service's tables and statements: the only SQL of the service."""

from order_svc.store.orders import OrderStore
from order_svc.store.tables import metadata

__all__ = ["OrderStore", "metadata"]
