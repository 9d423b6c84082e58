"""The currencies that Stripe takes, and how it counts them: by Stripe's documentation, not by ISO 4217.

Read in November 2026 at https://docs.stripe.com/currencies. Of the currencies listed there as zero-decimal, UGX is left
out: the same page also asks for two decimals of it. Currencies that ISO 4217 has withdrawn are left out, too.
"""

from __future__ import annotations

from payment_svc.providers.minor_units import MinorUnits

_WITHOUT_DECIMALS = frozenset({
    "BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF", "VND", "VUV", "XAF", "XOF", "XPF",
})  # fmt: skip
_WITH_THREE_DECIMALS = frozenset({"BHD", "JOD", "KWD", "OMR", "TND"})
_WITH_WHOLE_UNITS = frozenset({"ISK"})
"""Counted with two decimals that must be 00."""
_WITH_TWO_DECIMALS = frozenset({
    "AED", "AFN", "ALL", "AMD", "AOA", "ARS", "AUD", "AWG", "AZN", "BAM", "BBD", "BDT", "BMD", "BND", "BOB", "BRL",
    "BSD", "BWP", "BYN", "BZD", "CAD", "CDF", "CHF", "CNY", "COP", "CRC", "CVE", "CZK", "DKK", "DOP", "DZD", "EGP",
    "ETB", "EUR", "FJD", "FKP", "GBP", "GEL", "GIP", "GMD", "GTQ", "GYD", "HKD", "HNL", "HTG", "HUF", "IDR", "ILS",
    "INR", "JMD", "KES", "KGS", "KHR", "KYD", "KZT", "LAK", "LBP", "LKR", "LRD", "LSL", "MAD", "MDL", "MKD", "MMK",
    "MNT", "MOP", "MUR", "MVR", "MWK", "MXN", "MYR", "MZN", "NAD", "NGN", "NIO", "NOK", "NPR", "NZD", "PAB", "PEN",
    "PGK", "PHP", "PKR", "PLN", "QAR", "RON", "RSD", "SAR", "SBD", "SCR", "SEK", "SGD", "SHP", "SLE", "SOS", "SRD",
    "SZL", "THB", "TJS", "TOP", "TRY", "TTD", "TWD", "TZS", "UAH", "USD", "UYU", "UZS", "WST", "XCD", "YER", "ZAR",
    "ZMW",
})  # fmt: skip

MINOR_UNITS = MinorUnits(
    dict.fromkeys(_WITHOUT_DECIMALS, 0)
    | dict.fromkeys(_WITH_TWO_DECIMALS | _WITH_WHOLE_UNITS, 2)
    | dict.fromkeys(_WITH_THREE_DECIMALS, 3),
    # The last of three decimals must be 0.
    steps=dict.fromkeys(_WITH_THREE_DECIMALS, 10) | dict.fromkeys(_WITH_WHOLE_UNITS, 100),
)
"""Amounts at Stripe: JPY 100 is 100, EUR 1.23 is 123, ISK 5 is 500, KWD 1.23 is 1230, and KWD 1.234 is refused."""
