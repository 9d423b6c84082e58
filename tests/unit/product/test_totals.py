"""Totals of holds: exact, in one currency, and bounded."""

from decimal import Decimal
from fractions import Fraction
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import Violation
from product_svc.domain import TOTAL_LIMIT, CurrencyMismatch, HoldLine, PriceChanged, Total, TotalTooLarge

PRICES = st.decimals(min_value=0, max_value=10**9, places=9)


def line(price: Decimal | str, quantity: int = 1, currency: str = "EUR") -> HoldLine:
    """A line of a hold."""
    return HoldLine(uuid4(), quantity, "SKU", "A thing", Decimal(price), currency)


@given(st.lists(st.tuples(PRICES, st.integers(1, 10_000)), min_size=1, max_size=5))
def test_total_is_the_exact_sum_of_all_lines(lines: list[tuple[Decimal, int]]) -> None:
    exact = sum((Fraction(price) * quantity for price, quantity in lines), Fraction(0))
    total = Total.of([line(price, quantity) for price, quantity in lines])
    assert (Fraction(total.amount), total.currency) == (exact, "EUR")


def test_total_of_the_highest_prices_is_not_rounded() -> None:
    with pytest.raises(TotalTooLarge) as raised:
        Total.of([line("9999999999999999999.999999999", 9_999)] * 3)
    (violation,) = raised.value.violations
    assert violation.description.startswith("come to 299969999999999999999999.999970003 EUR")


def test_total_has_an_upper_limit() -> None:
    limit = TOTAL_LIMIT / 10_000
    assert Total.of([line(limit, 10_000)]).amount == TOTAL_LIMIT == 10**15 - 1
    with pytest.raises(TotalTooLarge) as raised:
        Total.of([line(limit, 10_000), line("0.000000001")])
    assert raised.value.violations == (
        Violation("lines", "come to 999999999999999.000000001 EUR: must be at most 999999999999999"),
    )


def test_lines_of_different_currencies_have_no_total() -> None:
    with pytest.raises(CurrencyMismatch) as raised:
        Total.of([line("1", currency="USD"), line("1", currency="EUR"), line("1", currency="USD")])
    assert raised.value.metadata == {"currencies": "EUR,USD"}
    assert raised.value.violations == (Violation("lines", "are sold in different currencies"),)


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (Total(Decimal("12.5"), "EUR"), None),
        (Total(Decimal("12.5"), "EUR"), Total(Decimal("12.50"), "EUR")),
        (Total(Decimal(0), "JPY"), Total(Decimal(0), "JPY")),
        (Total(Decimal(0), "JPY"), Total(Decimal(0), "")),
    ],
)
def test_expected_total_is_the_same_amount_in_the_same_currency(total: Total, expected: Total | None) -> None:
    total.require(expected)


@pytest.mark.parametrize(
    ("total", "expected", "texts"),
    [
        (Total(Decimal("12.500000000"), "EUR"), Total(Decimal("12.51"), "EUR"), ("12.51 EUR", "12.5 EUR")),
        (Total(Decimal("12.5"), "EUR"), Total(Decimal("12.5"), "USD"), ("12.5 USD", "12.5 EUR")),
        (Total(Decimal("12.5"), "EUR"), Total(Decimal(0), ""), ("0", "12.5 EUR")),
        (Total(Decimal(0), "JPY"), Total(Decimal(0), "USD"), ("0 USD", "0 JPY")),
    ],
)
def test_total_that_is_not_expected_is_rejected_with_both(
    total: Total, expected: Total, texts: tuple[str, str]
) -> None:
    with pytest.raises(PriceChanged) as raised:
        total.require(expected)
    assert (raised.value.metadata["expectedTotal"], raised.value.metadata["total"]) == texts
