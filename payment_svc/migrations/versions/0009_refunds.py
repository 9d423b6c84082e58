"""Refunds, each with a provider key of its own; the sandbox keeps refusals.

The refund of a cancelled order was part of its payment, under the key `refund-` and the id of the payment. It keeps its
key, which the provider may know, so its id is that of its payment.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"

_AMOUNT = sa.Numeric(precision=28, scale=9)
_TIME = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.create_table(
        "refunds",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("payment_id", sa.Uuid(), nullable=False),
        sa.Column("amount", _AMOUNT, nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("provider", sa.String(), nullable=False),
        sa.Column("provider_key", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("provider_reference", sa.String(), nullable=False),
        sa.Column("failure_reason", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False, comment="for staff only"),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False, comment="without an outcome"),
        sa.Column(
            "next_attempt_time", _TIME, nullable=True, comment="when the sweep may take it; null when it has an outcome"
        ),
        sa.Column("create_time", _TIME, nullable=False),
        sa.Column("process_time", _TIME, nullable=True),
        sa.Column("traceparent", sa.String(), nullable=False),
        sa.CheckConstraint("provider_key = 'refund-' || id::text", name="provider_key_of_one_refund"),
        sa.CheckConstraint("amount > 0", name="amount_positive"),
        sa.CheckConstraint("status IN ('PENDING', 'SUCCEEDED', 'FAILED')", name="status_known"),
        sa.CheckConstraint("(status = 'PENDING') = (process_time IS NULL)", name="processed_unless_pending"),
        sa.CheckConstraint("(status = 'PENDING') = (next_attempt_time IS NOT NULL)", name="attempted_while_pending"),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("refunds_payment", "refunds", ["payment_id", "id"], unique=False)
    op.create_index(
        "refunds_due",
        "refunds",
        ["next_attempt_time"],
        unique=False,
        postgresql_where=sa.text("next_attempt_time IS NOT NULL"),
    )
    op.execute(
        "INSERT INTO refunds SELECT p.id, p.id, e.amount, p.currency, p.provider, 'refund-' || p.id, 'SUCCEEDED', "
        "e.provider_reference, '', e.note, e.actor, 0, NULL, e.create_time, e.create_time, p.traceparent "
        "FROM payment_entries e JOIN payments p ON p.id = e.payment_id WHERE e.type = 'REFUND'"
    )
    op.execute(
        "INSERT INTO refunds SELECT id, id, amount - refunded_amount, currency, provider, 'refund-' || id, 'PENDING', "
        "'', '', 'the order was cancelled', 'service:order', attempts, next_attempt_time, now(), NULL, traceparent "
        "FROM payments WHERE status <> 'PENDING' AND next_attempt_time IS NOT NULL"
    )
    op.drop_constraint("attempted_while_due", "payments")
    op.execute(
        "UPDATE payments SET next_attempt_time = NULL WHERE status <> 'PENDING' AND next_attempt_time IS NOT NULL"
    )
    op.create_check_constraint(
        "attempted_while_due", "payments", "(next_attempt_time IS NOT NULL) = (status = 'PENDING')"
    )
    # The lock makes two refunds at once of one payment count each other.
    op.execute(
        """
        CREATE FUNCTION refuse_excess_refunds() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            refundable numeric;
        BEGIN
            SELECT CASE WHEN status IN ('CAPTURED', 'PARTIALLY_REFUNDED') THEN amount - refunded_amount ELSE 0 END
            INTO refundable FROM payments WHERE id = NEW.payment_id FOR UPDATE;
            IF refundable < (
                SELECT sum(amount) FROM refunds WHERE payment_id = NEW.payment_id AND next_attempt_time IS NOT NULL
            ) THEN
                RAISE EXCEPTION 'the refunds of payment % exceed it', NEW.payment_id
                    USING ERRCODE = 'check_violation', TABLE = 'refunds', CONSTRAINT = 'refunds_within_payment';
            END IF;
            RETURN NULL;
        END
        $$
        """
    )
    op.execute(
        "CREATE TRIGGER refunds_within_payment AFTER INSERT ON refunds "
        "FOR EACH ROW EXECUTE FUNCTION refuse_excess_refunds()"
    )
    op.execute(
        "CREATE TRIGGER kept BEFORE DELETE OR TRUNCATE OR UPDATE OF id, payment_id, amount ON refunds "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )
    op.add_column(
        "refunds",
        sa.Column("status", sa.String(), server_default="SUCCEEDED", nullable=False),
        schema="sandbox",
    )
    op.alter_column("refunds", "status", server_default=None, schema="sandbox")
    op.add_column("refunds", sa.Column("reason", sa.String(), server_default="", nullable=False), schema="sandbox")
    op.alter_column("refunds", "reason", server_default=None, schema="sandbox")
    op.create_check_constraint("status_known", "refunds", "status IN ('SUCCEEDED', 'REFUSED')", schema="sandbox")
