"""The findings of the reconciliation, and how far its walks have come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from mesh.db.columns import AMOUNT, TIME
from mesh.db.database import Statement, Transaction, unnested
from mesh.db.rows import Rows
from mesh.db.unit_of_work import UnitOfWork
from payment_svc.domain import HOLDING, Finding, Walk, WalkName
from payment_svc.store.payments import metadata, payments
from payment_svc.store.refunds import refunds

findings = sa.Table(
    "findings",
    metadata,
    # The columns are the fields of `Finding`, in their order.
    sa.Column("payment_id", sa.Uuid, sa.ForeignKey(payments.c.id), primary_key=True),
    sa.Column("type", sa.String, primary_key=True, comment="of the movement"),
    sa.Column("reference", sa.String, primary_key=True, comment="the provider's, of the movement"),
    sa.Column("booked", AMOUNT, nullable=False, comment="the amount in the books; 0 if it is not there"),
    sa.Column("recorded", AMOUNT, nullable=False, comment="the amount at the provider; 0 if it is not there"),
    sa.Column("create_time", TIME, nullable=False),
    sa.Column("resolve_time", TIME, comment="null while they differ"),
    sa.CheckConstraint("type IN ('CAPTURE', 'REFUND')", name="type_known"),
    comment="Differences between the books and the records of providers.",
)
# For the audit.
sa.Index("findings_open", findings.c.payment_id, postgresql_where=findings.c.resolve_time.is_(None))

walks = sa.Table(
    "reconciliation_walks",
    metadata,
    # The columns are the fields of `Walk`, in their order.
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("position", sa.Uuid, comment="the last payment that was taken; null at the end of a round"),
    sa.Column("begin_time", TIME, nullable=False, comment="of the round"),
    comment="How far the payments are compared with the records of providers.",
)

FINDINGS, WALKS = Rows(Finding, findings), Rows(Walk, walks)
READ_FINDINGS = FINDINGS.by(findings.c.payment_id)
_rows = unnested({column.name: (column.name, column.type) for column in FINDINGS.columns})
_written = postgresql.insert(findings).from_select([each.name for each in FINDINGS.columns], sa.select(_rows))
WRITE_FINDINGS = Statement(
    _written.on_conflict_do_update(
        index_elements=list(findings.primary_key.columns),
        set_={name: _written.excluded[name] for name in ("booked", "recorded", "create_time", "resolve_time")},
    ),
    name="write findings",
)
# A walk that another process has locked is under way there.
LOCK_WALK = Statement(
    sa.select(walks).where(walks.c.name == sa.bindparam("walk", type_=sa.String)).with_for_update(skip_locked=True),
    name="lock reconciliation walk",
)
WRITE_WALK = Statement(
    sa.update(walks)
    .where(walks.c.name == sa.bindparam("walk", type_=sa.String))
    .values(
        position=sa.bindparam("new_position", type_=sa.Uuid), begin_time=sa.bindparam("new_begin_time", type_=TIME)
    ),
    name="write reconciliation walk",
)
_recently = sa.func.now() - sa.bindparam("recently", type_=sa.Interval)
# Not as EXISTS, for which a plan may read all refunds once instead of those of each payment.
_last_refund = (
    sa.select(sa.func.max(refunds.c.process_time)).where(refunds.c.payment_id == payments.c.id).scalar_subquery()
)
# What is open is looked up by the sweep of payments, and free payments have no provider.
READ_PORTION = Statement(
    sa.select(
        payments.c.id,
        sa.and_(
            payments.c.next_attempt_time.is_(None),
            payments.c.provider != "",
            sa.or_(
                *(payments.c.status == each for each in sorted(HOLDING)),
                payments.c.process_time > _recently,
                sa.func.coalesce(_last_refund > _recently, sa.false()),
            ),
        ).label("is_compared"),
    )
    .where(payments.c.id > sa.bindparam("after", type_=sa.Uuid))
    .order_by(payments.c.id)
    .limit(sa.bindparam("most", type_=sa.Integer)),
    name="read portion of payments",
)


class ReconciliationStore:
    """The findings, and the walks."""

    async def findings_of(self, reading: Transaction, payment_ids: Iterable[UUID]) -> list[Finding]:
        """All findings of these payments, resolved ones among them."""
        rows = await reading.fetch(READ_FINDINGS, keys=sorted(set(payment_ids)))
        return [FINDINGS.read(row) for row in rows]

    def save(self, work: UnitOfWork, changed: Sequence[Finding]) -> None:
        """Write findings, new and known ones."""
        if changed:
            columns = zip(*map(FINDINGS.values, changed), strict=True)
            names = (column.name for column in FINDINGS.columns)
            work.transaction.write(WRITE_FINDINGS, **dict(zip(names, columns, strict=True)))

    async def lock_walk(self, work: UnitOfWork, name: WalkName) -> Walk | None:
        """Lock a walk; none if another process has it."""
        row = await work.transaction.fetch_one(LOCK_WALK, walk=name)
        return WALKS.read(row) if row else None

    def save_walk(self, work: UnitOfWork, walk: Walk) -> None:
        """Write how far a walk has come."""
        work.transaction.write(WRITE_WALK, walk=walk.name, new_position=walk.position, new_begin_time=walk.begin_time)

    async def portion(
        self, reading: Transaction, after: UUID, *, recently: timedelta, most: int
    ) -> list[tuple[UUID, bool]]:
        """The next `most` payments after this one, and of each whether it is to be compared.

        Those are compared that are not final, or have changed `recently`, and have an outcome.
        """
        rows = await reading.fetch(READ_PORTION, after=after, recently=recently, most=most)
        return [(row["id"], row["is_compared"]) for row in rows]
