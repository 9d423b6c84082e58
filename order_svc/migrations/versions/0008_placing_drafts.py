"""Drafts whose placing has begun."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.drop_constraint("complete_unless_draft", "orders")
    op.create_check_constraint(
        "complete_unless_draft",
        "orders",
        "status IN ('DRAFT', 'PLACING', 'CANCELLED') OR (payment_deadline IS NOT NULL AND currency <> '')",
    )
    op.create_index(
        "orders_placing", "orders", ["update_time"], unique=False, postgresql_where=sa.text("status = 'PLACING'")
    )
