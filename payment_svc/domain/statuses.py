"""The statuses of payments."""

from __future__ import annotations

from enum import StrEnum


class PaymentStatus(StrEnum):
    """Where a payment stands."""

    PENDING = "PENDING"
    REQUIRES_ACTION = "REQUIRES_ACTION"
    CAPTURED = "CAPTURED"
    DECLINED = "DECLINED"
    VOIDED = "VOIDED"
    PARTIALLY_REFUNDED = "PARTIALLY_REFUNDED"
    REFUNDED = "REFUNDED"


OPEN = frozenset({PaymentStatus.PENDING, PaymentStatus.REQUIRES_ACTION})
"""The statuses without an outcome."""
HOLDING = frozenset({PaymentStatus.CAPTURED, PaymentStatus.PARTIALLY_REFUNDED})
"""The statuses in which we have money of the customer."""
CHARGED = HOLDING | {PaymentStatus.REFUNDED}
"""The statuses in which money was taken, whatever became of it."""
UNCHARGED = frozenset({PaymentStatus.DECLINED, PaymentStatus.VOIDED})
"""The final statuses in which money never moved."""
