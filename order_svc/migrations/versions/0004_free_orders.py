"""An order whose total is zero has no payment method."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.alter_column(
        "orders",
        "payment_method_id",
        nullable=True,
        existing_type=sa.Uuid(),
        comment="null if nothing is to be paid",
    )
