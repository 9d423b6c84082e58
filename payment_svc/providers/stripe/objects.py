"""What Stripe's objects say: keys, failures, and the movements of money on Stripe's record."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import stripe

from payment_svc.providers.protocol import Movement, MovementType
from payment_svc.providers.stripe.currencies import MINOR_UNITS


def key_of(made: stripe.PaymentIntent | stripe.Refund) -> str:
    """The key in the metadata of an object; empty for one that others have made."""
    metadata = made.metadata
    return str(metadata["key"]) if metadata is not None and "key" in metadata else ""


def failure_of(intent: stripe.PaymentIntent) -> str:
    """Why the last attempt to pay has failed, in Stripe's words; empty if it has not."""
    error = intent.last_payment_error
    if error is None:
        return ""
    return str(getattr(error, "decline_code", None) or error.code or "")


def of_charge(intent: stripe.PaymentIntent, refunds: Iterable[stripe.Refund]) -> list[Movement]:
    """The capture of a paid PaymentIntent, its fee and its refunds; `latest_charge.balance_transaction` is expanded."""
    charge: Any = intent.latest_charge
    captured = charge.amount_captured if "amount_captured" in charge else charge.amount
    movements = [_movement(MovementType.CAPTURE, intent.id, captured, intent.currency, charge.created)]
    balance: Any = charge.balance_transaction
    if balance is not None and balance.fee and balance.currency == intent.currency:
        movements.append(_movement(MovementType.FEE, balance.id, balance.fee, intent.currency, balance.created))
    movements += [
        _movement(MovementType.REFUND, each.id, each.amount, each.currency, each.created, key=key_of(each))
        for each in refunds
        if each.status == "succeeded"
    ]
    return movements


def is_disputed(intent: stripe.PaymentIntent) -> bool:
    """Whether the payment, whose `latest_charge` is expanded, has been disputed."""
    charge: Any = intent.latest_charge
    return bool("disputed" in charge and charge.disputed)


def of_disputes(disputes: Iterable[stripe.Dispute], currency: str) -> list[Movement]:
    """The disputes of a payment in `currency` that have moved money, and their fees. An inquiry moves none."""
    movements = []
    for dispute in disputes:
        if dispute.status.startswith("warning") or dispute.currency != currency:
            continue
        movements.append(_movement(MovementType.DISPUTE, dispute.id, dispute.amount, currency, dispute.created))
        movements += [
            _movement(MovementType.FEE, each.id, each.fee, currency, each.created)
            for each in dispute.balance_transactions
            if each.fee > 0 and each.currency == currency
        ]
    return movements


def _movement(kind: MovementType, reference: str, units: int, currency: str, created: int, key: str = "") -> Movement:
    amount = MINOR_UNITS.amount(units, currency.upper())
    return Movement(kind, reference, amount, datetime.fromtimestamp(created, UTC), key)
