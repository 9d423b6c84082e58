"""Amounts in the minor units of a provider."""

from __future__ import annotations

from decimal import Decimal

import pytest

from mesh.rpc.validation.money import MINOR_UNITS
from payment_svc.providers import MinorUnits, NotPayable

ISO_4217 = MinorUnits(MINOR_UNITS)
TABLE = MinorUnits({"EUR": 2, "JPY": 0, "KWD": 3, "UGX": 2}, steps={"KWD": 10, "UGX": 100})
"""Of a provider that takes three decimals of dinars only as multiples of ten, and shillings only in whole units."""


@pytest.mark.parametrize(
    ("amount", "currency", "units"),
    [("100", "JPY", 100), ("1.23", "EUR", 123), ("1.234", "KWD", 1234), ("1.2300", "EUR", 123), ("0", "EUR", 0)],
)
def test_amounts_are_counted_in_the_minor_units_of_their_currency(amount: str, currency: str, units: int) -> None:
    assert ISO_4217.of(Decimal(amount), currency) == units
    assert ISO_4217.amount(units, currency) == Decimal(amount)


def test_greatest_amount_of_the_books_is_counted_exactly() -> None:
    greatest = Decimal("9999999999999999999.99")
    assert TABLE.of(greatest, "EUR") == 999_999_999_999_999_999_999
    assert TABLE.amount(999_999_999_999_999_999_999, "EUR") == greatest


@pytest.mark.parametrize(
    ("amount", "currency", "reason"),
    [
        ("1", "XAU", "currency_not_supported"),
        ("1", "", "currency_not_supported"),
        ("0.5", "JPY", "amount_not_supported"),
        ("1.239", "EUR", "amount_not_supported"),
        ("1.234", "KWD", "amount_not_supported"),
        ("1.50", "UGX", "amount_not_supported"),
    ],
)
def test_amount_that_a_provider_cannot_move_is_never_rounded(amount: str, currency: str, reason: str) -> None:
    with pytest.raises(NotPayable) as refusal:
        TABLE.of(Decimal(amount), currency)
    assert refusal.value.reason == reason


def test_amounts_that_fit_the_steps_of_a_currency_are_taken() -> None:
    assert TABLE.of(Decimal("1.23"), "KWD") == 1230
    assert TABLE.of(Decimal(5), "UGX") == 500
