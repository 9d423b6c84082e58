"""Plain values ↔ the wire, without loss."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from google.type.money_pb2 import Money
from hypothesis import given
from hypothesis import strategies as st

from mesh.rpc import wire

AMOUNTS = st.decimals(min_value=-(10**18), max_value=10**18, places=9, allow_nan=False, allow_infinity=False)


@given(AMOUNTS)
def test_amount_keeps_its_value_to_the_nano(amount: Decimal) -> None:
    sent = Money.FromString(wire.money(amount, "EUR").SerializeToString())
    assert wire.amount(sent) == amount
    assert sent.currency_code == "EUR"


@given(AMOUNTS)
def test_units_and_nanos_never_have_opposite_signs(amount: Decimal) -> None:
    sent = wire.money(amount, "EUR")
    assert abs(sent.nanos) < 1_000_000_000
    assert sent.units * sent.nanos >= 0
    assert (sent.units < 0 or sent.nanos < 0) == (amount < 0)


@pytest.mark.parametrize(
    ("amount", "units", "nanos"),
    [("12.50", 12, 500_000_000), ("-0.01", 0, -10_000_000), ("0", 0, 0), ("0.000000001", 0, 1)],
)
def test_amount_is_split_into_units_and_nanos(amount: str, units: int, nanos: int) -> None:
    sent = wire.money(Decimal(amount), "USD")
    assert (sent.units, sent.nanos) == (units, nanos)


@given(
    st.datetimes(
        min_value=datetime(1, 1, 3),  # noqa: DTZ001  # hypothesis adds the zone
        max_value=datetime(9999, 12, 30),  # noqa: DTZ001
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=-11)), timezone(timedelta(hours=5, minutes=45))]),
    )
)
def test_time_survives_the_conversion_in_utc_to_the_microsecond(moment: datetime) -> None:
    back = wire.moment(wire.timestamp(moment))
    assert back == moment
    assert back.tzinfo is UTC


@given(st.uuids())
def test_id_survives_the_conversion_and_an_empty_field_is_none(value: object) -> None:
    assert wire.uuid_or_none(str(value)) == value
    assert wire.uuid_or_none("") is None
