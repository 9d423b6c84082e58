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
    """Set `target`, a field of a message, to an amount. This is faster than copying a `Money`."""
    total = int(amount.scaleb(9))
    # `Money` requires the same sign in both parts.
    units = total // _NANOS if total >= 0 else -(-total // _NANOS)
    target.currency_code, target.units, target.nanos = currency, units, total - units * _NANOS


def amount(value: Money) -> Decimal:
    """The amount of a `Money`, exact."""
    return Decimal(value.units * _NANOS + value.nanos).scaleb(-9)


def timestamp(moment: datetime) -> Timestamp:
    """The `Timestamp` of an aware time, to the microsecond."""
    made = Timestamp()
    put_time(made, moment)
    return made


def put_time(target: Timestamp, moment: datetime) -> None:
    """Set `target`, a field of a message, to a time; see `put_money`."""
    since = moment - _EPOCH
    target.seconds, target.nanos = since.days * 86_400 + since.seconds, since.microseconds * 1000


def moment(stamp: Timestamp) -> datetime:
    """A `Timestamp` as an aware time in UTC."""
    return stamp.ToDatetime(tzinfo=UTC)


def uuid_or_none(text: str) -> UUID | None:
    """The id in a field that may be empty. The contract's validation has already rejected any other text."""
    return parse_id(text) if text else None
