"""Products, their stock, and the holds that orders have on it.

Stock is two numbers: `0 <= reserved <= on_hand`. A hold moves `reserved` only; a sale, a receipt, an adjustment and a
return move `on_hand`, and each leaves a row in the ledger.

    (none) ── hold ──▶ HELD ── commit ──▶ COMMITTED ── release ──▶ RETURNED
                        └───── release ──▶ RELEASED
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Context, Decimal
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from mesh.errors import AlreadyExists, FailedPrecondition, Internal, InvalidArgument, NotFound, Violation

STOCK_LIMIT = 1_000_000_000
"""The most that `on_hand` may be."""
TOTAL_LIMIT = Decimal(10**15 - 1)
"""The largest total of a hold, in units of its currency."""
_EXACT = Context(prec=64)
"""Wide enough for every sum of lines, whatever the prices: a total is never rounded."""


class ProductNotFound(NotFound):
    """There is no product with this id."""

    reason = "PRODUCT_NOT_FOUND"

    def __init__(self, product_id: UUID) -> None:
        super().__init__(f"there is no product {product_id}", metadata={"productId": str(product_id)})


class SkuTaken(AlreadyExists):
    """Another product has this SKU."""

    reason = "SKU_TAKEN"

    def __init__(self, sku: str) -> None:
        super().__init__(f"the SKU {sku} is taken", metadata={"sku": sku})


class ProductArchived(FailedPrecondition):
    """The product is no longer sold."""

    reason = "PRODUCT_ARCHIVED"

    def __init__(self, product_id: UUID) -> None:
        super().__init__(f"product {product_id} is archived", metadata={"productId": str(product_id)})


class StockInsufficient(FailedPrecondition):
    """Less can be sold than was asked for."""

    reason = "STOCK_INSUFFICIENT"

    def __init__(self, product_id: UUID, requested: int, available: int) -> None:
        super().__init__(
            f"{requested} of product {product_id} asked for, {available} available",
            metadata={"productId": str(product_id), "requested": str(requested), "available": str(available)},
        )


class CurrencyMismatch(InvalidArgument):
    """The products of one hold are sold in different currencies."""

    reason = "CURRENCY_MISMATCH"

    def __init__(self, currencies: Sequence[str]) -> None:
        super().__init__(
            f"one order, one currency: these products are sold in {', '.join(currencies)}",
            metadata={"currencies": ",".join(currencies)},
            violations=[Violation("lines", "are sold in different currencies")],
        )


class TotalTooLarge(InvalidArgument):
    """The lines of a hold come to more than `TOTAL_LIMIT`."""

    def __init__(self, total: Total) -> None:
        super().__init__(
            "the request is not valid",
            violations=[Violation("lines", f"come to {total}: must be at most {TOTAL_LIMIT}")],
        )


class PriceChanged(FailedPrecondition):
    """The lines of a hold come to another total than the caller expects."""

    reason = "PRICE_CHANGED"

    def __init__(self, expected: Total, total: Total) -> None:
        super().__init__(
            f"the lines come to {total}, not {expected}",
            metadata={"expectedTotal": str(expected), "total": str(total)},
        )


class StockLimitExceeded(FailedPrecondition):
    """The change would take the stock above what one product may have."""

    reason = "STOCK_LIMIT_EXCEEDED"

    def __init__(self, product_id: UUID) -> None:
        super().__init__(
            f"product {product_id} may have {STOCK_LIMIT} on hand at most", metadata={"productId": str(product_id)}
        )


class HoldKeyReused(AlreadyExists):
    """The key already holds other lines, for an attempt that may still be under way."""

    reason = "IDEMPOTENCY_KEY_REUSED"

    def __init__(self) -> None:
        super().__init__("this idempotency key was used for another order; take a new key for a new intent")


class HoldMissing(Internal):
    """There is no hold for an order that must have one: a fault between the services, never the customer's."""

    def __init__(self, order_id: UUID) -> None:
        super().__init__(f"order {order_id} is confirmed and has no hold", metadata={"orderId": str(order_id)})


class ProductState(StrEnum):
    """Whether a product is sold."""

    ACTIVE = "ACTIVE"
    ARCHIVED = "ARCHIVED"


class MovementReason(StrEnum):
    """Why `on_hand` changed."""

    RECEIPT = "RECEIPT"
    ADJUSTMENT = "ADJUSTMENT"
    SALE = "SALE"
    RETURN = "RETURN"


class HoldState(StrEnum):
    """Where a hold is in its life."""

    HELD = "HELD"
    COMMITTED = "COMMITTED"
    RELEASED = "RELEASED"
    RETURNED = "RETURNED"


@dataclass(frozen=True, slots=True)
class Product:
    """Something that is sold. `available` is what can be sold now; `version` grows with every change of the product."""

    id: UUID
    sku: str
    name: str
    description: str
    price: Decimal
    currency: str
    state: ProductState
    available: int
    create_time: datetime
    update_time: datetime
    version: int


class Stock(NamedTuple):
    """What is there of a product, and how much of it orders hold. `version` grows with every movement."""

    product_id: UUID
    on_hand: int
    reserved: int
    update_time: datetime
    version: int

    @property
    def available(self) -> int:
        """What can be sold now."""
        return self.on_hand - self.reserved

    def hold(self, quantity: int) -> Stock:
        """Set `quantity` aside. Raises StockInsufficient."""
        if quantity > self.available:
            raise StockInsufficient(self.product_id, quantity, self.available)
        return self._with(self.on_hand, self.reserved + quantity, self.version)

    def release(self, quantity: int) -> Stock:
        """Give back what was set aside."""
        return self._with(self.on_hand, self.reserved - quantity, self.version)

    def sell(self, quantity: int) -> Stock:
        """What was set aside leaves the house."""
        return self._with(self.on_hand - quantity, self.reserved - quantity, self.version + 1)

    def move(self, delta: int) -> Stock:
        """A receipt, an adjustment or a return. Raises StockInsufficient when it would take what orders hold."""
        if self.available + delta < 0:
            raise StockInsufficient(self.product_id, -delta, self.available)
        if self.on_hand + delta > STOCK_LIMIT:
            raise StockLimitExceeded(self.product_id)
        return self._with(self.on_hand + delta, self.reserved, self.version + 1)

    def _with(self, on_hand: int, reserved: int, version: int) -> Stock:
        # Each line of each order comes here twice: `_replace` takes three times as long.
        return Stock(self.product_id, on_hand, reserved, self.update_time, version)


class Movement(NamedTuple):
    """One change of `on_hand`: a row of the ledger, never changed."""

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
class NewProduct:
    """What staff give to make a product."""

    sku: str
    name: str
    description: str
    price: Decimal
    currency: str
    initial_stock: int


@dataclass(frozen=True, slots=True)
class StockChange:
    """What staff ask for: a difference, or a new absolute number."""

    product_id: UUID
    delta: int | None
    set_to: int | None
    reason: MovementReason
    note: str

    def delta_from(self, stock: Stock) -> int:
        """The difference that this asks for, given the stock now."""
        if self.delta is not None:
            return self.delta
        return (self.set_to or 0) - stock.on_hand


class Offer(NamedTuple):
    """What a product is sold as, in this version of it; copied into the hold."""

    product_id: UUID
    sku: str
    name: str
    unit_price: Decimal
    currency: str
    state: ProductState
    version: int

    def line(self, quantity: int) -> HoldLine:
        """So many of it. Raises ProductArchived."""
        if self.state is ProductState.ARCHIVED:
            raise ProductArchived(self.product_id)
        return HoldLine(self.product_id, quantity, self.sku, self.name, self.unit_price, self.currency)


class HoldLine(NamedTuple):
    """One product of a hold, with the offer that the customer accepted."""

    product_id: UUID
    quantity: int
    sku: str
    name: str
    unit_price: Decimal
    currency: str


class Total(NamedTuple):
    """An amount in whole units of a currency; the currency of a total of zero may be empty, which means any."""

    amount: Decimal
    currency: str

    def __str__(self) -> str:
        return f"{self.amount.normalize(_EXACT):f} {self.currency}".rstrip()

    @classmethod
    def of(cls, lines: Sequence[HoldLine]) -> Total:
        """The total of these lines, one at least. Raises CurrencyMismatch or TotalTooLarge."""
        currency = lines[0].currency
        amount = Decimal(0)
        for line in lines:
            if line.currency != currency:
                raise CurrencyMismatch(sorted({line.currency for line in lines}))
            amount = _EXACT.add(amount, _EXACT.multiply(line.unit_price, line.quantity))
        total = cls(amount, currency)
        if amount > TOTAL_LIMIT:
            raise TotalTooLarge(total)
        return total

    def require(self, expected: Total | None) -> None:
        """Raise PriceChanged unless this total is the expected one, or none is expected."""
        if expected is None:
            return
        if self.amount != expected.amount or expected.currency not in {"", self.currency}:
            raise PriceChanged(expected, self)


class Hold(NamedTuple):
    """Stock set aside for an order."""

    order_id: UUID
    key: bytes
    customer_id: UUID
    expire_time: datetime
    state: HoldState
    lines: tuple[HoldLine, ...]


class Reservation(NamedTuple):
    """A wish to hold stock: `key` is the caller's identity of the attempt, the same for every retry of it."""

    order_id: UUID
    key: bytes
    customer_id: UUID
    expire_time: datetime
    quantities: Mapping[UUID, int]
    expected_total: Total | None = None
    """The total without which nothing is to be held; any will do when there is none."""

    def adopts(self, hold: Hold) -> Hold:
        """The hold that an earlier attempt left. Raises HoldKeyReused when it is for other lines, or PriceChanged."""
        if {line.product_id: line.quantity for line in hold.lines} != self.quantities:
            raise HoldKeyReused
        Total.of(hold.lines).require(self.expected_total)
        return hold

    def lines(self, offers: Mapping[UUID, Offer]) -> list[HoldLine]:
        """What it would hold, at these offers.

        Raises ProductNotFound, ProductArchived, CurrencyMismatch, TotalTooLarge or PriceChanged.
        """
        lines = []
        for product_id, quantity in self.quantities.items():
            if product_id not in offers:
                raise ProductNotFound(product_id)
            lines.append(offers[product_id].line(quantity))
        Total.of(lines).require(self.expected_total)
        return lines

    def hold(self, lines: Iterable[HoldLine]) -> Hold:
        """What is held for it, once the stock of these lines is set aside."""
        return Hold(self.order_id, self.key, self.customer_id, self.expire_time, HoldState.HELD, tuple(lines))


class Shelf:
    """Stock worked on in memory: one reservation after the other, all lines of one or none.

    A hundred buyers of one product cost one row read and one row written.
    """

    def __init__(self, stocks: Sequence[Stock], offers: Sequence[Offer]) -> None:
        self._before = {stock.product_id: stock for stock in stocks}
        self._now = dict(self._before)
        self._offers = {offer.product_id: offer for offer in offers}
        self.holds: list[Hold] = []
        """What was held on it, in that order."""

    def stock(self, product_id: UUID) -> Stock:
        """The stock of a product as it stands after the work so far. Raises ProductNotFound."""
        try:
            return self._now[product_id]
        except KeyError:
            raise ProductNotFound(product_id) from None

    def put(self, stock: Stock) -> None:
        """Set the stock of a product."""
        self._now[stock.product_id] = stock

    def hold(self, reservation: Reservation) -> Hold:
        """Hold all lines, or none. Raises what `Reservation.lines` raises, or StockInsufficient."""
        lines = reservation.lines(self._offers)
        for stock in [self.stock(line.product_id).hold(line.quantity) for line in lines]:
            self.put(stock)
        hold = reservation.hold(lines)
        self.holds.append(hold)
        return hold

    @property
    def changes(self) -> list[tuple[Stock, Stock]]:
        """The stocks that differ from what they were, as they were and as they are now, in primary-key order."""
        return [(old, new) for key, new in sorted(self._now.items()) if new != (old := self._before[key])]
