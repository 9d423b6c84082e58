"""Amounts: every `google.type.Money` of a request, at any depth (ADR 32).

The rules are those of the type, not of a field, so no contract declares them. Whether an amount may be negative or zero
depends on the field and is a rule of the contract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iso4217 import raw_table

from commerce.validation.v1 import validation_pb2
from mesh.rpc.validation.paths import Fault, Path

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, FieldDescriptor
    from google.protobuf.message import Message

TYPE = "google.type.Money"
MAX_UNITS = 10**15 - 1
"""The greatest number of whole units of an amount."""
MINOR_UNITS: Mapping[str, int] = {
    code: int(decimals) for code, entry in raw_table.items() if (decimals := str(entry["CcyMnrUnts"])).isdigit()
}
"""The decimals of each currency of ISO 4217. Codes without a minor unit (XXX, XTS, gold, XDR) are not currencies."""

_NANOS = 10**9
_MINOR_UNIT_NANOS = {code: 10 ** (9 - decimals) for code, decimals in MINOR_UNITS.items()}


def is_valid(money: Any) -> bool:
    """Whether an amount violates no rule."""
    return fault_of(money) is None


def is_valid_or_nothing(money: Any) -> bool:
    """The same, but zero needs no currency code."""
    return not (money.currency_code or money.units or money.nanos) or fault_of(money) is None


def check_of(field: FieldDescriptor) -> Callable[[Any], bool]:
    """The check of one amount in this field."""
    may_be_nothing = field.GetOptions().Extensions[validation_pb2.zero_without_currency]
    return is_valid_or_nothing if may_be_nothing else is_valid


def fault_of(money: Any) -> str | None:
    """The description of the first violation of an amount; None if it is valid."""
    code, units, nanos = money.currency_code, money.units, money.nanos
    minor_unit = _MINOR_UNIT_NANOS.get(code)
    if minor_unit is None:
        return "currency_code must be the ISO 4217 code of a currency, such as EUR"
    if not -_NANOS < nanos < _NANOS:
        return "nanos must be between -999999999 and 999999999"
    if units * nanos < 0:
        return "units and nanos must have the same sign"
    if not -MAX_UNITS <= units <= MAX_UNITS:
        return f"units must be between -{MAX_UNITS} and {MAX_UNITS}"
    if nanos % minor_unit:
        decimals = MINOR_UNITS[code]
        return f"must have at most {decimals} decimals in {code}" if decimals else f"must have no decimals in {code}"
    return None


class Amounts:
    """The amounts in a message type."""

    def __init__(self, message_type: Descriptor) -> None:
        """`message_type` does not contain itself."""
        self._fields = _fields(message_type)

    def faults(self, message: Message) -> Iterator[Fault]:
        """The amounts of a message that are not valid, with the first violation of each."""
        return _faults(message, self._fields, ())


@dataclass(frozen=True, slots=True)
class _Field:
    """A field with amounts in it."""

    name: str
    is_repeated: bool
    is_valid: Callable[[Any], bool] | None
    """The check of an amount; None for other messages."""
    inside: Sequence[_Field]


def _fields(message_type: Descriptor) -> list[_Field]:
    fields = []
    for field in message_type.fields:
        if field.message_type is None:
            continue
        is_money = field.message_type.full_name == TYPE
        inside = [] if is_money else _fields(field.message_type)
        if is_money or inside:
            fields.append(_Field(field.name, field.is_repeated, check_of(field) if is_money else None, inside))
    return fields


def _faults(message: Any, fields: Sequence[_Field], above: Path) -> Iterator[Fault]:
    for field in fields:
        path = (*above, field.name)
        if field.is_repeated:
            for index, value in enumerate(getattr(message, field.name)):
                yield from _faults_in(value, field, (*path, index))
        elif message.HasField(field.name):
            yield from _faults_in(getattr(message, field.name), field, path)


def _faults_in(value: Any, field: _Field, path: Path) -> Iterator[Fault]:
    if field.is_valid is None:
        yield from _faults(value, field.inside, path)
    elif not field.is_valid(value) and (description := fault_of(value)):
        yield path, description
