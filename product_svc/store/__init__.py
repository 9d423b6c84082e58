"""The product service's tables and statements: the only SQL of the service."""

from product_svc.store.catalogue import add_product, get_products, list_products
from product_svc.store.holds import (
    HoldKeyTaken,
    add_holds,
    expired_holds,
    get_holds,
    live_holds,
    postpone_holds,
    write_hold_states,
)
from product_svc.store.stock import (
    add_movements,
    change_stocks,
    get_offers,
    get_stock,
    list_movements,
    lock_offers,
    lock_stocks,
    peek_stocks,
    set_aside,
)
from product_svc.store.tables import metadata

__all__ = [
    "HoldKeyTaken",
    "add_holds",
    "add_movements",
    "add_product",
    "change_stocks",
    "expired_holds",
    "get_holds",
    "get_offers",
    "get_products",
    "get_stock",
    "list_movements",
    "list_products",
    "live_holds",
    "lock_offers",
    "lock_stocks",
    "metadata",
    "peek_stocks",
    "postpone_holds",
    "set_aside",
    "write_hold_states",
]
