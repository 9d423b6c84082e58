"""Orders and their items."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from mesh.db.migrations import create_runtime_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_runtime_tables()
    op.create_table(
        "order_items",
        sa.Column("order_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("product_id", sa.Uuid(), nullable=False),
        sa.Column("sku", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("unit_price", sa.Numeric(precision=28, scale=9), nullable=False),
        sa.CheckConstraint("quantity > 0", name="quantity_positive"),
        sa.PrimaryKeyConstraint("order_id", "id"),
    )
    op.create_table(
        "orders",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("total", sa.Numeric(precision=28, scale=9), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("payment_method_id", sa.Uuid(), nullable=False),
        sa.Column("payment_id", sa.Uuid(), nullable=True),
        sa.Column("order_date", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("payment_deadline", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("cancel_reason", sa.String(), nullable=True),
        sa.Column("cancel_note", sa.String(), nullable=False),
        sa.Column("update_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("total >= 0", name="total_not_negative"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("orders_customer", "orders", ["customer_id", "id"], unique=False)
    op.create_index(
        "orders_overdue", "orders", ["payment_deadline"], unique=False, postgresql_where=sa.text("status = 'PENDING'")
    )
