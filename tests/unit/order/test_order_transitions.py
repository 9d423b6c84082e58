"""What each cause makes of an order in each status."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import pytest

from order_svc.domain import MAX_OPEN_PLACINGS, CancelReason, Cause, Item, Order, OrderState, Shipment, Status

PLACED = datetime(2030, 1, 1, tzinfo=UTC)
NOW = PLACED + timedelta(days=1)

SAME = "unchanged"
NO = "refused"

# One row for each status. The columns are the causes, in the order of `CAUSES`.
CAUSES = (
    Cause.EDIT,
    Cause.PLACE,
    Cause.PLACED,
    Cause.REFUSED,
    Cause.CANCEL,
    Cause.SHIP,
    Cause.DELIVER,
    Cause.CAPTURED,
    Cause.DECLINED,
    Cause.VOIDED,
    Cause.REFUNDED,
    Cause.PARTLY_REFUNDED,
)
OUTCOMES = {
    Status.DRAFT: (
        "DRAFT",
        "PLACING",
        NO,
        NO,
        "CANCELLED",
        NO,
        NO,
        NO,
        NO,
        NO,
        NO,
        NO,
    ),
    Status.PLACING: (
        NO,
        SAME,
        "PENDING",
        "DRAFT",
        "CANCELLED",
        NO,
        NO,
        NO,
        NO,
        NO,
        NO,
        NO,
    ),
    Status.PENDING: (
        NO,
        NO,
        NO,
        NO,
        "CANCELLING",
        NO,
        NO,
        "CONFIRMED",
        "CANCELLED",
        NO,
        NO,
        NO,
    ),
    Status.CONFIRMED: (
        NO,
        NO,
        NO,
        NO,
        "CANCELLING",
        "SHIPPED",
        NO,
        NO,
        NO,
        NO,
        SAME,
        SAME,
    ),
    Status.SHIPPED: (
        NO,
        NO,
        NO,
        NO,
        NO,
        NO,
        "DELIVERED",
        NO,
        NO,
        NO,
        SAME,
        SAME,
    ),
    Status.DELIVERED: (
        NO,
        NO,
        NO,
        NO,
        NO,
        NO,
        NO,
        NO,
        NO,
        NO,
        SAME,
        SAME,
    ),
    Status.CANCELLING: (
        NO,
        NO,
        NO,
        NO,
        SAME,
        NO,
        NO,
        SAME,
        "CANCELLED",
        "CANCELLED",
        "CANCELLED",
        SAME,
    ),
    Status.CANCELLED: (
        NO,
        NO,
        NO,
        NO,
        SAME,
        NO,
        NO,
        SAME,
        SAME,
        SAME,
        SAME,
        SAME,
    ),
    Status.ABANDONED: (
        NO,
        NO,
        NO,
        NO,
        NO,
        NO,
        NO,
        NO,
        NO,
        NO,
        NO,
        NO,
    ),
}
PAIRS = [
    (status, cause, outcome)
    for status, outcomes in OUTCOMES.items()
    for cause, outcome in zip(CAUSES, outcomes, strict=True)
]


def order(status: Status) -> Order:
    """An order in this status."""
    return Order(
        id=uuid4(),
        customer_id=uuid4(),
        status=status,
        items=(Item(uuid4(), uuid4(), "SKU", "A thing", 1, Decimal(10)),),
        total=Decimal(10),
        currency="EUR",
        payment_method_id=uuid4(),
        payment_id=None,
        order_date=PLACED,
        payment_deadline=PLACED + timedelta(minutes=15),
        cancel_reason=None,
        cancel_note="",
        update_time=PLACED,
        version=7,
    )


def test_the_table_of_outcomes_names_every_status_and_every_cause() -> None:
    assert set(OUTCOMES) == set(Status)
    assert set(CAUSES) == set(Cause)


@pytest.mark.parametrize(("status", "cause", "outcome"), PAIRS)
def test_cause_moves_an_order_leaves_it_unchanged_or_is_refused(status: Status, cause: Cause, outcome: str) -> None:
    before = order(status)
    if outcome == NO:
        with pytest.raises(OrderState) as refusal:
            before.moved(cause, NOW)
        seen = Status.DRAFT if status is Status.PLACING else status
        assert refusal.value.metadata == {"orderId": str(before.id), "status": f"ORDER_STATUS_{seen}"}
    elif outcome == SAME:
        assert before.moved(cause, NOW) is before
    else:
        after = before.moved(cause, NOW)
        assert (after.status, after.version, after.update_time) == (Status(outcome), 8, NOW)


def test_placings_of_a_draft_are_counted_up_to_a_limit_and_then_it_is_never_edited_again() -> None:
    draft = order(Status.DRAFT)
    placing = draft.begin_placing("", NOW).begin_placing("", NOW)
    refused_once = placing.refuse_placing(NOW)
    assert (refused_once.status, refused_once.open_placings) == (Status.PLACING, 1)
    assert refused_once.refuse_placing(NOW).status is Status.DRAFT
    for _ in range(MAX_OPEN_PLACINGS):
        placing = placing.begin_placing("", NOW)
    assert placing.open_placings == MAX_OPEN_PLACINGS < 2**15, "the column is a smallint"
    assert placing.refuse_placing(NOW) is placing
    assert placing.cancel(CancelReason.CUSTOMER_REQUEST, "", NOW).status is Status.CANCELLED


def test_shipment_has_the_times_at_which_the_order_was_shipped_and_delivered() -> None:
    shipped = order(Status.CONFIRMED).ship("DHL", "JD 0146", NOW)
    assert shipped.shipment == Shipment("DHL", "JD 0146", NOW, None)
    later = NOW + timedelta(days=2)
    assert shipped.deliver(later).shipment == Shipment("DHL", "JD 0146", NOW, later)
