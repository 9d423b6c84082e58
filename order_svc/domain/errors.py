"""Why an order cannot be placed or changed."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from mesh.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound, Violation
from order_svc.domain.statuses import Cause, Status


class OrderNotFound(NotFound):
    """There is no such order, or it is not yours."""

    reason = "ORDER_NOT_FOUND"

    def __init__(self, order_id: UUID) -> None:
        super().__init__(f"there is no order {order_id}", metadata={"orderId": str(order_id)})


class ItemNotFound(NotFound):
    """The order has no such item."""

    reason = "ORDER_ITEM_NOT_FOUND"

    def __init__(self, order_id: UUID, item_id: UUID) -> None:
        super().__init__(
            f"order {order_id} has no item {item_id}", metadata={"orderId": str(order_id), "itemId": str(item_id)}
        )


class CustomerNotFound(NotFound):
    """There is no such customer, or it is not you."""

    reason = "CUSTOMER_NOT_FOUND"

    def __init__(self, customer_id: UUID) -> None:
        super().__init__(f"there is no customer {customer_id}", metadata={"customerId": str(customer_id)})


class CustomerHasOpenOrders(FailedPrecondition):
    """The customer has orders that are neither drafts nor final."""

    reason = "CUSTOMER_HAS_OPEN_ORDERS"

    def __init__(self, customer_id: UUID) -> None:
        super().__init__(f"customer {customer_id} has open orders", metadata={"customerId": str(customer_id)})


class OrderState(FailedPrecondition):
    """The order is not in a state that allows this."""

    reason = "ORDER_STATE"

    def __init__(self, order_id: UUID, status: Status, cause: Cause) -> None:
        public = Status.DRAFT if status is Status.PLACING else status
        super().__init__(
            f"order {order_id} is {status}: {cause} is not possible",
            metadata={"orderId": str(order_id), "status": f"ORDER_STATUS_{public}"},
        )


class OrderEmpty(FailedPrecondition):
    """The draft has no items."""

    reason = "ORDER_EMPTY"

    def __init__(self, order_id: UUID) -> None:
        super().__init__(f"order {order_id} has no items", metadata={"orderId": str(order_id)})


class EtagMismatch(Aborted):
    """The order has changed since the caller read it."""

    def __init__(self, order_id: UUID) -> None:
        super().__init__(f"order {order_id} has changed: read it again", metadata={"orderId": str(order_id)})


class ProductArchived(FailedPrecondition):
    """The product is no longer sold."""

    reason = "PRODUCT_ARCHIVED"

    def __init__(self, product_id: UUID) -> None:
        super().__init__(f"product {product_id} is archived", metadata={"productId": str(product_id)})


class CurrencyMismatch(InvalidArgument):
    """The products of one order are sold in different currencies."""

    reason = "CURRENCY_MISMATCH"

    def __init__(self, currencies: Sequence[str]) -> None:
        super().__init__(
            f"one order, one currency: these products are sold in {', '.join(currencies)}",
            metadata={"currencies": ",".join(currencies)},
            violations=[Violation("items", "are sold in different currencies")],
        )


class PriceChanged(FailedPrecondition):
    """The total is not the one that the customer expects."""

    reason = "PRICE_CHANGED"

    def __init__(self, expected: str, total: str) -> None:
        super().__init__(
            f"the items come to {total}, not {expected}", metadata={"expectedTotal": expected, "total": total}
        )


class PaymentMethodMissing(FailedPrecondition):
    """The customer has no payment method, and the order costs something."""

    reason = "PAYMENT_METHOD_MISSING"

    def __init__(self, customer_id: UUID) -> None:
        super().__init__("the customer has no payment method", metadata={"customerId": str(customer_id)})


class CurrencyNotSupported(FailedPrecondition):
    """The payment provider of the customer's payment method does not take the currency of the order."""

    reason = "CURRENCY_NOT_SUPPORTED"

    def __init__(self, provider: str, currency: str) -> None:
        super().__init__(
            f"the payment provider {provider} does not take {currency}",
            metadata={"provider": provider, "currency": currency},
        )


class HoldLost(Aborted):
    """The hold behind this attempt was given up as orphaned; a retry makes a new one."""

    reason = "HOLD_LOST"

    def __init__(self) -> None:
        super().__init__("the stock held for this attempt was released meanwhile: try again")
