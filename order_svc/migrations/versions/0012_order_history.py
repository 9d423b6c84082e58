"""The events of orders, kept for good."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.create_table(
        "order_history",
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
    # The outbox keeps those of the last days.
    op.execute(
        "INSERT INTO order_history (subject_id, event_id, type, time, trace_id, actor) "
        "SELECT aggregate_id, event_id, type, create_time, substr(traceparent, 4, 32), '' FROM mesh.outbox"
    )
