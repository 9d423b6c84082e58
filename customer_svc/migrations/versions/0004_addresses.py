"""Postal addresses of customers."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "addresses",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("region_code", sa.String(), nullable=False),
        sa.Column("language_code", sa.String(), nullable=False),
        sa.Column("postal_code", sa.String(), nullable=False),
        sa.Column("sorting_code", sa.String(), nullable=False),
        sa.Column("administrative_area", sa.String(), nullable=False),
        sa.Column("locality", sa.String(), nullable=False),
        sa.Column("sublocality", sa.String(), nullable=False),
        sa.Column("address_lines", sa.ARRAY(sa.String()), nullable=False),
        sa.Column("recipients", sa.ARRAY(sa.String()), nullable=False),
        sa.Column("organization", sa.String(), nullable=False),
        sa.Column("create_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("addresses_customer", "addresses", ["customer_id", "id"], unique=False)
