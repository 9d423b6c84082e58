"""What the product service can do. Transactions begin and end here."""

from product_svc.usecases.catalogue import Catalogue
from product_svc.usecases.holds import ORDER_CANCELLED, ORDER_CONFIRMED, Holds, HoldStates
from product_svc.usecases.inventory import Inventory

__all__ = ["ORDER_CANCELLED", "ORDER_CONFIRMED", "Catalogue", "HoldStates", "Holds", "Inventory"]
