"""A search ranks the SKU above the name above the description, and finds the parts of a SKU."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    words = " || ".join(
        f"setweight(to_tsvector('simple', regexp_replace({column}, '[^[:alnum:]]+', ' ', 'g')), '{weight}')"
        for column, weight in (("sku", "A"), ("name", "B"), ("description", "D"))
    )
    # With the column its index is dropped.
    op.drop_column("products", "search")
    op.execute(f"ALTER TABLE products ADD COLUMN search tsvector GENERATED ALWAYS AS ({words}) STORED")
    op.execute("CREATE INDEX products_search ON products USING gin (search) WITH (fastupdate = off)")
