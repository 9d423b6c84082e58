"""Values of the product domain, for tests that care about few of their fields."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID, uuid4

from product_svc.domain import Hold, HoldLine, HoldState, Offer, ProductState, Reservation, Stock, Total

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
EARLIER = datetime(2026, 4, 1, 12, tzinfo=UTC)


def product_id(number: int) -> UUID:
    """Ids in the order of their numbers."""
    return UUID(int=number)


def stock(number: int = 1, *, on_hand: int = 10, reserved: int = 0, version: int = 1) -> Stock:
    """The stock of product `number`."""
    return Stock(product_id(number), on_hand, reserved, EARLIER, version)


def offer(
    number: int = 1, *, price: str = "12.5", currency: str = "EUR", state: ProductState = ProductState.ACTIVE
) -> Offer:
    """The offer of product `number`."""
    return Offer(product_id(number), f"SKU-{number}", f"Thing {number}", Decimal(price), currency, state, version=3)


def reservation(
    quantities: Mapping[int, int], *, key: bytes | None = None, expected_total: Total | None = None
) -> Reservation:
    """A request for quantities of products, by number."""
    by_id = {product_id(number): quantity for number, quantity in quantities.items()}
    return Reservation(uuid4(), key or uuid4().bytes, uuid4(), NOW, by_id, expected_total)


def hold(quantities: Mapping[int, int], state: HoldState = HoldState.HELD) -> Hold:
    """A hold on quantities of products, by number."""
    lines = (
        HoldLine(product_id(number), quantity, f"SKU-{number}", f"Thing {number}", Decimal("12.5"), "EUR")
        for number, quantity in quantities.items()
    )
    return Hold(uuid4(), uuid4().bytes, uuid4(), NOW, state, tuple(lines))
