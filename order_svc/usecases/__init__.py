"""What the order service can do. Transactions begin and end here, and none is open while another service is asked."""

from order_svc.usecases.cancellation import Cancellation
from order_svc.usecases.drafts import Drafts
from order_svc.usecases.erasure import Erasures
from order_svc.usecases.fulfilment import Fulfilment
from order_svc.usecases.holds import Holds, UnusedHolds
from order_svc.usecases.payments import Payments
from order_svc.usecases.placement import Placement, Placing
from order_svc.usecases.reading import Reading
from order_svc.usecases.timeline import Timeline
from order_svc.usecases.watching import Watching

__all__ = [
    "Cancellation",
    "Drafts",
    "Erasures",
    "Fulfilment",
    "Holds",
    "Payments",
    "Placement",
    "Placing",
    "Reading",
    "Timeline",
    "UnusedHolds",
    "Watching",
]
