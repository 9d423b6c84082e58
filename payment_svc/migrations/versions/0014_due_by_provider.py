"""What is due is taken up provider by provider; the sandbox keeps amounts as they were sent."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    for table in ("payments", "refunds"):
        op.execute(f"DROP INDEX {table}_due")
        op.execute(
            f"CREATE INDEX {table}_due ON {table} (provider, next_attempt_time) WHERE next_attempt_time IS NOT NULL"
        )
    _add_units("charges", "the amount as it was sent, in minor units; null for a void")
    _add_units("refunds", "the amount as it was sent, in minor units")


def _add_units(table: str, comment: str) -> None:
    """They are not known of earlier rows."""
    op.add_column(table, sa.Column("units", sa.Numeric(28, 0), comment=comment), schema="sandbox")
