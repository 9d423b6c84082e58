"""Payments that wait for their customer, and the sandbox's charges that do."""

from alembic import op

revision = "0013"
down_revision = "0012"

_IS_OPEN = "(status IN ('PENDING', 'REQUIRES_ACTION'))"


def upgrade() -> None:
    op.drop_constraint("status_as_refunded", "payments")
    op.create_check_constraint(
        "status_as_refunded",
        "payments",
        "CASE status"
        " WHEN 'PARTIALLY_REFUNDED' THEN 0 < refunded_amount AND refunded_amount < amount"
        " WHEN 'REFUNDED' THEN refunded_amount = amount"
        " ELSE status IN ('PENDING', 'REQUIRES_ACTION', 'CAPTURED', 'DECLINED', 'VOIDED') AND refunded_amount = 0 END",
    )
    op.drop_constraint("processed_unless_pending", "payments")
    op.create_check_constraint("processed_unless_open", "payments", f"{_IS_OPEN} = (process_time IS NULL)")
    op.drop_constraint("attempted_while_due", "payments")
    op.create_check_constraint("attempted_while_due", "payments", f"(next_attempt_time IS NOT NULL) = {_IS_OPEN}")
    op.drop_constraint("status_known", "charges", schema="sandbox")
    op.create_check_constraint(
        "status_known",
        "charges",
        "status IN ('APPROVED', 'DECLINED', 'VOIDED', 'ACTION_REQUIRED', 'PROCESSING')",
        schema="sandbox",
    )
