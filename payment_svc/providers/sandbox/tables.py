"""The sandbox's own record, in a schema of its own."""

from __future__ import annotations

from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from mesh.db.database import BulkInsert, Statement, unnested


class Status(StrEnum):
    """What stands under the key of a charge."""

    APPROVED = "APPROVED"
    DECLINED = "DECLINED"
    VOIDED = "VOIDED"
    ACTION_REQUIRED = "ACTION_REQUIRED"
    """It is voided, unless the customer acts first."""
    PROCESSING = "PROCESSING"
    """It is approved when it is to be voided."""


OPEN = frozenset({Status.ACTION_REQUIRED, Status.PROCESSING})
"""The statuses that change."""


metadata = sa.MetaData(schema="sandbox")
_TIME = pg.TIMESTAMP(timezone=True)
_AMOUNT = sa.Numeric(28, 9)
_UNITS = sa.Numeric(28, 0)
_now = sa.func.clock_timestamp()

charges = sa.Table(
    "charges",
    metadata,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("reference", sa.String, nullable=False, unique=True),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("token", sa.String, comment="null for a key that was voided before a charge came"),
    sa.Column("amount", _AMOUNT),
    sa.Column("units", _UNITS, comment="the amount as it was sent, in minor units; null for a void"),
    sa.Column("currency", sa.String(3)),
    sa.Column("order_id", sa.Uuid, comment="what the caller said it was for"),
    sa.Column("refunded_amount", _AMOUNT, nullable=False, server_default="0"),
    sa.Column("create_time", _TIME, nullable=False, server_default=_now),
    sa.CheckConstraint(
        "status IN ('APPROVED', 'DECLINED', 'VOIDED', 'ACTION_REQUIRED', 'PROCESSING')", name="status_known"
    ),
    sa.CheckConstraint("status = 'VOIDED' OR amount > 0", name="amount_positive"),
    sa.CheckConstraint("0 <= refunded_amount", name="refunded_not_negative"),
    sa.CheckConstraint(
        "refunded_amount <= CASE status WHEN 'APPROVED' THEN amount ELSE 0 END", name="refunded_within_amount"
    ),
    comment="What stands under each key. Two approved charges of one order would be a double charge.",
)

refunds = sa.Table(
    "refunds",
    metadata,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("charge_key", sa.String, sa.ForeignKey(charges.c.key), nullable=False, index=True),
    sa.Column("reference", sa.String, nullable=False, unique=True),
    sa.Column("amount", _AMOUNT, nullable=False),
    sa.Column("units", _UNITS, comment="the amount as it was sent, in minor units"),
    sa.Column("create_time", _TIME, nullable=False, server_default=_now),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.CheckConstraint("amount > 0", name="amount_positive"),
    sa.CheckConstraint("status IN ('SUCCEEDED', 'REFUSED')", name="status_known"),
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("key", sa.String, nullable=False, index=True),
    sa.Column("token", sa.String, nullable=False),
    sa.Column("amount", _AMOUNT, nullable=False),
    sa.Column("order_id", sa.Uuid, nullable=False),
    sa.Column("create_time", _TIME, nullable=False, server_default=_now),
    comment="Every request for a charge that has reached the provider, whatever came of it.",
)

disputes = sa.Table(
    "disputes",
    metadata,
    sa.Column("charge_key", sa.String, primary_key=True),
    sa.Column("reference", sa.String, nullable=False, unique=True),
    sa.Column("amount", _AMOUNT, nullable=False),
    sa.Column("open_time", _TIME, nullable=False, comment="nobody knows of it before"),
    sa.CheckConstraint("amount > 0", name="amount_positive"),
)

webhooks = sa.Table(
    "webhooks",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("type", sa.String, nullable=False),
    sa.Column("charge_key", sa.String, nullable=False),
    sa.Column("send_time", _TIME, comment="when to send it next; null when it was accepted"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    comment="What the sandbox tells the service by webhook.",
)
sa.Index("webhooks_due", webhooks.c.send_time, postgresql_where=webhooks.c.send_time.is_not(None))

_keys = sa.bindparam("keys", type_=sa.ARRAY(sa.String))
DECIDE = BulkInsert(
    charges.c.key, charges.c.status, charges.c.reference, charges.c.reason, charges.c.token, charges.c.amount,
    charges.c.units, charges.c.currency, charges.c.order_id,
    returning=[charges.c.key], skip_existing=True,
)  # fmt: skip
LOG_ATTEMPTS = BulkInsert(attempts.c.key, attempts.c.token, attempts.c.amount, attempts.c.order_id)
TRIED = Statement(sa.select(attempts.c.key).where(attempts.c.key == sa.any_(_keys)).distinct())
CHARGES = Statement(sa.select(charges).where(charges.c.key == sa.any_(_keys)))
LOCK_CHARGES = Statement(
    sa.select(charges).where(charges.c.key == sa.any_(_keys)).order_by(charges.c.key).with_for_update()
)
LOCK_AGES = Statement(
    sa.select(charges.c.key, charges.c.status, (_now - charges.c.create_time).label("age"))
    .where(charges.c.key == sa.any_(_keys))
    .order_by(charges.c.key)
    .with_for_update(),
    name="lock sandbox charges",
)
_changed = unnested({"keys": ("key", sa.String), "statuses": ("status", sa.String)})
WRITE_STATUSES = Statement(
    sa.update(charges).where(charges.c.key == _changed.c.key).values(status=_changed.c.status),
    name="write statuses of sandbox charges",
)
REFUNDS = Statement(sa.select(refunds).where(refunds.c.key == sa.any_(_keys)), name="read sandbox refunds")
REFUNDS_OF_CHARGES = Statement(
    sa.select(refunds).where(refunds.c.charge_key == sa.any_(_keys), refunds.c.status == "SUCCEEDED"),
    name="read sandbox refunds of charges",
)
ADD_REFUNDS = BulkInsert(
    refunds.c.key,
    refunds.c.charge_key,
    refunds.c.reference,
    refunds.c.amount,
    refunds.c.units,
    refunds.c.status,
    refunds.c.reason,
    name="add sandbox refunds",
)
_refunded = unnested({"keys": ("key", sa.String), "totals": ("total", _AMOUNT)})
WRITE_REFUNDED = Statement(
    sa.update(charges).where(charges.c.key == _refunded.c.key).values(refunded_amount=_refunded.c.total)
)
ADD_DISPUTES = BulkInsert(
    disputes.c.charge_key,
    disputes.c.reference,
    disputes.c.amount,
    disputes.c.open_time,
    skip_existing=True,
    name="add sandbox disputes",
)
DISPUTES_OF_CHARGES = Statement(
    sa.select(disputes).where(disputes.c.charge_key == sa.any_(_keys), disputes.c.open_time <= sa.func.now()),
    name="read sandbox disputes of charges",
)
ADD_WEBHOOKS = BulkInsert(
    webhooks.c.id,
    webhooks.c.type,
    webhooks.c.charge_key,
    webhooks.c.send_time,
    skip_existing=True,
    name="add sandbox webhooks",
)
_due = (
    sa.select(webhooks.c.id)
    .where(webhooks.c.send_time <= sa.func.now())
    .order_by(webhooks.c.send_time)
    .limit(sa.bindparam("most", type_=sa.Integer))
    .with_for_update(skip_locked=True)
    .cte("due")
)
# The pause before the next attempt doubles, from one second to a minute.
TAKE_DUE_WEBHOOKS = Statement(
    sa.update(webhooks)
    .where(webhooks.c.id == _due.c.id)
    .values(
        attempts=webhooks.c.attempts + 1,
        send_time=sa.func.now()
        + sa.literal_column("interval '1 second'")
        * sa.func.least(sa.func.power(2, sa.func.least(webhooks.c.attempts, 10)), 60),
    )
    .returning(*webhooks.c),
    name="take due sandbox webhooks",
)
SENT = Statement(
    sa.update(webhooks)
    .where(webhooks.c.id == sa.any_(sa.bindparam("ids", type_=sa.ARRAY(sa.String))))
    .values(send_time=sa.null()),
    name="write sent sandbox webhooks",
)
