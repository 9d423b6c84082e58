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


metadata = sa.MetaData(schema="sandbox")
_TIME = pg.TIMESTAMP(timezone=True)
_AMOUNT = sa.Numeric(28, 9)
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
    sa.Column("currency", sa.String(3)),
    sa.Column("order_id", sa.Uuid, comment="what the caller said it was for"),
    sa.Column("refunded_amount", _AMOUNT, nullable=False, server_default="0"),
    sa.Column("create_time", _TIME, nullable=False, server_default=_now),
    sa.CheckConstraint("status IN ('APPROVED', 'DECLINED', 'VOIDED')", name="status_known"),
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

_keys = sa.bindparam("keys", type_=sa.ARRAY(sa.String))
DECIDE = BulkInsert(
    charges.c.key, charges.c.status, charges.c.reference, charges.c.reason, charges.c.token, charges.c.amount,
    charges.c.currency, charges.c.order_id,
    returning=[charges.c.key], skip_existing=True,
)  # fmt: skip
LOG_ATTEMPTS = BulkInsert(attempts.c.key, attempts.c.token, attempts.c.amount, attempts.c.order_id)
TRIED = Statement(sa.select(attempts.c.key).where(attempts.c.key == sa.any_(_keys)).distinct())
CHARGES = Statement(sa.select(charges).where(charges.c.key == sa.any_(_keys)))
LOCK_CHARGES = Statement(
    sa.select(charges).where(charges.c.key == sa.any_(_keys)).order_by(charges.c.key).with_for_update()
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
    refunds.c.status,
    refunds.c.reason,
    name="add sandbox refunds",
)
_refunded = unnested({"keys": ("key", sa.String), "totals": ("total", _AMOUNT)})
WRITE_REFUNDED = Statement(
    sa.update(charges).where(charges.c.key == _refunded.c.key).values(refunded_amount=_refunded.c.total)
)
