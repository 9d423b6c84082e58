"""What the order service can do. Transactions begin and end here, and none is open while another service is asked."""

from order_svc.usecases.placement import Placed, Placement, Placing
from order_svc.usecases.reading import Reading
from order_svc.usecases.saga import Saga
from order_svc.usecases.unused_holds import UnusedHolds

__all__ = ["Placed", "Placement", "Placing", "Reading", "Saga", "UnusedHolds"]
