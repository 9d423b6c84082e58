"""Customers who are being erased."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column(
        "customers",
        sa.Column(
            "erase_time",
            postgresql.TIMESTAMP(timezone=True),
            nullable=True,
            comment="when their erasure began; null for all others",
        ),
    )
    op.create_index(
        "customers_erasing",
        "customers",
        ["erase_time"],
        unique=False,
        postgresql_where=sa.text("erase_time IS NOT NULL"),
    )
