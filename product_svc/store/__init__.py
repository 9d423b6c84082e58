"""The product service's tables and statements: the only SQL of the service."""

from product_svc.store.holds import APPEND_HISTORY, HoldKeyTaken, HoldStore
from product_svc.store.lists import ProductLists
from product_svc.store.products import ProductStore
from product_svc.store.stock import StockStore
from product_svc.store.tables import metadata

__all__ = ["APPEND_HISTORY", "HoldKeyTaken", "HoldStore", "ProductLists", "ProductStore", "StockStore", "metadata"]
