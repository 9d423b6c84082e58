"""Totals of holds: exact, in one currency, and bounded."""

from decimal import Decimal
from uuid import uuid4

import pytest

from product_svc.domain import TOTAL_LIMIT, CurrencyMismatch, HoldLine, PriceChanged, Total, TotalTooLarge


def line(price: str, quantity: int = 1, currency: str = "EUR") -> HoldLine:
    """A line of a hold."""
    return HoldLine(uuid4(), quantity, "SKU", "A thing", Decimal(price), currency)


def test_total_is_the_exact_sum_of_all_lines() -> None:
    assert Total.of([line("0.1", 3), line("1.000000001", 10_000)]) == Total(Decimal("10000.30001"), "EUR")
    assert Total.of([line("0")]) == Total(Decimal(0), "EUR")


def test_total_of_the_highest_prices_is_not_rounded() -> None:
    with pytest.raises(TotalTooLarge) as raised:
        Total.of([line("9999999999999999999.999999999", 9_999)] * 3)
    (violation,) = raised.value.violations
    assert violation.description.startswith("come to 299969999999999999999999.999970003 EUR")


def test_total_has_an_upper_limit() -> None:
    assert Total.of([line("999999999999998.99"), line("0.01")]).amount == TOTAL_LIMIT == 10**15 - 1
    with pytest.raises(TotalTooLarge):
        Total.of([line("999999999999998.99"), line("0.02")])


def test_lines_of_different_currencies_have_no_total() -> None:
    with pytest.raises(CurrencyMismatch) as raised:
        Total.of([line("1", currency="USD"), line("1", currency="EUR"), line("1", currency="USD")])
    assert raised.value.metadata == {"currencies": "EUR,USD"}


@pytest.mark.parametrize("expected", [None, Total(Decimal("12.50"), "EUR")])
def test_expected_total_is_the_same_amount_in_the_same_currency(expected: Total | None) -> None:
    Total(Decimal("12.5"), "EUR").require(expected)


@pytest.mark.parametrize("expected", [Total(Decimal("12.51"), "EUR"), Total(Decimal("12.5"), "USD")])
def test_another_total_than_expected_is_refused_with_both(expected: Total) -> None:
    with pytest.raises(PriceChanged) as raised:
        Total(Decimal("12.500000000"), "EUR").require(expected)
    assert raised.value.metadata == {"expectedTotal": str(expected), "total": "12.5 EUR"}
