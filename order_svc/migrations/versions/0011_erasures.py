"""The erasures of customers that are to be repeated."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.create_table(
        "erasures",
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("next_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("last_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("customer_id"),
    )
    op.create_index("erasures_due", "erasures", ["next_time"], unique=False)
