"""Payments, their refunds and the ledger: the facts, and the only ways in which they change."""

from payment_svc.domain.errors import (
    AmountInvalid,
    PaymentNotFound,
    PaymentStateRefused,
    ProviderContradiction,
    ProviderNotFound,
)
from payment_svc.domain.ledger import Entry, EntryType
from payment_svc.domain.payments import (
    FIRST_BACKOFF,
    LONGEST_BACKOFF,
    PAYMENT_METHOD_NOT_FOUND,
    PROVIDER_UNKNOWN,
    Due,
    NewPayment,
    OrderCancelling,
    OrderPlaced,
    Payment,
    PaymentCaptured,
    PaymentDeclined,
    PaymentRefunded,
    PaymentVoided,
)
from payment_svc.domain.statuses import CHARGED, HOLDING, UNCHARGED, PaymentStatus

__all__ = [
    "CHARGED",
    "FIRST_BACKOFF",
    "HOLDING",
    "LONGEST_BACKOFF",
    "PAYMENT_METHOD_NOT_FOUND",
    "PROVIDER_UNKNOWN",
    "UNCHARGED",
    "AmountInvalid",
    "Due",
    "Entry",
    "EntryType",
    "NewPayment",
    "OrderCancelling",
    "OrderPlaced",
    "Payment",
    "PaymentCaptured",
    "PaymentDeclined",
    "PaymentNotFound",
    "PaymentRefunded",
    "PaymentStateRefused",
    "PaymentStatus",
    "PaymentVoided",
    "ProviderContradiction",
    "ProviderNotFound",
]
