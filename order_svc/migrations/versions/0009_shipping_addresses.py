"""The addresses that orders are shipped to."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "shipping_addresses",
        sa.Column("order_id", sa.Uuid(), nullable=False),
        sa.Column(
            "postal_address",
            postgresql.JSONB(),
            nullable=False,
            comment="personal data: deleted with that of the customer",
        ),
        sa.PrimaryKeyConstraint("order_id"),
    )
