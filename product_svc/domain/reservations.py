"""Reservations, the requests for holds, and how they are decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Context, Decimal
from typing import NamedTuple
from uuid import UUID

from mesh.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, Violation
from product_svc.domain.holds import Hold, HoldLine, HoldState
from product_svc.domain.products import Offer, ProductArchived, ProductNotFound, ProductState
from product_svc.domain.stock import StockInsufficient

TOTAL_LIMIT = Decimal(10**15 - 1)
"""The largest total of a hold, in units of its currency."""
_EXACT = Context(prec=64)
"""Wide enough for every sum of lines: a total is never rounded."""


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
    """The total of the lines is not the one that the caller expects."""

    reason = "PRICE_CHANGED"

    def __init__(self, expected: Total, total: Total) -> None:
        super().__init__(
            f"the lines come to {total}, not {expected}",
            metadata={"expectedTotal": str(expected), "total": str(total)},
        )


class HoldKeyReused(AlreadyExists):
    """The key has a hold with other lines, for an attempt that may still be in progress."""

    reason = "IDEMPOTENCY_KEY_REUSED"

    def __init__(self) -> None:
        super().__init__("this idempotency key was used for another order; take a new key for a new intent")


class HoldResolved(Aborted):
    """The order had a hold, which was sold or released: another placing of it came first."""

    reason = "HOLD_LOST"

    def __init__(self) -> None:
        super().__init__("the hold of this order has been resolved meanwhile")


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


class Reservation(NamedTuple):
    """The request for a hold."""

    order_id: UUID
    key: bytes
    """Identifies the attempt to place the order: the same for all its retries."""
    customer_id: UUID
    expire_time: datetime
    quantities: Mapping[UUID, int]
    """The quantity of each product."""
    expected_total: Total | None = None
    """The total without which nothing is held; any total is accepted if there is none."""

    def adopt(self, hold: Hold) -> Hold:
        """The hold of an earlier attempt. Raises HoldKeyReused when it has other lines, or PriceChanged."""
        if {line.product_id: line.quantity for line in hold.lines} != self.quantities:
            raise HoldKeyReused
        Total.of(hold.lines).require(self.expected_total)
        return hold

    def renew(self, hold: Hold, offers: Mapping[UUID, Offer]) -> Hold:
        """The hold of another attempt to place the same order, with the key of this one and at these offers.

        It has the same stock. Raises HoldKeyReused when it has other lines, and what `hold` raises.
        """
        if {line.product_id: line.quantity for line in hold.lines} != self.quantities:
            raise HoldKeyReused
        return self.hold(offers)

    def hold(self, offers: Mapping[UUID, Offer]) -> Hold:
        """The hold at these offers, by product; of stock that is not checked here.

        Raises ProductNotFound, ProductArchived, CurrencyMismatch, TotalTooLarge or PriceChanged.
        """
        lines = []
        for product_id, quantity in self.quantities.items():
            if (offer := offers.get(product_id)) is None:
                raise ProductNotFound(product_id)
            if offer.state is ProductState.ARCHIVED:
                raise ProductArchived(product_id)
            lines.append(HoldLine(product_id, quantity, offer.sku, offer.name, offer.price, offer.currency))
        Total.of(lines).require(self.expected_total)
        return Hold(self.order_id, self.key, self.customer_id, self.expire_time, HoldState.HELD, tuple(lines))


class Shelf:
    """The stock of some products while holds are made on it, one after another.

    Without `available` quantities, enough stock is assumed, which has to be checked when the holds are written.
    """

    def __init__(
        self, offers: Iterable[Offer], *, available: Mapping[UUID, int] | None = None, holds: Iterable[Hold] = ()
    ) -> None:
        """`holds` are the existing holds under the keys, or of the orders, of the reservations to come."""
        self.holds: list[Hold] = []
        """The new holds, in order."""
        self.renewed: list[Hold] = []
        """Existing holds with another key and other prices, in order."""
        self._by_key = {hold.key: hold for hold in holds}
        self._by_order = {hold.order_id: hold for hold in self._by_key.values()}
        self._current: set[UUID] = set()
        """The orders whose holds have the prices of this moment."""
        self._offers = {offer.product_id: offer for offer in offers}
        self._available = available
        self._reserved: Counter[UUID] = Counter()

    def reserve(self, reservation: Reservation) -> Hold:
        """Make a hold with all lines, or none; return the existing one if the key has a hold.

        A hold that the order has under another key gets this key and the current prices, and keeps its stock.

        Raises what `Reservation.adopt`, `renew` and `hold` raise, or StockInsufficient.
        """
        if existing := self._by_key.get(reservation.key):
            return reservation.adopt(existing)
        if other := self._by_order.get(reservation.order_id):
            if other.order_id in self._current:
                return reservation.adopt(other)
            renewed = reservation.renew(other, self._offers)
            self.renewed.append(renewed)
            del self._by_key[other.key]
            self._keep(renewed)
            return renewed
        hold = reservation.hold(self._offers)
        if self._available is not None:
            for product_id, quantity in reservation.quantities.items():
                available = self._available[product_id] - self._reserved[product_id]
                if quantity > available:
                    raise StockInsufficient(product_id, quantity, available)
        self._reserved.update(reservation.quantities)
        self.holds.append(hold)
        self._keep(hold)
        return hold

    def _keep(self, hold: Hold) -> None:
        self._by_key[hold.key] = self._by_order[hold.order_id] = hold
        self._current.add(hold.order_id)

    @property
    def reserved(self) -> list[tuple[Offer, int]]:
        """The quantity of each offer in the new holds, in the order of the products' primary key."""
        return [(self._offers[product_id], quantity) for product_id, quantity in sorted(self._reserved.items())]
