"""What became of the holds of orders, kept for good."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "hold_history",
        sa.Column("subject_id", sa.Uuid(), nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column(
            "time",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("trace_id", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False, comment="empty if it is not known"),
        sa.PrimaryKeyConstraint("subject_id", "event_id"),
        comment="Rows are only ever added.",
    )
