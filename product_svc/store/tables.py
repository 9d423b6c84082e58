"""The product service's tables."""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from mesh.db.columns import AMOUNT, CURRENCY, TIME
from mesh.db.history import history

metadata = sa.MetaData()


def _weighted(column: str, weight: str) -> str:
    """The words of a column, for a search. PostgreSQL would read `TEA-1` as the word `tea` and the number -1."""
    return f"setweight(to_tsvector('simple', regexp_replace({column}, '[^[:alnum:]]+', ' ', 'g')), '{weight}')"


products = sa.Table(
    "products",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("sku", sa.String, nullable=False, unique=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("description", sa.String, nullable=False),
    sa.Column("price", AMOUNT, nullable=False),
    sa.Column("currency", CURRENCY, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("create_time", TIME, nullable=False),
    sa.Column("update_time", TIME, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column(
        "search",
        pg.TSVECTOR,
        sa.Computed(" || ".join(map(_weighted, ("sku", "name", "description"), "ABD")), persisted=True),
    ),
    sa.CheckConstraint("price >= 0", name="price_not_negative"),
)
# Every search reads the pending list of a GIN index; without one, only changes of products are slower.
sa.Index("products_search", products.c.search, postgresql_using="gin", postgresql_with={"fastupdate": "off"})
sa.Index("products_create_time", products.c.create_time, products.c.id)
sa.Index("products_name", products.c.name, products.c.id)
sa.Index("products_currency_price", products.c.currency, products.c.price, products.c.id)

price_changes = sa.Table(
    "price_changes",
    metadata,
    sa.Column("id", sa.Uuid, nullable=False),
    sa.Column("product_id", sa.Uuid, sa.ForeignKey(products.c.id), nullable=False),
    sa.Column("price", AMOUNT, nullable=False),
    sa.Column("currency", CURRENCY, nullable=False),
    sa.Column("previous_price", AMOUNT, nullable=False),
    sa.Column("previous_currency", CURRENCY, nullable=False),
    sa.Column("change_time", TIME, nullable=False),
    sa.Column("actor", sa.String, nullable=False),
    sa.PrimaryKeyConstraint("product_id", "id"),
)

stocks = sa.Table(
    "stocks",
    metadata,
    sa.Column("product_id", sa.Uuid, sa.ForeignKey(products.c.id), primary_key=True),
    sa.Column("on_hand", sa.BigInteger, nullable=False),
    sa.Column("reserved", sa.BigInteger, nullable=False),
    sa.Column("update_time", TIME, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    # Beside the quantity on hand, so that a sale needs no other row to see that stock is low.
    sa.Column("low_stock_threshold", sa.BigInteger, nullable=False, server_default="10"),
    # No fault in the code can oversell: the database rejects it.
    sa.CheckConstraint("0 <= reserved AND reserved <= on_hand", name="reserved_within_on_hand"),
    postgresql_with={"fillfactor": "50"},
)

holds = sa.Table(
    "holds",
    metadata,
    sa.Column("order_id", sa.Uuid, primary_key=True),
    sa.Column("key", sa.LargeBinary, nullable=False),
    sa.Column("customer_id", sa.Uuid, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("expire_time", TIME, nullable=False),
    sa.Column("create_time", TIME, nullable=False, server_default=sa.func.now()),
)
IS_HELD = sa.text("state = 'HELD'")
# A key has one hold at a time; when that is resolved, the key may have another one.
sa.Index("holds_live_key", holds.c.key, unique=True, postgresql_where=IS_HELD)
sa.Index("holds_expiring", holds.c.expire_time, postgresql_where=IS_HELD)

hold_lines = sa.Table(
    "hold_lines",
    metadata,
    sa.Column("order_id", sa.Uuid, primary_key=True),
    sa.Column("product_id", sa.Uuid, primary_key=True),
    sa.Column("quantity", sa.BigInteger, nullable=False),
    sa.Column("sku", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("unit_price", AMOUNT, nullable=False),
    sa.Column("currency", CURRENCY, nullable=False),
    sa.CheckConstraint("quantity > 0", name="quantity_positive"),
)

movements = sa.Table(
    "stock_movements",
    metadata,
    sa.Column("id", sa.Uuid, nullable=False),
    sa.Column("product_id", sa.Uuid, nullable=False),
    sa.Column("delta", sa.BigInteger, nullable=False),
    sa.Column("on_hand_after", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("order_id", sa.Uuid),
    sa.Column("note", sa.String, nullable=False),
    sa.Column("create_time", TIME, nullable=False),
    sa.Column("actor", sa.String, nullable=False),
    # One index serves uniqueness and the list of a product's movements: the ledger is the longest table.
    sa.PrimaryKeyConstraint("product_id", "id"),
    sa.CheckConstraint("on_hand_after >= 0", name="on_hand_not_negative"),
)

hold_history = history("hold_history", metadata)
