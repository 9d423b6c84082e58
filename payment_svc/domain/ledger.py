"""The ledger: an entry for each movement of money."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from uuid import UUID


class EntryType(StrEnum):
    """What sort of row of the ledger it is. The amounts of a payment are the sums of captures and refunds only."""

    CAPTURE = "CAPTURE"
    REFUND = "REFUND"
    VOID = "VOID"
    """The charge was voided. No money moved."""
    FEE = "FEE"
    """The provider has kept it."""
    DISPUTE = "DISPUTE"
    """The customer disputes it at the bank."""
    DIFFERENCE = "DIFFERENCE"
    """The books and the provider's record differ by it. No money is booked."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the ledger, never changed."""

    id: UUID
    payment_id: UUID
    type: EntryType
    amount: Decimal
    provider_reference: str
    note: str
    create_time: datetime
    actor: str
    trace_id: str
    """The trace of the request that caused the movement; empty for entries made before it was recorded."""
