"""The payment of an order whose total is zero."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.drop_constraint("amount_positive", "payments")
    op.create_check_constraint(
        "zero_without_provider",
        "payments",
        "amount > 0 OR amount = 0 AND provider = '' AND status IN ('CAPTURED', 'VOIDED')",
    )
    op.alter_column(
        "payments",
        "provider",
        existing_type=sa.String(),
        existing_nullable=False,
        existing_comment="empty when called off before one was chosen",
        comment="empty if nothing was ever to be charged",
    )
