"""The payment service's tables and statements: the only SQL of the service, but for the sandbox's own record."""

from payment_svc.store.payments import APPEND_HISTORY, PaymentStore, metadata
from payment_svc.store.reconciliation import ReconciliationStore
from payment_svc.store.refunds import RefundStore
from payment_svc.store.webhooks import WebhookStore

__all__ = ["APPEND_HISTORY", "PaymentStore", "ReconciliationStore", "RefundStore", "WebhookStore", "metadata"]
