"""Orders and drafts, and the only ways in which they change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

from mesh.errors import InvalidArgument, Violation
from order_svc.domain.errors import (
    CurrencyMismatch,
    EtagMismatch,
    ItemNotFound,
    OrderEmpty,
    OrderState,
    PriceChanged,
    ProductArchived,
)
from order_svc.domain.statuses import AT_REST, DRAFTS, FINAL, TRANSITIONS, UNMOVED, CancelReason, Cause, Status

MAX_QUANTITY = 10_000
"""The most of one product that an order may have."""

MAX_ITEMS = 100
"""The most items that an order may have."""

MAX_OPEN_PLACINGS = 1000
"""The most placings of a draft that are counted. From then on it cannot be edited, only placed or cancelled."""

MAX_TOTAL = Decimal(10**15 - 1)
"""The largest total of an order, in units of its currency."""


def merged(lines: Iterable[tuple[UUID, int]]) -> dict[UUID, int]:
    """Quantities by product; lines of the same product become one. Raises InvalidArgument above `MAX_QUANTITY`."""
    quantities: dict[UUID, int] = {}
    for product_id, quantity in lines:
        quantities[product_id] = quantities.get(product_id, 0) + quantity
    violations = [
        Violation("items", f"{quantity} of product {product_id}: must be at most {MAX_QUANTITY}")
        for product_id, quantity in quantities.items()
        if quantity > MAX_QUANTITY
    ]
    if violations:
        raise InvalidArgument("the request is not valid", violations=violations)
    return quantities


class Total(NamedTuple):
    """An amount in whole units of a currency. The currency of a total of zero may be empty, which means any."""

    amount: Decimal
    currency: str

    def __str__(self) -> str:
        return f"{self.amount.normalize():f} {self.currency}".rstrip()


class OrderRequest(NamedTuple):
    """What a customer asks to order."""

    quantities: Mapping[UUID, int]
    """The quantity of each product; of a draft, its own."""
    customer_id: UUID | None = None
    """None if the caller orders."""
    payment_method_id: UUID | None = None
    """None for the customer's default one."""
    address_id: UUID | None = None
    """None for the customer's only address."""
    expected_total: Total | None = None
    """The total without which nothing is ordered; any total is accepted if there is none."""

    def require_total(self, total: Total) -> None:
        """Raise PriceChanged unless this total is the expected one, or none is expected."""
        expected = self.expected_total
        if expected is not None and (total.amount != expected.amount or total.currency not in {"", expected.currency}):
            raise PriceChanged(str(expected), str(total))


class PostalAddress(NamedTuple):
    """A postal address, with the fields of `google.type.PostalAddress`. Fields that a region does not use are empty."""

    region_code: str
    language_code: str
    postal_code: str
    sorting_code: str
    administrative_area: str
    locality: str
    sublocality: str
    address_lines: tuple[str, ...]
    recipients: tuple[str, ...]
    organization: str


class Offer(NamedTuple):
    """What the product service says of a product: how it is sold now."""

    product_id: UUID
    sku: str
    name: str
    unit_price: Decimal
    currency: str
    is_archived: bool


class Item(NamedTuple):
    """One product of an order, at the price of when it was placed; in a draft, of when that last changed."""

    id: UUID
    product_id: UUID
    sku: str
    name: str
    quantity: int
    unit_price: Decimal

    @property
    def line_total(self) -> Decimal:
        """Quantity times unit price."""
        return self.quantity * self.unit_price


def item_of(item_id: UUID, offer: Offer, quantity: int) -> Item:
    """An item of a draft, at the current price. Raises ProductArchived."""
    if offer.is_archived:
        raise ProductArchived(offer.product_id)
    return Item(item_id, offer.product_id, offer.sku, offer.name, quantity, offer.unit_price)


class Shipment(NamedTuple):
    """The delivery of an order to the customer."""

    carrier: str
    tracking_number: str
    ship_time: datetime
    """When the order was handed over to the carrier."""
    deliver_time: datetime | None
    """None until the order is delivered."""


class PaymentResult(NamedTuple):
    """What became of the payment of an order."""

    order_id: UUID
    payment_id: UUID
    cause: Cause


@dataclass(frozen=True, slots=True)
class Order:
    """An order. `version` grows with every change and is its etag."""

    id: UUID
    customer_id: UUID
    status: Status
    items: tuple[Item, ...]
    total: Decimal
    currency: str
    """Empty for a draft without items."""
    payment_method_id: UUID | None
    """None if nothing is to be paid, and in a draft that names none."""
    payment_id: UUID | None
    order_date: datetime
    payment_deadline: datetime | None
    """None for a draft."""
    cancel_reason: CancelReason | None
    cancel_note: str
    update_time: datetime
    version: int
    shipment: Shipment | None = None
    """None until the order is shipped."""
    shipping_address: PostalAddress | None = field(default=None, repr=False)
    """None if nothing is to be shipped, in a draft that names none, and after the customer is deleted."""
    open_placings: int = 0
    """Of a draft, the placings that are under way, or whose outcome is not known: each may hold its stock."""

    def is_at_rest(self) -> bool:
        """Whether the order stays as it is until a person acts."""
        return self.status in AT_REST

    @property
    def size(self) -> int:
        """The order and its items, counted: what it weighs in a portion of work."""
        return 1 + len(self.items)

    @property
    def is_draft(self) -> bool:
        """Whether the order is a draft to its customer. Changes of a draft publish no event."""
        return self.status in DRAFTS

    @property
    def is_final(self) -> bool:
        """Whether the order will never change again."""
        return self.status in FINAL

    def moved(self, cause: Cause, now: datetime, **changes: object) -> Order:
        """The order after `cause`; the very same one when that changes nothing. Raises OrderState."""
        if (self.status, cause) in UNMOVED:
            return self
        try:
            status = TRANSITIONS[self.status, cause]
        except KeyError:
            raise OrderState(self.id, self.status, cause) from None
        return replace(self, status=status, update_time=now, version=self.version + 1, **changes)  # type: ignore[arg-type]

    def add_item(
        self, item_id: UUID, product_id: UUID, quantity: int, offers: Mapping[UUID, Offer], now: datetime
    ) -> Order:
        """The draft with more of a product, at the current prices.

        Raises OrderState unless it is a draft, ProductArchived, CurrencyMismatch, or InvalidArgument when it would
        have too many items, too much of the product, or too large a total.
        """
        draft, offer = self.moved(Cause.EDIT, now), offers[product_id]
        others = [item for item in self.items if item.product_id != offer.product_id]
        if others and offer.currency != self.currency:
            raise CurrencyMismatch(sorted({self.currency, offer.currency}))
        items = self._priced(offers)
        for position, item in enumerate(items):
            if item.product_id == offer.product_id:
                items[position] = item_of(item.id, offer, item.quantity + quantity)
                break
        else:
            items.append(item_of(item_id, offer, quantity))
        return draft.with_items(items, offer.currency)

    def change_quantity(self, item_id: UUID, quantity: int, offers: Mapping[UUID, Offer], now: datetime) -> Order:
        """The draft with another quantity of an item, at the current prices.

        Raises OrderState unless it is a draft, ItemNotFound, or InvalidArgument when the total would be too large.
        """
        draft = self.moved(Cause.EDIT, now)
        self._require_item(item_id)
        items = [item._replace(quantity=quantity) if item.id == item_id else item for item in self._priced(offers)]
        return draft.with_items(items, self.currency)

    def remove_item(self, item_id: UUID, offers: Mapping[UUID, Offer], now: datetime) -> Order:
        """The draft without an item, at the current prices.

        Raises OrderState unless it is a draft, ItemNotFound, or InvalidArgument when the total would be too large.
        """
        draft = self.moved(Cause.EDIT, now)
        self._require_item(item_id)
        return draft.with_items([item for item in self._priced(offers) if item.id != item_id], self.currency)

    def _priced(self, offers: Mapping[UUID, Offer]) -> list[Item]:
        """The items at the current prices. One keeps its price when it is no longer sold, or in another currency."""
        sold = {
            product_id: offer
            for product_id, offer in offers.items()
            if offer.currency == self.currency and not offer.is_archived
        }
        return [
            item_of(item.id, sold[item.product_id], item.quantity) if item.product_id in sold else item
            for item in self.items
        ]

    def _require_item(self, item_id: UUID) -> None:
        if all(item.id != item_id for item in self.items):
            raise ItemNotFound(self.id, item_id)

    def begin_placing(self, etag: str, now: datetime) -> Order:
        """The draft with one more placing under way: it cannot be edited. Its version stays, since its items do.

        Raises EtagMismatch, OrderState unless it is a draft, or OrderEmpty.
        """
        self.require_etag(etag)
        placing = self.moved(Cause.PLACE, now)
        if not self.items:
            raise OrderEmpty(self.id)
        return replace(placing, version=self.version, open_placings=min(self.open_placings + 1, MAX_OPEN_PLACINGS))

    def refuse_placing(self, now: datetime) -> Order:
        """The draft after one of its placings was refused and holds nothing; it can be edited if no other is open.

        The very same order if it is no longer being placed, or has had too many placings to count them.
        """
        if self.status is not Status.PLACING or self.open_placings >= MAX_OPEN_PLACINGS:
            return self
        others = self.open_placings - 1
        draft = self if others else self.moved(Cause.REFUSED, now)
        return replace(draft, version=self.version, open_placings=others)

    def complete(self, request: OrderRequest) -> OrderRequest:
        """The request to place this draft: its own items, and its payment method unless `request` names another."""
        return request._replace(
            quantities={item.product_id: item.quantity for item in self.items},
            payment_method_id=request.payment_method_id or self.payment_method_id,
        )

    def placed_as(self, order: Order, request: OrderRequest) -> Order:
        """This draft, placed with the items, prices and payment of `order`. Raises OrderState unless it is placing.

        Its address is that of `order` if `request` names one, or if the draft has none.
        """
        keeps_address = self.shipping_address is not None and request.address_id is None
        return self.moved(
            Cause.PLACED,
            order.order_date,
            # In the order in which they are read.
            items=tuple(sorted(order.items)),
            total=order.total,
            currency=order.currency,
            payment_method_id=order.payment_method_id,
            order_date=order.order_date,
            payment_deadline=order.payment_deadline,
            open_placings=0,
            shipping_address=self.shipping_address if keeps_address else order.shipping_address,
        )

    def with_items(self, items: Sequence[Item], currency: str) -> Order:
        """This draft with these items. Raises InvalidArgument when it has too many, or too much."""
        violations = [
            Violation("items", f"{item.quantity} of product {item.product_id}: must be at most {MAX_QUANTITY}")
            for item in items
            if item.quantity > MAX_QUANTITY
        ]
        if len(items) > MAX_ITEMS:
            violations.append(Violation("items", f"are {len(items)}: must be at most {MAX_ITEMS}"))
        total = sum((item.line_total for item in items), Decimal(0))
        if total > MAX_TOTAL:
            violations.append(Violation("items", f"come to more than {MAX_TOTAL} {currency}"))
        if violations:
            raise InvalidArgument("the request is not valid", violations=violations)
        return replace(self, items=tuple(items), total=total, currency=currency if items else "")

    def cancel(self, reason: CancelReason, note: str, now: datetime) -> Order:
        """Ask for the end of it; asked again, nothing changes. A draft is cancelled at once.

        Raises OrderState once it is shipped.
        """
        return self.moved(Cause.CANCEL, now, cancel_reason=reason, cancel_note=note)

    def ship(self, carrier: str, tracking_number: str, now: datetime) -> Order:
        """The order, handed over to a carrier. Raises OrderState unless it is confirmed."""
        return self.moved(Cause.SHIP, now, shipment=Shipment(carrier, tracking_number, now, None))

    def deliver(self, now: datetime) -> Order:
        """The order, delivered. Raises OrderState unless it is shipped."""
        shipment = self.shipment and self.shipment._replace(deliver_time=now)
        return self.moved(Cause.DELIVER, now, shipment=shipment)

    def still_cancelling(self, now: datetime) -> Order:
        """A newer version of an order that is being cancelled, to ask for the end of it once more."""
        return replace(self, update_time=now, version=self.version + 1)

    def apply_payment(self, result: PaymentResult, now: datetime) -> Order:
        """The order after the result of its payment. Raises OrderState when that cannot follow."""
        reason = self.cancel_reason
        if result.cause is Cause.DECLINED and reason is None:
            reason = CancelReason.PAYMENT_DECLINED
        return self.moved(result.cause, now, payment_id=result.payment_id, cancel_reason=reason)

    def require_etag(self, etag: str) -> None:
        """Raise EtagMismatch when the caller names another version than this one."""
        if etag and etag != str(self.version):
            raise EtagMismatch(self.id)


class OrderPlaced(NamedTuple):
    """An order was placed. `provider` charges it; empty if nothing is to be paid."""

    order: Order
    provider: str


class OrderMoved(NamedTuple):
    """An order has a new status, or is still being cancelled."""

    order: Order


class TimelineEvent(NamedTuple):
    """One event in the history of an order. They sort by time, and those of one time always in the same order."""

    time: datetime
    service: str
    event_id: UUID
    type: str
    summary: str
    trace_id: str
    actor: str
    """Who caused it; empty if that is not known."""
