"""The statuses of an order, and the only ways in which they change.

              cancel, 30 days
    DRAFT ───────────────────────▶ CANCELLED
     │ ▲ refused                       ▲
     ▼ │            cancel, 1 day      │
    PLACING ───────────────────────────┘
     │ placed
     ▼      place                     captured
    (none) ──────▶ PENDING ────────────────────────▶ CONFIRMED ─▶ SHIPPED ─▶ DELIVERED
                    │  │ declined                       │ cancel
                    │  └──────────────▶ CANCELLED       ▼
                    └─ cancel, deadline ─────────▶ CANCELLING ── declined, voided, refunded ─▶ CANCELLED

An order in CANCELLING waits for the payment service to say what became of the money, and only then is CANCELLED.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Status(StrEnum):
    """Where an order is in its life."""

    DRAFT = "DRAFT"
    PLACING = "PLACING"
    """A draft whose placing has begun: its stock may be held, so its items stay as they are. Callers see a draft."""
    PENDING = "PENDING"
    CONFIRMED = "CONFIRMED"
    SHIPPED = "SHIPPED"
    DELIVERED = "DELIVERED"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"
    ABANDONED = "ABANDONED"
    """Never placed, and never will be: its orphaned hold was released. No caller sees such an order."""


DRAFTS = frozenset({Status.DRAFT, Status.PLACING})
FINAL = frozenset({Status.DELIVERED, Status.CANCELLED})
AT_REST = FINAL | {Status.CONFIRMED, Status.SHIPPED}
"""Statuses that only a person changes."""


class CancelReason(StrEnum):
    """Why an order was cancelled."""

    PAYMENT_DECLINED = "PAYMENT_DECLINED"
    PAYMENT_TIMEOUT = "PAYMENT_TIMEOUT"
    CUSTOMER_REQUEST = "CUSTOMER_REQUEST"
    STAFF_REQUEST = "STAFF_REQUEST"
    DRAFT_EXPIRED = "DRAFT_EXPIRED"


class Cause(StrEnum):
    """What moves an order."""

    EDIT = "edit"
    PLACE = "place"
    PLACED = "placed"
    REFUSED = "placing refused"
    CANCEL = "cancel"
    SHIP = "ship"
    DELIVER = "deliver"
    CAPTURED = "payment captured"
    DECLINED = "payment declined"
    VOIDED = "payment voided"
    REFUNDED = "payment refunded"
    PARTLY_REFUNDED = "payment partly refunded"


TRANSITIONS: Mapping[tuple[Status, Cause], Status] = {
    (Status.DRAFT, Cause.EDIT): Status.DRAFT,
    (Status.DRAFT, Cause.CANCEL): Status.CANCELLED,
    (Status.DRAFT, Cause.PLACE): Status.PLACING,
    (Status.PLACING, Cause.PLACED): Status.PENDING,
    (Status.PLACING, Cause.REFUSED): Status.DRAFT,
    (Status.PLACING, Cause.CANCEL): Status.CANCELLED,
    (Status.PENDING, Cause.CAPTURED): Status.CONFIRMED,
    (Status.PENDING, Cause.DECLINED): Status.CANCELLED,
    (Status.PENDING, Cause.CANCEL): Status.CANCELLING,
    (Status.CONFIRMED, Cause.CANCEL): Status.CANCELLING,
    (Status.CONFIRMED, Cause.SHIP): Status.SHIPPED,
    (Status.SHIPPED, Cause.DELIVER): Status.DELIVERED,
    (Status.CANCELLING, Cause.DECLINED): Status.CANCELLED,
    (Status.CANCELLING, Cause.VOIDED): Status.CANCELLED,
    (Status.CANCELLING, Cause.REFUNDED): Status.CANCELLED,
}
"""All changes there are. What is in neither table is a fault, and raises."""

UNMOVED: frozenset[tuple[Status, Cause]] = frozenset(
    {
        # Asked for again.
        (Status.PLACING, Cause.PLACE),
        (Status.CANCELLING, Cause.CANCEL),
        (Status.CANCELLED, Cause.CANCEL),
        # A late capture: the payment service has been told to cancel, and refunds it.
        (Status.CANCELLING, Cause.CAPTURED),
        # Answers that come twice, or after the one that counted.
        (Status.CANCELLED, Cause.CAPTURED),
        (Status.CANCELLED, Cause.DECLINED),
        (Status.CANCELLED, Cause.VOIDED),
        (Status.CANCELLED, Cause.REFUNDED),
        # The rest of the money is still to be refunded.
        (Status.CANCELLING, Cause.PARTLY_REFUNDED),
        (Status.CANCELLED, Cause.PARTLY_REFUNDED),
        # Money refunded for goods that stay sold.
        (Status.CONFIRMED, Cause.PARTLY_REFUNDED),
        (Status.SHIPPED, Cause.PARTLY_REFUNDED),
        (Status.DELIVERED, Cause.PARTLY_REFUNDED),
        (Status.CONFIRMED, Cause.REFUNDED),
        (Status.SHIPPED, Cause.REFUNDED),
        (Status.DELIVERED, Cause.REFUNDED),
    }
)
"""Requests and events that are valid and change nothing."""


class HoldDecision(StrEnum):
    """What an order wants of its hold."""

    KEEP = "KEEP"
    COMMIT = "COMMIT"
    RELEASE = "RELEASE"


HOLD_DECISIONS: Mapping[Status, HoldDecision] = {
    # A draft may be placed at any time, and would use the hold of an attempt that failed. Cancelling it releases it.
    Status.DRAFT: HoldDecision.KEEP,
    Status.PLACING: HoldDecision.KEEP,
    Status.PENDING: HoldDecision.KEEP,
    Status.CANCELLING: HoldDecision.KEEP,
    Status.CONFIRMED: HoldDecision.COMMIT,
    Status.SHIPPED: HoldDecision.COMMIT,
    Status.DELIVERED: HoldDecision.COMMIT,
    Status.CANCELLED: HoldDecision.RELEASE,
    Status.ABANDONED: HoldDecision.RELEASE,
}
