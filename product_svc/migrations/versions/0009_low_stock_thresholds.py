"""Each product has a threshold at which its stock is low. Those of before get the default of the setting."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("stocks", sa.Column("low_stock_threshold", sa.BigInteger(), server_default="10", nullable=False))
