"""Changes of prices."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "price_changes",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("product_id", sa.Uuid(), nullable=False),
        sa.Column("price", sa.Numeric(precision=28, scale=9), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("previous_price", sa.Numeric(precision=28, scale=9), nullable=False),
        sa.Column("previous_currency", sa.String(length=3), nullable=False),
        sa.Column("change_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["product_id"], ["products.id"]),
        sa.PrimaryKeyConstraint("product_id", "id"),
    )
    for name, events in (("append_only", "UPDATE OR DELETE"), ("append_only_truncate", "TRUNCATE")):
        op.execute(
            f"CREATE TRIGGER {name} BEFORE {events} ON price_changes FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
