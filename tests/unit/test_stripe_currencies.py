"""How Stripe counts amounts, by its documentation."""

from __future__ import annotations

from decimal import Decimal

import pytest

from customer_svc.providers.stripe.currencies import CURRENCIES
from mesh.rpc.validation.money import MINOR_UNITS as ISO_4217
from payment_svc.providers import NotPayable
from payment_svc.providers.stripe.currencies import MINOR_UNITS


@pytest.mark.parametrize(
    ("amount", "currency", "units"),
    [
        ("100", "JPY", 100),
        ("1.23", "EUR", 123),
        ("1.23", "KWD", 1230),
        ("5", "ISK", 500),
        ("10.45", "HUF", 1045),
        ("800.45", "TWD", 80045),
        ("7", "MGA", 7),
        ("0.01", "USD", 1),
    ],
)
def test_amount_is_counted_by_the_table_of_stripe(amount: str, currency: str, units: int) -> None:
    assert MINOR_UNITS.of(Decimal(amount), currency) == units
    assert MINOR_UNITS.amount(units, currency) == Decimal(amount)


@pytest.mark.parametrize(
    ("amount", "currency", "reason"),
    [
        ("1.234", "KWD", "amount_not_supported"),
        ("5.5", "ISK", "amount_not_supported"),
        # Stripe has no cents of it, and ISO 4217 has.
        ("1.5", "MGA", "amount_not_supported"),
        # Stripe's documentation gives it both no decimals and two.
        ("5", "UGX", "currency_not_supported"),
        ("1", "IRR", "currency_not_supported"),
        ("1", "LYD", "currency_not_supported"),
    ],
)
def test_amount_that_stripe_does_not_take_is_refused(amount: str, currency: str, reason: str) -> None:
    with pytest.raises(NotPayable) as refusal:
        MINOR_UNITS.of(Decimal(amount), currency)
    assert refusal.value.reason == reason


def test_both_services_know_the_same_currencies_and_all_of_them_exist() -> None:
    assert set(MINOR_UNITS.currencies) == CURRENCIES
    assert set(MINOR_UNITS.currencies) <= ISO_4217.keys()
    assert len(MINOR_UNITS.currencies) > 120
