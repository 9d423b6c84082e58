"""Indexes for what has had its time, and for orders that are being cancelled."""

import sqlalchemy as sa
from alembic import op

from mesh.db.migrations import index_ages

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    index_ages()
    op.create_index(
        "orders_cancelling", "orders", ["update_time"], unique=False, postgresql_where=sa.text("status = 'CANCELLING'")
    )
