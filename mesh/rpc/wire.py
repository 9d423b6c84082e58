"""Plain values ↔ the well-known messages of the wire."""

from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp
from google.type.money_pb2 import Money

from mesh.ids import parse_id

_NANOS = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def money(amount: Decimal, currency: str) -> Money:
    """`amount` in whole units of an ISO 4217 `currency`, exact to the nano."""
    made = Money()
    put_money(made, amount, currency)
    return made


def put_money(target: Money, amount: Decimal, currency: str) -> None:
    """Make `target`, the field of a message, that `amount`; quicker than to make a `Money` and have it copied."""
    total = int(amount.scaleb(9))
    # Both parts have the sign of the whole, as Money wants it.
    units = total // _NANOS if total >= 0 else -(-total // _NANOS)
    target.currency_code, target.units, target.nanos = currency, units, total - units * _NANOS


def amount(value: Money) -> Decimal:
    """The amount of a `Money`, exact."""
    return Decimal(value.units * _NANOS + value.nanos).scaleb(-9)


def timestamp(moment: datetime) -> Timestamp:
    """An aware moment, to the microsecond."""
    made = Timestamp()
    put_time(made, moment)
    return made


def put_time(target: Timestamp, moment: datetime) -> None:
    """Make `target`, the field of a message, that moment; see `put_money`."""
    since = moment - _EPOCH
    target.seconds, target.nanos = since.days * 86_400 + since.seconds, since.microseconds * 1000


def moment(stamp: Timestamp) -> datetime:
    """A `Timestamp` as an aware moment in UTC."""
    return stamp.ToDatetime(tzinfo=UTC)


def uuid_or_none(text: str) -> UUID | None:
    """The id in a field that may be empty; the contract's validation has already refused any other text."""
    return parse_id(text) if text else None
