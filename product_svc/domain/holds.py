"""Holds: stock that is kept for orders.

(none) ── reserve ──▶ HELD ── commit ──▶ COMMITTED ── release ──▶ RETURNED
                       └───── release ──▶ RELEASED
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from mesh.errors import Internal


class HoldMissing(Internal):
    """A confirmed order has no hold: a fault between the services, never the customer's."""

    def __init__(self, order_id: UUID) -> None:
        super().__init__(f"order {order_id} is confirmed and has no hold", metadata={"orderId": str(order_id)})


class HoldState(StrEnum):
    """The state of a hold."""

    HELD = "HELD"
    COMMITTED = "COMMITTED"
    RELEASED = "RELEASED"
    RETURNED = "RETURNED"


class HoldDecision(StrEnum):
    """The answer of the order service about a hold."""

    KEEP = "KEEP"
    COMMIT = "COMMIT"
    RELEASE = "RELEASE"


HoldStates = dict[UUID, HoldState]
"""The states of holds, by order."""

_COMMIT = {HoldState.HELD: HoldState.COMMITTED}
_RELEASE = {HoldState.HELD: HoldState.RELEASED, HoldState.COMMITTED: HoldState.RETURNED}


class HoldLine(NamedTuple):
    """One product of a hold, with the conditions that the customer accepted."""

    product_id: UUID
    quantity: int
    sku: str
    name: str
    unit_price: Decimal
    currency: str


class Hold(NamedTuple):
    """Stock that is kept for an order."""

    order_id: UUID
    key: bytes
    """Identifies the attempt to place the order: the same for all its retries."""
    customer_id: UUID
    expire_time: datetime
    state: HoldState
    lines: tuple[HoldLine, ...]

    @property
    def step(self) -> str:
        """The name of the last step in its history, such as `hold.committed`."""
        return f"hold.{self.state.lower()}"

    def commit(self) -> Hold:
        """The hold as a sale; the hold itself if it is committed already, or was released: that is final."""
        return self._after(_COMMIT)

    def release(self) -> Hold:
        """The hold with its stock free again, or returned if it was sold; the hold itself if that is done already."""
        return self._after(_RELEASE)

    def _after(self, transitions: Mapping[HoldState, HoldState]) -> Hold:
        if (state := transitions.get(self.state)) is None:
            return self
        return Hold(self.order_id, self.key, self.customer_id, self.expire_time, state, self.lines)


class Resolution(NamedTuple):
    """The result of committing and releasing holds."""

    holds: Mapping[UUID, Hold]
    """The holds as they are now, by order."""
    steps: list[Hold]
    """The holds after each of their transitions, in order."""

    @property
    def states(self) -> HoldStates:
        """The states of the holds."""
        return {order_id: hold.state for order_id, hold in self.holds.items()}


def resolve(holds: Mapping[UUID, Hold], *, commit: Iterable[UUID], release: Iterable[UUID]) -> Resolution:
    """Commit the holds of some orders, then release those of others. Orders without a hold are passed over."""
    now, steps = dict(holds), list[Hold]()
    for order_ids, transition in ((commit, Hold.commit), (release, Hold.release)):
        for order_id in order_ids:
            if (hold := now.get(order_id)) is not None and (new := transition(hold)) is not hold:
                now[order_id] = new
                steps.append(new)
    return Resolution(now, steps)
