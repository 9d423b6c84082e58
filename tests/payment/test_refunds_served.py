"""Refunds over gRPC: staff make them, and customers see them without the reason of staff."""

from __future__ import annotations

import asyncio
from collections import Counter
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from google.type.money_pb2 import Money

from commerce.payment.v1 import payment_pb2
from mesh.errors import MeshError
from mesh.ids import new_id
from stack.servers import Servers
from tests.payment.served import CUSTOMER, Heard, Wire, charge, process, stub
from tests.services import new_key, refused

HUNDRED = Money(currency_code="EUR", units=100)


async def refund(
    wire: Wire, payment_id: str, amount: Money | None = None, *, key: str | None = None, **fields: Any
) -> payment_pb2.RefundPaymentResponse:
    request = payment_pb2.RefundPaymentRequest(payment_id=payment_id, amount=amount, reason="damaged", **fields)
    reply: payment_pb2.RefundPaymentResponse = await wire.staff(stub(wire.gateway).RefundPayment, request, key=key)
    return reply


async def listed(client: Any, payment_id: str, **fields: Any) -> payment_pb2.ListRefundsResponse:
    request = payment_pb2.ListRefundsRequest(payment_id=payment_id, **fields)
    reply: payment_pb2.ListRefundsResponse = await client(stub(client).ListRefunds, request)
    return reply


async def test_refunds_at_once_are_exactly_what_was_captured(wire: Wire, servers: Servers) -> None:
    payment = await charge(wire, process(amount=HUNDRED))

    async def outcome(amount: int | None) -> tuple[int | None, Any]:
        money = None if amount is None else Money(currency_code="EUR", units=amount)
        try:
            return amount, (await refund(wire, payment.id, money, key=new_key())).refund
        except MeshError as error:
            return amount, error.reason

    outcomes = await asyncio.gather(*(outcome(amount) for amount in [3] * 50 + [None] * 20))
    made = [each for _, each in outcomes if isinstance(each, payment_pb2.Refund)]
    assert {each for _, each in outcomes if isinstance(each, str)} == {"REFUND_EXCEEDS_PAYMENT"}
    assert sum(each.amount.units for each in made) == 100
    assert {each.status for each in made} == {payment_pb2.REFUND_STATUS_SUCCEEDED}
    found = await wire.staff(stub(wire.gateway).GetPayment, payment_pb2.GetPaymentRequest(payment_id=payment.id))
    assert (found.payment.status, found.payment.refunded_amount) == (payment_pb2.PAYMENT_STATUS_REFUNDED, HUNDRED)
    connection = await asyncpg.connect(servers.postgres.url_for("payment_svc"))
    sums = await connection.fetchrow(
        "SELECT (SELECT sum(amount) FROM sandbox.refunds WHERE charge_key = provider_key AND status = 'SUCCEEDED'), "
        "(SELECT refunded_amount FROM sandbox.charges WHERE key = provider_key), "
        "(SELECT sum(amount) FROM payment_entries WHERE payment_id = p.id AND type = 'REFUND'), "
        "(SELECT sum(amount) FROM refunds WHERE payment_id = p.id) FROM payments p WHERE id = $1",
        UUID(payment.id),
    )
    await connection.close()
    assert sums is not None
    assert tuple(sums) == (Decimal(100),) * 4


@pytest.mark.parametrize(
    ("amount", "code", "reason"),
    [
        (Money(currency_code="EUR"), "INVALID_ARGUMENT", "VALIDATION_FAILED"),
        (Money(currency_code="EUR", units=-1), "INVALID_ARGUMENT", "VALIDATION_FAILED"),
        (Money(currency_code="EUR", units=100, nanos=10_000_000), "FAILED_PRECONDITION", "REFUND_EXCEEDS_PAYMENT"),
        (Money(currency_code="EUR", units=10**12), "FAILED_PRECONDITION", "REFUND_EXCEEDS_PAYMENT"),
        (Money(currency_code="USD", units=1), "INVALID_ARGUMENT", "CURRENCY_MISMATCH"),
    ],
)
async def test_refund_of_an_impossible_amount_is_refused_by_name(
    wire: Wire, amount: Money, code: str, reason: str
) -> None:
    payment = await charge(wire, process(amount=HUNDRED))
    error = await refused(refund(wire, payment.id, amount))
    assert (error.code.name, error.reason) == (code, reason)
    if reason == "REFUND_EXCEEDS_PAYMENT":
        assert error.metadata["refundable"] == "100 EUR"
    assert not (await listed(wire.staff, payment.id)).refunds


async def test_only_captured_payments_that_have_not_changed_are_refunded(wire: Wire) -> None:
    declined, payment = await charge(wire, process("tok_declined")), await charge(wire, process())
    error = await refused(refund(wire, declined.id))
    assert (error.code.name, error.reason, error.metadata["status"]) == (
        "FAILED_PRECONDITION",
        "PAYMENT_STATE",
        "DECLINED",
    )
    error = await refused(refund(wire, str(new_id())))
    assert (error.code.name, error.reason) == ("NOT_FOUND", "PAYMENT_NOT_FOUND")
    first = await refund(wire, payment.id, Money(currency_code="EUR", units=1), etag=payment.etag)
    error = await refused(refund(wire, payment.id, etag=payment.etag))
    assert (error.code.name, error.reason) == ("ABORTED", "ETAG_MISMATCH")
    assert (await refund(wire, payment.id, etag=first.payment.etag)).payment.status == (
        payment_pb2.PAYMENT_STATUS_REFUNDED
    )
    customer = wire.customer(CUSTOMER)
    request = payment_pb2.RefundPaymentRequest(payment_id=payment.id, reason="mine")
    error = await refused(customer(stub(customer).RefundPayment, request))
    assert (error.code.name, error.reason) == ("PERMISSION_DENIED", "ROLE_REQUIRED")


async def test_refund_tells_its_outcome_and_its_key_stands_for_it(wire: Wire) -> None:
    payment, key = await charge(wire, process(amount=HUNDRED)), new_key()
    staff = wire.staff
    request = payment_pb2.RefundPaymentRequest(
        payment_id=payment.id, amount=Money(currency_code="EUR", units=40), reason="damaged"
    )
    async with Heard(wire, payment.order_id) as heard:
        replies = await asyncio.gather(*(staff(stub(staff).RefundPayment, request, key=key) for _ in range(5)))
        event_type, _, event = await heard.next()
        while event_type != "commerce.payment.refunded":
            event_type, _, event = await heard.next()
    made = replies[0].refund
    assert Counter(each.refund.id for each in replies) == {made.id: 5}
    again = await staff(stub(staff).RefundPayment, request, key=key)
    assert (again.refund.status, again.refund.reason) == (payment_pb2.REFUND_STATUS_SUCCEEDED, "damaged")
    assert again.payment.status == payment_pb2.PAYMENT_STATUS_PARTIALLY_REFUNDED
    assert event.refund_id == made.id
    assert (event.amount.units, event.payment.refunded_amount.units) == (40, 40)
    entries = await staff(stub(staff).ListPaymentEntries, payment_pb2.ListPaymentEntriesRequest(payment_id=payment.id))
    assert entries.entries[1].note == "damaged"
    assert entries.entries[1].actor.startswith("staff:")


async def test_customer_sees_amounts_and_states_of_refunds_and_not_the_reason(wire: Wire) -> None:
    payment = await charge(wire, process("tok_refund_fails"))
    failed = (await refund(wire, payment.id, Money(currency_code="EUR", units=1))).refund
    assert (failed.status, failed.failure_reason) == (payment_pb2.REFUND_STATUS_FAILED, "refund_refused")
    assert failed.HasField("process_time")
    second = (await refund(wire, payment.id)).refund
    assert second.amount == payment.amount, "the refusal has freed the amount"
    page = await listed(wire.staff, payment.id, page_size=1)
    assert list(page.refunds) == [failed]
    assert list((await listed(wire.staff, payment.id, page_token=page.next_page_token)).refunds) == [second]
    seen = await listed(wire.customer(CUSTOMER), payment.id)
    assert [(each.id, each.amount, each.status, each.reason) for each in seen.refunds] == [
        (each.id, each.amount, each.status, "") for each in (failed, second)
    ]
    error = await refused(listed(wire.customer(str(new_id())), payment.id))
    assert (error.code.name, error.reason) == ("NOT_FOUND", "PAYMENT_NOT_FOUND")
