"""Amounts as a provider counts them: whole minor units of the currencies that it takes.

The number of decimals is the provider's own, by its documentation: it differs from ISO 4217 for some currencies.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from decimal import Decimal

CURRENCY_NOT_SUPPORTED = "currency_not_supported"
AMOUNT_NOT_SUPPORTED = "amount_not_supported"


class NotPayable(Exception):
    """A provider cannot move this amount; `reason` is CURRENCY_NOT_SUPPORTED or AMOUNT_NOT_SUPPORTED."""

    def __init__(self, reason: str, amount: Decimal, currency: str) -> None:
        super().__init__(f"{reason}: {amount.normalize():f} {currency}")
        self.reason = reason


class MinorUnits:
    """The currencies that a provider takes, each with its decimals at the provider.

    `steps` has the currencies whose amounts must be a multiple of more than one minor unit.
    """

    def __init__(self, decimals: Mapping[str, int], *, steps: Mapping[str, int] | None = None) -> None:
        self._decimals = decimals
        self._steps = steps or {}

    @property
    def currencies(self) -> Collection[str]:
        """The currencies that the provider takes, by their ISO 4217 codes."""
        return self._decimals.keys()

    def of(self, amount: Decimal, currency: str) -> int:
        """An amount in minor units: 123 for EUR 1.23. Raises NotPayable; an amount is never rounded."""
        decimals = self._decimals.get(currency)
        if decimals is None:
            raise NotPayable(CURRENCY_NOT_SUPPORTED, amount, currency)
        scaled = amount.scaleb(decimals)
        units = int(scaled)
        if units != scaled or units % self._steps.get(currency, 1):
            raise NotPayable(AMOUNT_NOT_SUPPORTED, amount, currency)
        return units

    def amount(self, units: int, currency: str) -> Decimal:
        """The amount of these minor units. Raises NotPayable for a currency that the provider does not take."""
        decimals = self._decimals.get(currency)
        if decimals is None:
            raise NotPayable(CURRENCY_NOT_SUPPORTED, Decimal(units), currency)
        return Decimal(units).scaleb(-decimals)
