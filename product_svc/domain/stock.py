"""Stock, and the ledger of its movements.

Stock is two numbers, `0 <= reserved <= on_hand`. A hold changes `reserved` only. A sale, a receipt, an adjustment and a
return change `on_hand`, and each of them is a row of the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from mesh.errors import FailedPrecondition
from product_svc.domain.holds import Hold, HoldState
from product_svc.domain.products import Product, ProductNotFound

STOCK_LIMIT = 1_000_000_000
"""The maximum of `on_hand`."""


class StockInsufficient(FailedPrecondition):
    """The available quantity is smaller than the requested one."""

    reason = "STOCK_INSUFFICIENT"

    def __init__(self, product_id: UUID, requested: int, available: int) -> None:
        super().__init__(
            f"{requested} of product {product_id} asked for, {available} available",
            metadata={"productId": str(product_id), "requested": str(requested), "available": str(available)},
        )


class StockLimitExceeded(FailedPrecondition):
    """The change would make `on_hand` larger than `STOCK_LIMIT`."""

    reason = "STOCK_LIMIT_EXCEEDED"

    def __init__(self, product_id: UUID) -> None:
        super().__init__(
            f"product {product_id} may have {STOCK_LIMIT} on hand at most", metadata={"productId": str(product_id)}
        )


class MovementReason(StrEnum):
    """The reason for a change of `on_hand`."""

    RECEIPT = "RECEIPT"
    ADJUSTMENT = "ADJUSTMENT"
    SALE = "SALE"
    RETURN = "RETURN"


class Stock(NamedTuple):
    """The stock of a product."""

    product_id: UUID
    on_hand: int
    reserved: int
    """The part of `on_hand` that orders hold."""
    update_time: datetime
    version: int
    """It grows with every movement."""
    low_stock_threshold: int = 0
    """Stock is low when `on_hand` falls to this."""

    @property
    def available(self) -> int:
        """The quantity that can be sold now."""
        return self.on_hand - self.reserved

    def sell(self, quantity: int, now: datetime) -> Stock:
        """The stock after a held quantity was sold."""
        on_hand, reserved = self.on_hand - quantity, self.reserved - quantity
        return Stock(self.product_id, on_hand, reserved, now, self.version + 1, self.low_stock_threshold)

    def release(self, quantity: int, now: datetime) -> Stock:
        """The stock after a held quantity became available again."""
        reserved = self.reserved - quantity
        return Stock(self.product_id, self.on_hand, reserved, now, self.version, self.low_stock_threshold)

    def move(self, delta: int, now: datetime) -> Stock:
        """The stock after a receipt, an adjustment or a return.

        Raises StockInsufficient when fewer would be on hand than orders hold, and StockLimitExceeded.
        """
        if self.available + delta < 0:
            raise StockInsufficient(self.product_id, -delta, self.available)
        if self.on_hand + delta > STOCK_LIMIT:
            raise StockLimitExceeded(self.product_id)
        on_hand = self.on_hand + delta
        return Stock(self.product_id, on_hand, self.reserved, now, self.version + 1, self.low_stock_threshold)


class Movement(NamedTuple):
    """One change of `on_hand`: a row of the ledger, which never changes."""

    id: UUID
    product_id: UUID
    delta: int
    on_hand_after: int
    reason: MovementReason
    order_id: UUID | None
    note: str
    create_time: datetime
    actor: str


@dataclass(frozen=True, slots=True)
class StockChange:
    """A change of stock that staff request: a difference, or a new quantity on hand."""

    product_id: UUID
    delta: int | None
    set_to: int | None
    reason: MovementReason
    note: str

    def delta_from(self, stock: Stock) -> int:
        """The difference to the stock as it is now."""
        if self.delta is not None:
            return self.delta
        return (self.set_to or 0) - stock.on_hand


class StockChanged(NamedTuple):
    """The stock of a product has changed by these movements."""

    stock: Stock
    movements: Sequence[Movement]


class StockLow(NamedTuple):
    """The stock of a product has fallen to `threshold` or below it."""

    stock: Stock
    threshold: int


class Stockroom:
    """The stock of some products while it is changed, and the movements that change it.

    A hundred sales of one product read its row once and write it once.
    """

    def __init__(self, stocks: Iterable[Stock], *, actor: str, now: datetime, new_id: Callable[[], UUID]) -> None:
        """`actor` is the author of the movements, `new_id` gives them their ids."""
        self.now = now
        self.movements: list[Movement] = []
        """The movements so far, in order."""
        self._known = {stock.product_id: stock for stock in stocks}
        self._stocks = dict(self._known)
        self._actor = actor
        self._new_id = new_id

    def stock(self, product_id: UUID) -> Stock:
        """The stock of a product after the changes so far. Raises ProductNotFound."""
        try:
            return self._stocks[product_id]
        except KeyError:
            raise ProductNotFound(product_id) from None

    def change(self, change: StockChange) -> Stock:
        """Change stock as staff request; the stock then.

        Raises ProductNotFound, StockInsufficient when orders hold more than would be left, or StockLimitExceeded.
        """
        stock = self.stock(change.product_id)
        if delta := change.delta_from(stock):
            stock = self._record(stock.move(delta, self.now), delta, change.reason, None, change.note)
        return stock

    def apply(self, hold: Hold) -> None:
        """Apply the state that a hold has come to: its stock is sold, returned or available again."""
        for line in hold.lines:
            stock, quantity = self.stock(line.product_id), line.quantity
            match hold.state:
                case HoldState.COMMITTED:
                    self._record(stock.sell(quantity, self.now), -quantity, MovementReason.SALE, hold.order_id)
                case HoldState.RETURNED:
                    self._record(stock.move(quantity, self.now), quantity, MovementReason.RETURN, hold.order_id)
                case HoldState.RELEASED:
                    self._stocks[line.product_id] = stock.release(quantity, self.now)
                case HoldState.HELD:
                    raise ValueError(f"the hold of order {hold.order_id} has not been resolved")

    @property
    def changes(self) -> list[tuple[Stock, Stock]]:
        """The stocks that have changed, as (known, new), in primary-key order."""
        return [(known, new) for key, new in sorted(self._stocks.items()) if new is not (known := self._known[key])]

    def facts(self) -> list[StockChanged | StockLow]:
        """The events of the movements so far: one of the change of each stock, and one of each that has become low."""
        facts: list[StockChanged | StockLow] = []
        by_product: dict[UUID, list[Movement]] = {}
        for movement in self.movements:
            by_product.setdefault(movement.product_id, []).append(movement)
        for product_id, movements in by_product.items():
            stock = self._stocks[product_id]
            facts.append(StockChanged(stock, movements))
            if stock.on_hand <= stock.low_stock_threshold < self._known[product_id].on_hand:
                facts.append(StockLow(stock, stock.low_stock_threshold))
        return facts

    def _record(self, stock: Stock, delta: int, reason: MovementReason, order_id: UUID | None, note: str = "") -> Stock:
        self._stocks[stock.product_id] = stock
        self.movements.append(
            Movement(
                self._new_id(), stock.product_id, delta, stock.on_hand, reason, order_id, note, self.now, self._actor
            )
        )
        return stock


def opening_stock(product: Product, *, actor: str, new_id: Callable[[], UUID]) -> tuple[Stock, list[Movement]]:
    """The stock of a new product, and the movement that led to it; none if the product has no stock yet."""
    now, quantity = product.create_time, product.available
    stock = Stock(product.id, quantity, 0, now, 1, product.low_stock_threshold)
    if not quantity:
        return stock, []
    return stock, [
        Movement(new_id(), product.id, quantity, quantity, MovementReason.RECEIPT, None, "initial stock", now, actor)
    ]
