"""A payment names its payment method instead of holding the token (ADR-0035).

The column `token` stays for the payments that are pending now, and for events of earlier versions, which carry a token.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column(
        "payments",
        sa.Column(
            "payment_method_id",
            sa.Uuid(),
            nullable=True,
            comment="null for orders that cost nothing or were placed before ADR-0035",
        ),
    )
    op.alter_column(
        "payments",
        "token",
        comment="a secret, only of orders placed before ADR-0035",
        existing_comment="a secret, kept while a charge may need it",
        existing_type=sa.String(),
        existing_nullable=False,
    )
