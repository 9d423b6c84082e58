"""What the payment service can do. Transactions begin and end here, and none is open while a provider is asked."""

from payment_svc.usecases.orders import Orders
from payment_svc.usecases.outcomes import Outcomes
from payment_svc.usecases.payments import Payments
from payment_svc.usecases.reconciliation import Reconciliation
from payment_svc.usecases.refunds import RefundOutcomes, Refunds
from payment_svc.usecases.webhooks import Webhooks

__all__ = ["Orders", "Outcomes", "Payments", "Reconciliation", "RefundOutcomes", "Refunds", "Webhooks"]
