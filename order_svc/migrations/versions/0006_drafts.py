"""Drafts: they have no payment deadline, and no currency before they have items."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.alter_column(
        "orders",
        "currency",
        nullable=False,
        existing_type=sa.String(length=3),
        comment="empty for a draft without items",
    )
    op.alter_column(
        "orders",
        "payment_deadline",
        nullable=True,
        existing_type=postgresql.TIMESTAMP(timezone=True),
        comment="null for a draft",
    )
    op.create_check_constraint(
        "complete_unless_draft",
        "orders",
        "status IN ('DRAFT', 'CANCELLED') OR (payment_deadline IS NOT NULL AND currency <> '')",
    )
