"""New orders, and what the other services contribute to them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

from order_svc.domain.errors import CurrencyMismatch, CurrencyNotSupported, PaymentMethodMissing
from order_svc.domain.orders import Item, Offer, Order, OrderRequest, PostalAddress, Total, item_of
from order_svc.domain.statuses import Status

FREE = Total(Decimal(0), "")
"""The total of an order that costs nothing."""


class HeldLine(NamedTuple):
    """One line of a hold: the offer at which the product service set the goods aside."""

    product_id: UUID
    sku: str
    name: str
    quantity: int
    unit_price: Decimal
    currency: str


class HoldRequest(NamedTuple):
    """A request to hold stock for an order, all lines or none.

    `key` identifies the hold across retries. Nothing is held if the total is not the expected one.
    """

    order_id: UUID
    key: bytes
    customer_id: UUID
    quantities: Mapping[UUID, int]
    expected_total: Total | None


class Hold(NamedTuple):
    """Stock that the product service holds, under the order id of the first attempt."""

    order_id: UUID
    lines: tuple[HeldLine, ...]


class PaymentMethod(NamedTuple):
    """How an order is to be paid."""

    id: UUID
    provider: str
    currencies: Collection[str] = ()
    """The currencies that the provider takes; empty if it takes all of them."""

    def require_currency(self, currency: str) -> None:
        """Raise CurrencyNotSupported if the provider does not take this currency."""
        if self.currencies and currency not in self.currencies:
            raise CurrencyNotSupported(self.provider, currency)


class Selection(NamedTuple):
    """What the customer service selects for an order."""

    payment_method: PaymentMethod | None
    """None if the customer has none."""
    shipping_address: PostalAddress | None
    """The address that the order names, or the customer's only one."""


def draft(
    order_id: UUID,
    customer_id: UUID,
    request: OrderRequest,
    shipping_address: PostalAddress | None,
    offers: Mapping[UUID, Offer],
    new_item_id: Callable[[], UUID],
    now: datetime,
) -> Order:
    """A new draft of the requested products. It has only an address that is named.

    Raises ProductArchived, CurrencyMismatch, PriceChanged, or InvalidArgument when it has too many items, or too much.
    """
    items = [item_of(new_item_id(), offers[each], quantity) for each, quantity in request.quantities.items()]
    currencies = sorted({offers[each].currency for each in request.quantities})
    if len(currencies) > 1:
        raise CurrencyMismatch(currencies)
    empty = Order(
        id=order_id,
        customer_id=customer_id,
        status=Status.DRAFT,
        items=(),
        total=Decimal(0),
        currency="",
        payment_method_id=request.payment_method_id,
        payment_id=None,
        order_date=now,
        payment_deadline=None,
        cancel_reason=None,
        cancel_note="",
        update_time=now,
        version=1,
        shipping_address=shipping_address if request.address_id else None,
    )
    made = empty.with_items(items, currencies[0] if currencies else "")
    request.require_total(Total(made.total, made.currency))
    return made


def placed(
    customer_id: UUID,
    request: OrderRequest,
    hold: Hold,
    item_ids: Sequence[UUID],
    selection: Selection,
    *,
    now: datetime,
    deadline: timedelta,
) -> Order:
    """The order for goods that are held. If it costs nothing, it has no payment method.

    Raises CurrencyNotSupported. It raises InvalidArgument / CURRENCY_MISMATCH (one currency an order), PriceChanged or
    PaymentMethodMissing, too: the product service makes no such hold, but one of an earlier version may.
    """
    currencies = sorted({line.currency for line in hold.lines})
    if len(currencies) > 1:
        raise CurrencyMismatch(currencies)
    items = tuple(
        Item(item_id, line.product_id, line.sku, line.name, line.quantity, line.unit_price)
        for item_id, line in zip(item_ids, hold.lines, strict=True)
    )
    total = sum((item.line_total for item in items), Decimal(0))
    if request.expected_total is not None:
        request.require_total(Total(total, currencies[0]))
    payment_method = selection.payment_method
    if total:
        if payment_method is None:
            raise PaymentMethodMissing(customer_id)
        payment_method.require_currency(currencies[0])
    return Order(
        id=hold.order_id,
        customer_id=customer_id,
        status=Status.PENDING,
        items=items,
        total=total,
        currency=currencies[0],
        payment_method_id=payment_method.id if total and payment_method else None,
        payment_id=None,
        order_date=now,
        payment_deadline=now + deadline,
        cancel_reason=None,
        cancel_note="",
        update_time=now,
        version=1,
        shipping_address=selection.shipping_address,
    )
