"""The order service's tables."""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from mesh.db.columns import AMOUNT, TIME
from mesh.db.history import history

metadata = sa.MetaData()

orders = sa.Table(
    "orders",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("customer_id", sa.Uuid, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("total", AMOUNT, nullable=False),
    sa.Column("currency", sa.String(3), nullable=False, comment="empty for a draft without items"),
    sa.Column("payment_method_id", sa.Uuid, comment="null if nothing is to be paid"),
    sa.Column("payment_id", sa.Uuid),
    sa.Column("order_date", TIME, nullable=False),
    sa.Column("payment_deadline", TIME, comment="null for a draft"),
    sa.Column("cancel_reason", sa.String),
    sa.Column("cancel_note", sa.String, nullable=False),
    sa.Column("update_time", TIME, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column(
        "open_placings",
        sa.SmallInteger,
        nullable=False,
        server_default="0",
        comment="of a draft, the placings that may hold its stock",
    ),
    sa.CheckConstraint("total >= 0", name="total_not_negative"),
    sa.CheckConstraint(
        "status IN ('DRAFT', 'PLACING', 'CANCELLED') OR (payment_deadline IS NOT NULL AND currency <> '')",
        name="complete_unless_draft",
    ),
)
sa.Index("orders_customer", orders.c.customer_id, orders.c.id)
sa.Index("orders_overdue", orders.c.payment_deadline, postgresql_where=sa.text("status = 'PENDING'"))
sa.Index("orders_cancelling", orders.c.update_time, postgresql_where=sa.text("status = 'CANCELLING'"))
sa.Index("orders_drafts", orders.c.update_time, postgresql_where=sa.text("status = 'DRAFT'"))
sa.Index("orders_placing", orders.c.update_time, postgresql_where=sa.text("status = 'PLACING'"))

items = sa.Table(
    "order_items",
    metadata,
    sa.Column("order_id", sa.Uuid, primary_key=True),
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("product_id", sa.Uuid, nullable=False),
    sa.Column("sku", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("quantity", sa.BigInteger, nullable=False),
    sa.Column("unit_price", AMOUNT, nullable=False),
    sa.CheckConstraint("quantity > 0", name="quantity_positive"),
)

# A table of its own, so that placing an order writes nothing of it.
shipments = sa.Table(
    "shipments",
    metadata,
    sa.Column("order_id", sa.Uuid, primary_key=True),
    sa.Column("carrier", sa.String, nullable=False),
    sa.Column("tracking_number", sa.String, nullable=False),
    sa.Column("ship_time", TIME, nullable=False),
    sa.Column("deliver_time", TIME, comment="null until the order is delivered"),
)

# A table of its own, so that a change of an order neither writes its address again nor, when it fails, logs it.
shipping_addresses = sa.Table(
    "shipping_addresses",
    metadata,
    sa.Column("order_id", sa.Uuid, primary_key=True),
    sa.Column(
        "postal_address", postgresql.JSONB, nullable=False, comment="personal data: deleted with that of the customer"
    ),
)

# Customers who were erased lately. An order that was being placed meanwhile may still come.
erasures = sa.Table(
    "erasures",
    metadata,
    sa.Column("customer_id", sa.Uuid, primary_key=True),
    sa.Column("next_time", TIME, nullable=False),
    sa.Column("last_time", TIME, nullable=False),
)
sa.Index("erasures_due", erasures.c.next_time)

order_history = history("order_history", metadata)
