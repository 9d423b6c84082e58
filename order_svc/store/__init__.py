"""The order service's tables and statements: the only SQL of the service."""

from order_svc.store.erasures import ErasureStore
from order_svc.store.orders import APPEND_HISTORY, OrderStore
from order_svc.store.tables import metadata

__all__ = ["APPEND_HISTORY", "ErasureStore", "OrderStore", "metadata"]
