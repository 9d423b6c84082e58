"""Indexes for what has had its time; the ledger cannot be emptied either."""

from alembic import op

from mesh.db.migrations import index_ages

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    index_ages()
    op.execute(
        "CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON payment_entries "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )
