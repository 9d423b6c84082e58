"""The index of the list by price groups products by currency."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_index("products_currency_price", "products", ["currency", "price", "id"])
    op.drop_index("products_price", "products")
