"""Webhooks, and what providers alone know: disputes, fees, and records that differ from the books."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"

_AMOUNT = sa.Numeric(precision=28, scale=9)
_TIME = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.add_column(
        "payments",
        sa.Column(
            "dispute_time",
            _TIME,
            nullable=True,
            comment="when the customer disputed it at the bank for the first time",
        ),
    )
    op.drop_constraint("type_known", "payment_entries")
    op.create_check_constraint(
        "type_known", "payment_entries", "type IN ('CAPTURE', 'REFUND', 'VOID', 'FEE', 'DISPUTE', 'DIFFERENCE')"
    )
    op.create_index(
        "payment_entries_captured_reference",
        "payment_entries",
        ["provider_reference"],
        unique=False,
        postgresql_where=sa.text("type = 'CAPTURE'"),
    )
    op.create_table(
        "webhooks",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("provider", sa.String(), nullable=False),
        sa.Column("event_id", sa.String(), nullable=False, comment="the provider's"),
        sa.Column("type", sa.String(), nullable=False, comment="in the provider's words"),
        sa.Column("payment_id", sa.Uuid(), nullable=True, comment="as the webhook says; it may not exist"),
        sa.Column("refund_id", sa.Uuid(), nullable=True, comment="as the webhook says; it may not exist"),
        sa.Column(
            "reference", sa.String(), nullable=False, comment="the provider's, of the charge; empty if it names none"
        ),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False, comment="to look it up, without an answer"),
        sa.Column(
            "next_attempt_time", _TIME, nullable=True, comment="when the sweep may take it; null when nothing is due"
        ),
        sa.Column("create_time", _TIME, nullable=False),
        sa.Column("process_time", _TIME, nullable=True),
        sa.CheckConstraint("status IN ('PENDING', 'APPLIED', 'IGNORED')", name="status_known"),
        sa.CheckConstraint("(status = 'PENDING') = (process_time IS NULL)", name="processed_unless_pending"),
        sa.CheckConstraint("(status = 'PENDING') = (next_attempt_time IS NOT NULL)", name="attempted_while_pending"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("provider", "event_id", name="event_once"),
        comment="What providers have sent, kept 90 days, without personal data.",
    )
    op.create_index(
        "webhooks_due",
        "webhooks",
        ["provider", "next_attempt_time"],
        unique=False,
        postgresql_where=sa.text("next_attempt_time IS NOT NULL"),
    )
    op.create_index("webhooks_create_time", "webhooks", ["create_time"], unique=False)
    op.create_table(
        "findings",
        sa.Column("payment_id", sa.Uuid(), nullable=False),
        sa.Column("type", sa.String(), nullable=False, comment="of the movement"),
        sa.Column("reference", sa.String(), nullable=False, comment="the provider's, of the movement"),
        sa.Column("booked", _AMOUNT, nullable=False, comment="the amount in the books; 0 if it is not there"),
        sa.Column("recorded", _AMOUNT, nullable=False, comment="the amount at the provider; 0 if it is not there"),
        sa.Column("create_time", _TIME, nullable=False),
        sa.Column("resolve_time", _TIME, nullable=True, comment="null while they differ"),
        sa.CheckConstraint("type IN ('CAPTURE', 'REFUND')", name="type_known"),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"]),
        sa.PrimaryKeyConstraint("payment_id", "type", "reference"),
        comment="Differences between the books and the records of providers.",
    )
    op.create_index(
        "findings_open", "findings", ["payment_id"], unique=False, postgresql_where=sa.text("resolve_time IS NULL")
    )
    op.create_table(
        "reconciliation_walks",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column(
            "position", sa.Uuid(), nullable=True, comment="the last payment that was taken; null at the end of a round"
        ),
        sa.Column("begin_time", _TIME, nullable=False, comment="of the round"),
        sa.PrimaryKeyConstraint("name"),
        comment="How far the payments are compared with the records of providers.",
    )
    op.execute("INSERT INTO reconciliation_walks VALUES ('RECENT', NULL, '1970-01-01Z'), ('ALL', NULL, '1970-01-01Z')")
    op.create_table(
        "disputes",
        sa.Column("charge_key", sa.String(), nullable=False),
        sa.Column("reference", sa.String(), nullable=False),
        sa.Column("amount", _AMOUNT, nullable=False),
        sa.Column("open_time", _TIME, nullable=False, comment="nobody knows of it before"),
        sa.CheckConstraint("amount > 0", name="amount_positive"),
        sa.PrimaryKeyConstraint("charge_key"),
        sa.UniqueConstraint("reference"),
        schema="sandbox",
    )
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("charge_key", sa.String(), nullable=False),
        sa.Column("send_time", _TIME, nullable=True, comment="when to send it next; null when it was accepted"),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id"),
        schema="sandbox",
        comment="What the sandbox tells the service by webhook.",
    )
    op.create_index(
        "webhooks_due",
        "webhooks",
        ["send_time"],
        unique=False,
        schema="sandbox",
        postgresql_where=sa.text("send_time IS NOT NULL"),
    )
