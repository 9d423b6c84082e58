"""The errors of payments."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING
from uuid import UUID

from mesh.errors import Aborted, FailedPrecondition, Internal, InvalidArgument, NotFound, Violation

if TYPE_CHECKING:
    from payment_svc.domain.payments import Payment


class PaymentNotFound(NotFound):
    """There is no such payment, or it is not the caller's, or the order has none yet."""

    reason = "PAYMENT_NOT_FOUND"

    def __init__(self, *, payment_id: UUID | None = None, order_id: UUID | None = None) -> None:
        if payment_id is not None:
            super().__init__(f"there is no payment {payment_id}", metadata={"paymentId": str(payment_id)})
        else:
            super().__init__(f"order {order_id} has no payment", metadata={"orderId": str(order_id)})


class PaymentStateRefused(FailedPrecondition):
    """Where the payment stands does not allow it."""

    reason = "PAYMENT_STATE"

    def __init__(self, payment: Payment, message: str) -> None:
        super().__init__(message, metadata={"paymentId": str(payment.id), "status": payment.status})


class EtagMismatch(Aborted):
    """The payment has changed since the caller read it."""

    def __init__(self, payment_id: UUID) -> None:
        super().__init__(f"payment {payment_id} has changed: read it again", metadata={"paymentId": str(payment_id)})


class CurrencyMismatch(InvalidArgument):
    """The amount is in another currency than the payment."""

    reason = "CURRENCY_MISMATCH"

    def __init__(self, payment: Payment, currency: str) -> None:
        super().__init__(
            f"payment {payment.id} is in {payment.currency}, not in {currency}",
            metadata={"currencies": f"{payment.currency},{currency}"},
            violations=[Violation("amount", f"must be in {payment.currency}")],
        )


class RefundExceedsPayment(FailedPrecondition):
    """The refund is more than what is left of the payment. Refunds without an outcome count as refunded."""

    reason = "REFUND_EXCEEDS_PAYMENT"

    def __init__(self, payment: Payment, requested: Decimal | None, refundable: Decimal) -> None:
        texts = {
            "refundable": f"{refundable.normalize():f} {payment.currency}",
            "requested": "" if requested is None else f"{requested.normalize():f} {payment.currency}",
        }
        super().__init__(
            f"{texts['refundable']} of payment {payment.id} can be refunded",
            metadata={"paymentId": str(payment.id), **texts},
        )


class RefundNotFound(NotFound):
    """The refund does not exist."""

    reason = "REFUND_NOT_FOUND"

    def __init__(self, refund_id: UUID) -> None:
        super().__init__(f"there is no refund {refund_id}", metadata={"refundId": str(refund_id)})


class RefundContradiction(Internal):
    """The provider has refunded another amount than it was asked for: a person must look at it."""

    def __init__(self, refund_id: UUID, asked: Decimal, amount: Decimal) -> None:
        super().__init__(f"refund {refund_id} is of {asked}, and the provider has refunded {amount}")


class ProviderNotFound(NotFound):
    """There is no payment provider of this name."""

    reason = "PROVIDER_NOT_FOUND"

    def __init__(self, provider: str) -> None:
        super().__init__(f"there is no payment provider {provider}", metadata={"provider": provider})


class AmountInvalid(Internal):
    """An order is to be charged less than nothing, or in no currency. The contracts prevent that."""

    def __init__(self, order_id: UUID, amount: Decimal, currency: str) -> None:
        super().__init__(
            f"order {order_id} is to be charged {amount} {currency}".rstrip(), metadata={"orderId": str(order_id)}
        )


class ProviderContradiction(Internal):
    """The provider says of a payment what cannot be, given what it said before: a person must look at it."""

    def __init__(self, payment: Payment, said: str) -> None:
        super().__init__(f"payment {payment.id} is {payment.status}, and {payment.provider} says it is {said}")
