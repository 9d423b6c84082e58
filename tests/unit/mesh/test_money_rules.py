"""Amounts of money in requests: known currencies, and at most their number of decimals."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any, cast

import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.type.money_pb2 import Money
from hypothesis import given
from hypothesis import strategies as st

from commerce.product.v1 import inventory_pb2, product_pb2
from mesh.rpc import validation, wire
from mesh.rpc.reflection import load_contracts
from mesh.rpc.validation import money

Fields = tuple[FieldDescriptor, ...]
"""The path from a request to one of its fields, at any depth."""

GOOD = [
    *(("EUR", amount) for amount in ("0", "0.01", "9.99", "-9.99", "999999999999999.99", "-999999999999999.99")),
    *(("JPY", amount) for amount in ("0", "1", "999999999999999")),
    *(("KWD", amount) for amount in ("1.125", "0.001")),
    *(("CLF", "1.1254"), ("USD", "0.10"), ("HUF", "0.01")),
]
BAD = [
    *(("EUR", amount) for amount in ("9.999", "0.001", "-0.001", "0.000000001")),
    *(("JPY", amount) for amount in ("0.5", "1.1", "-0.1")),
    *(("KWD", "1.1254"), ("CLF", "1.12545")),
    *((code, "1") for code in ("XXX", "XTS", "XAU", "XDR", "eur", "EURO", "EU", "", "DEM", "ÉUR", " EUR", "EUR ")),
    *((code, "0") for code in ("XXX", "XTS", "")),
    *(("EUR", str(amount)) for amount in (10**15, -(10**15))),
]
AGAINST_THE_TYPE = [
    Money(currency_code="EUR", units=1, nanos=-500_000_000),
    Money(currency_code="EUR", units=-1, nanos=500_000_000),
    Money(currency_code="EUR", nanos=1_000_000_000),
    Money(currency_code="EUR", units=-1, nanos=-1_000_000_000),
    Money(currency_code="JPY", nanos=2_000_000_000),
    Money(currency_code="EUR", units=2**63 - 1),
    Money(currency_code="EUR", units=-(2**63)),
]


def fields_of(message_type: Descriptor, above: Fields = ()) -> Iterator[Fields]:
    """All amounts in a message type."""
    for field in message_type.fields:
        if field.message_type is None:
            continue
        if field.message_type.full_name == money.TYPE:
            yield (*above, field)
        else:
            yield from fields_of(field.message_type, (*above, field))


def amounts() -> list[Fields]:
    """All amounts in the requests of all services."""
    pool = descriptor_pool.Default()
    services = (service for name in load_contracts() for service in pool.FindFileByName(name).services_by_name.values())
    return [fields for service in services for method in service.methods for fields in fields_of(method.input_type)]


AMOUNTS = amounts()


def name_of(fields: Fields) -> str:
    """The name of a test case."""
    return f"{type_of(fields).name}.{'.'.join(field.name for field in fields)}"


def type_of(fields: Fields) -> Descriptor:
    """The type of request that an amount belongs to."""
    assert fields[0].containing_type is not None
    return fields[0].containing_type


def request_with(fields: Fields, amount: Money) -> Message:
    """A request with this amount and nothing else."""
    request: Any = message_factory.GetMessageClass(type_of(fields))()
    place = request
    for field in fields:
        place = getattr(place, field.name)
        if field.is_repeated:
            place = place.add()
    place.CopyFrom(amount)
    place.SetInParent()
    return cast("Message", request)


def faults(fields: Fields, amount: Money) -> list[str]:
    """The violations of this amount in a request."""
    path = ".".join(f"{field.name}[0]" if field.is_repeated else field.name for field in fields)
    violations = validation.violations_of(type_of(fields))(request_with(fields, amount))
    return [violation.description for violation in violations if violation.field == path]


def test_there_are_amounts_to_be_checked() -> None:
    assert {"CreateProductRequest.price", "UpdateProductRequest.product.price", "RefundPaymentRequest.amount"} <= {
        name_of(fields) for fields in AMOUNTS
    }


@pytest.mark.parametrize("fields", AMOUNTS, ids=name_of)
def test_every_amount_of_every_request_follows_its_currency(fields: Fields) -> None:
    accepted = [pair for pair in GOOD if Decimal(pair[1]) > 0 and faults(fields, wire.money(Decimal(pair[1]), pair[0]))]
    assert accepted == []
    may_be_nothing = name_of(fields).endswith("expected_total")
    refused = [pair for pair in BAD if not (may_be_nothing and pair == ("", "0"))]
    assert [pair for pair in refused if not faults(fields, wire.money(Decimal(pair[1]), pair[0]))] == []
    assert [str(amount) for amount in AGAINST_THE_TYPE if not faults(fields, amount)] == []


@pytest.mark.parametrize(("code", "amount"), GOOD)
def test_amount_in_the_minor_unit_of_its_currency_is_valid(code: str, amount: str) -> None:
    assert money.fault_of(wire.money(Decimal(amount), code)) is None


@given(st.sampled_from(sorted(money.MINOR_UNITS)), st.integers(-(10**14), 10**14))
def test_any_number_of_minor_units_is_valid_and_a_part_of_one_is_not(code: str, count: int) -> None:
    decimals = money.MINOR_UNITS[code]
    amount = Decimal(count).scaleb(-decimals)
    assert money.fault_of(wire.money(amount, code)) is None
    part = amount + Decimal(1).scaleb(-decimals - 1)
    assert "decimals in" in (money.fault_of(wire.money(part, code)) or "")


def test_price_may_be_zero_but_not_negative() -> None:
    check = validation.violations_of(product_pb2.CreateProductRequest.DESCRIPTOR)
    for amount, told in (
        ("0", []),
        ("0.01", []),
        ("-0.01", ["must not be negative"]),
        ("-1", ["must not be negative"]),
    ):
        request = product_pb2.CreateProductRequest(sku="TEA", name="Tea", price=wire.money(Decimal(amount), "EUR"))
        assert [violation.description for violation in check(request)] == told


def test_expected_total_of_zero_needs_no_currency() -> None:
    fields = next(fields for fields in AMOUNTS if name_of(fields) == "ReserveStockRequest.reservations.expected_total")
    assert faults(fields, Money()) == []
    assert faults(fields, Money(units=1)) != []
    assert faults(fields, Money(currency_code="JPY")) == []


def test_amount_deep_in_a_list_is_named_by_its_path() -> None:
    holds = [inventory_pb2.Reservation(expected_total=Money(currency_code="EUR", units=1)) for _ in range(3)]
    holds[1].expected_total.nanos = 1
    request = inventory_pb2.ReserveStockRequest(reservations=holds)
    told = validation.violations_of(inventory_pb2.ReserveStockRequest.DESCRIPTOR)(request)
    assert [each.description for each in told if each.field == "reservations[1].expected_total"] == [
        "must have at most 2 decimals in EUR"
    ]


def test_table_of_currencies_is_that_of_iso_4217() -> None:
    assert {code: money.MINOR_UNITS[code] for code in ("EUR", "USD", "JPY", "KWD", "BHD", "CLF", "HUF", "UGX")} == {
        "EUR": 2, "USD": 2, "JPY": 0, "KWD": 3, "BHD": 3, "CLF": 4, "HUF": 2, "UGX": 0
    }  # fmt: skip
    assert len(money.MINOR_UNITS) > 150
    assert not {"XXX", "XTS", "XAU", "XDR", "DEM", None} & set(money.MINOR_UNITS)
