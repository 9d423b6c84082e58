"""Refunds know the provider's reference of their charge; the sandbox finds the refunds of a charge."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column(
        "refunds",
        sa.Column(
            "charge_reference",
            sa.String(),
            server_default="",
            nullable=False,
            comment="the provider's reference of the charge",
        ),
    )
    op.execute(
        "UPDATE refunds SET charge_reference = p.provider_reference FROM payments p WHERE p.id = refunds.payment_id"
    )
    op.alter_column("refunds", "charge_reference", server_default=None)
    op.create_index("ix_sandbox_refunds_charge_key", "refunds", ["charge_key"], schema="sandbox")
