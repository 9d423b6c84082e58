"""Payment providers: one small protocol, the bounds of its calls, and a folder or module for each provider."""

from payment_svc.providers.bounded import Bounded
from payment_svc.providers.protocol import (
    Absent,
    Approved,
    Charge,
    Declined,
    Inconclusive,
    Outcome,
    Provider,
    ProviderUnavailable,
    Refunded,
    RefundOutcome,
    RefundRequest,
    Refused,
    Unknown,
    Voided,
)

__all__ = [
    "Absent",
    "Approved",
    "Bounded",
    "Charge",
    "Declined",
    "Inconclusive",
    "Outcome",
    "Provider",
    "ProviderUnavailable",
    "RefundOutcome",
    "RefundRequest",
    "Refunded",
    "Refused",
    "Unknown",
    "Voided",
]
