"""The order service's tables and statements: the only SQL of the service."""

from order_svc.store.erasures import ErasureStore
from order_svc.store.orders import OrderStore
from order_svc.store.tables import metadata

__all__ = ["ErasureStore", "OrderStore", "metadata"]
