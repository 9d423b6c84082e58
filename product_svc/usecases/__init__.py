"""What the product service can do. Transactions begin and end here."""

from product_svc.usecases.catalogue import Catalogue
from product_svc.usecases.holds import Holds
from product_svc.usecases.inventory import Inventory
from product_svc.usecases.reservations import Reservations
from product_svc.usecases.sweep import HoldSweep, Orders
from product_svc.usecases.watching import Watching

__all__ = ["Catalogue", "HoldSweep", "Holds", "Inventory", "Orders", "Reservations", "Watching"]
