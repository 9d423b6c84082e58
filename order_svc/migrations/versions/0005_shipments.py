"""The shipments of orders."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "shipments",
        sa.Column("order_id", sa.Uuid(), nullable=False),
        sa.Column("carrier", sa.String(), nullable=False),
        sa.Column("tracking_number", sa.String(), nullable=False),
        sa.Column("ship_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column(
            "deliver_time",
            postgresql.TIMESTAMP(timezone=True),
            nullable=True,
            comment="null until the order is delivered",
        ),
        sa.PrimaryKeyConstraint("order_id"),
    )
