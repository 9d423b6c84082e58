"""Movements of stock have one index, not two."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.drop_constraint("stock_movements_pkey", "stock_movements")
    op.create_primary_key("stock_movements_pkey", "stock_movements", ["product_id", "id"])
    op.drop_index("stock_movements_product", "stock_movements")
