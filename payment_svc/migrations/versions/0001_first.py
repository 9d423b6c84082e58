"""The payments with their ledger, and the record of the sandbox provider."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from mesh.db.migrations import create_runtime_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_runtime_tables()
    op.create_table(
        "payments",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("order_id", sa.Uuid(), nullable=False, comment="an order is charged once"),
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("amount", sa.Numeric(precision=28, scale=9), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("provider", sa.String(), nullable=False, comment="empty when called off before one was chosen"),
        sa.Column("token", sa.String(), nullable=False, comment="a secret, kept while a charge may need it"),
        sa.Column("provider_key", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("refunded_amount", sa.Numeric(precision=28, scale=9), nullable=False),
        sa.Column("provider_reference", sa.String(), nullable=False),
        sa.Column("failure_reason", sa.String(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False, comment="without an outcome, of what is due now"),
        sa.Column(
            "next_attempt_time",
            postgresql.TIMESTAMP(timezone=True),
            nullable=True,
            comment="when the sweep may take it; null when nothing is due",
        ),
        sa.Column("create_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("process_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("traceparent", sa.String(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "(next_attempt_time IS NOT NULL) = (status = 'PENDING' OR cancel_requested AND status IN ('CAPTURED', 'PARTIALLY_REFUNDED'))",
            name="attempted_while_due",
        ),
        sa.CheckConstraint("(status = 'PENDING') = (process_time IS NULL)", name="processed_unless_pending"),
        sa.CheckConstraint(
            "CASE status WHEN 'PARTIALLY_REFUNDED' THEN 0 < refunded_amount AND refunded_amount < amount WHEN 'REFUNDED' THEN refunded_amount = amount ELSE status IN ('PENDING', 'CAPTURED', 'DECLINED', 'VOIDED') AND refunded_amount = 0 END",
            name="status_as_refunded",
        ),
        sa.CheckConstraint("status = 'PENDING' OR token = ''", name="token_only_while_pending"),
        sa.CheckConstraint("0 <= refunded_amount AND refunded_amount <= amount", name="refunded_within_amount"),
        sa.CheckConstraint("amount > 0", name="amount_positive"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("order_id"),
        sa.UniqueConstraint("provider_key"),
    )
    op.create_index(
        "payments_due",
        "payments",
        ["next_attempt_time"],
        unique=False,
        postgresql_where=sa.text("next_attempt_time IS NOT NULL"),
    )
    op.create_table(
        "payment_entries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("payment_id", sa.Uuid(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("amount", sa.Numeric(precision=28, scale=9), nullable=False),
        sa.Column("provider_reference", sa.String(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("create_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.CheckConstraint("type IN ('CAPTURE', 'REFUND', 'VOID')", name="type_known"),
        sa.CheckConstraint("amount > 0", name="amount_positive"),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("payment_id", "type", "provider_reference", name="movement_once"),
        comment="The ledger. Rows are only ever added.",
    )
    op.create_index(
        "payment_entries_capture",
        "payment_entries",
        ["payment_id"],
        unique=True,
        postgresql_where=sa.text("type = 'CAPTURE'"),
    )
    op.execute(
        "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
    )
    op.execute(
        "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON payment_entries "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )
    op.execute("CREATE SCHEMA sandbox")
    op.create_table(
        "attempts",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("token", sa.String(), nullable=False),
        sa.Column("amount", sa.Numeric(precision=28, scale=9), nullable=False),
        sa.Column("order_id", sa.Uuid(), nullable=False),
        sa.Column(
            "create_time",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id"),
        schema="sandbox",
        comment="Every request for a charge that has reached the provider, whatever came of it.",
    )
    op.create_index("ix_sandbox_attempts_key", "attempts", ["key"], unique=False, schema="sandbox")
    op.create_table(
        "charges",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("reference", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("token", sa.String(), nullable=True, comment="null for a key that was voided before a charge came"),
        sa.Column("amount", sa.Numeric(precision=28, scale=9), nullable=True),
        sa.Column("currency", sa.String(length=3), nullable=True),
        sa.Column("order_id", sa.Uuid(), nullable=True, comment="what the caller said it was for"),
        sa.Column("refunded_amount", sa.Numeric(precision=28, scale=9), server_default="0", nullable=False),
        sa.Column(
            "create_time",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "refunded_amount <= CASE status WHEN 'APPROVED' THEN amount ELSE 0 END", name="refunded_within_amount"
        ),
        sa.CheckConstraint("status = 'VOIDED' OR amount > 0", name="amount_positive"),
        sa.CheckConstraint("status IN ('APPROVED', 'DECLINED', 'VOIDED')", name="status_known"),
        sa.CheckConstraint("0 <= refunded_amount", name="refunded_not_negative"),
        sa.PrimaryKeyConstraint("key"),
        sa.UniqueConstraint("reference"),
        schema="sandbox",
        comment="What stands under each key. Two approved charges of one order would be a double charge.",
    )
    op.create_index("charges_order", "charges", ["order_id"], unique=False, schema="sandbox")
    op.create_table(
        "refunds",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("charge_key", sa.String(), nullable=False),
        sa.Column("reference", sa.String(), nullable=False),
        sa.Column("amount", sa.Numeric(precision=28, scale=9), nullable=False),
        sa.Column(
            "create_time",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint("amount > 0", name="amount_positive"),
        sa.ForeignKeyConstraint(["charge_key"], ["sandbox.charges.key"]),
        sa.PrimaryKeyConstraint("key"),
        sa.UniqueConstraint("reference"),
        schema="sandbox",
    )
