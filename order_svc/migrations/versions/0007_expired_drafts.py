"""An index for drafts that expire."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_index(
        "orders_drafts", "orders", ["update_time"], unique=False, postgresql_where=sa.text("status = 'DRAFT'")
    )
