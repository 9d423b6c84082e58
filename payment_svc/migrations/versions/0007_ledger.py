"""Payments must have the sums of their entries (ADR-0042), entries carry their trace, and payments are listed by status.

The sums are checked once for each statement, not for each row: a batch of captures is one statement.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_FUNCTION = """
CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    wrong uuid;
BEGIN
    SELECT {id} INTO wrong
    FROM {changed} CROSS JOIN LATERAL (
        SELECT
            coalesce(sum(amount) FILTER (WHERE type = 'CAPTURE'), 0) AS captured,
            coalesce(sum(amount) FILTER (WHERE type = 'REFUND'), 0) AS refunded
        FROM payment_entries WHERE payment_id = {id}
    ) AS entries
    WHERE p.id IS NULL OR p.refunded_amount <> refunded
        OR captured <> CASE WHEN p.status IN ('CAPTURED', 'PARTIALLY_REFUNDED', 'REFUNDED') THEN p.amount ELSE 0 END
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'payment % has other amounts than its entries', wrong
            USING ERRCODE = 'check_violation', TABLE = 'payments', CONSTRAINT = 'amounts_are_sums_of_entries';
    END IF;
    RETURN NULL;
END
$$
"""


def upgrade() -> None:
    op.add_column(
        "payment_entries",
        sa.Column(
            "trace_id",
            sa.String(),
            server_default="",
            nullable=False,
            comment="empty in entries made before it was recorded",
        ),
    )
    op.alter_column("payment_entries", "trace_id", server_default=None)
    op.create_index(
        "payments_rare",
        "payments",
        ["status", "id"],
        unique=False,
        postgresql_where=sa.text("status IN ('DECLINED', 'VOIDED', 'PARTIALLY_REFUNDED', 'REFUNDED')"),
    )
    op.execute(_FUNCTION.format(name="check_sums_of_payments", id="p.id", changed="changed AS p"))
    added = "added LEFT JOIN payments AS p ON p.id = added.payment_id"
    op.execute(_FUNCTION.format(name="check_sums_of_entries", id="added.payment_id", changed=added))
    op.execute(
        "CREATE TRIGGER sums_of_payments AFTER UPDATE ON payments REFERENCING NEW TABLE AS changed "
        "FOR EACH STATEMENT EXECUTE FUNCTION check_sums_of_payments()"
    )
    op.execute(
        "CREATE TRIGGER sums_of_entries AFTER INSERT ON payment_entries REFERENCING NEW TABLE AS added "
        "FOR EACH STATEMENT EXECUTE FUNCTION check_sums_of_entries()"
    )
    # A new payment has no entries. The condition is false for every payment that the service adds, and costs nothing.
    op.execute(
        "CREATE FUNCTION refuse_money_without_entries() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION 'payment % has other amounts than its entries', NEW.id "
        "USING ERRCODE = 'check_violation', TABLE = 'payments', CONSTRAINT = 'amounts_are_sums_of_entries'; END $$"
    )
    op.execute(
        "CREATE TRIGGER sums_of_new_payments BEFORE INSERT ON payments FOR EACH ROW "
        "WHEN (NEW.amount > 0 AND NEW.status IN ('CAPTURED', 'PARTIALLY_REFUNDED', 'REFUNDED')) "
        "EXECUTE FUNCTION refuse_money_without_entries()"
    )
    # The check of the sums includes that the payment of an entry exists, for all rows of a statement at once.
    op.drop_constraint("payment_entries_payment_id_fkey", "payment_entries")
    op.alter_column(
        "payment_entries",
        "payment_id",
        existing_type=sa.Uuid(),
        existing_nullable=False,
        comment="that it exists is checked with the sums",
    )
    op.execute(
        "CREATE TRIGGER kept BEFORE DELETE OR TRUNCATE OR UPDATE OF id ON payments "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )
