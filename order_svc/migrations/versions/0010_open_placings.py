"""The placings of a draft that may hold its stock."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column(
        "orders",
        sa.Column(
            "open_placings",
            sa.SmallInteger(),
            nullable=False,
            server_default="0",
            comment="of a draft, the placings that may hold its stock",
        ),
    )
    # Their outcome is not known, and stays so.
    op.execute("UPDATE orders SET open_placings = 1 WHERE status = 'PLACING'")
