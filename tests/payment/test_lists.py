"""Lists of payments and of the entries of their ledger, over gRPC."""

from __future__ import annotations

from typing import Any

from commerce.order.v1 import events_pb2 as order_events
from commerce.payment.v1 import payment_pb2
from mesh.ids import new_id
from tests.payment.served import AMOUNT, CUSTOMER, Heard, Wire, charge, placed, process, stub
from tests.services import refused


async def payments(wire: Wire, **filters: Any) -> payment_pb2.ListPaymentsResponse:
    reply: payment_pb2.ListPaymentsResponse = await wire.staff(
        stub(wire.gateway).ListPayments, payment_pb2.ListPaymentsRequest(**filters)
    )
    return reply


async def entries(wire: Wire, **fields: Any) -> payment_pb2.ListPaymentEntriesResponse:
    reply: payment_pb2.ListPaymentEntriesResponse = await wire.staff(
        stub(wire.gateway).ListPaymentEntries, payment_pb2.ListPaymentEntriesRequest(**fields)
    )
    return reply


async def test_payments_are_listed_newest_first_and_by_status_or_order(wire: Wire) -> None:
    made = [await charge(wire, process(token)) for token in ("tok_visa", "tok_declined", "tok_visa")]
    first = await payments(wire, page_size=2)
    assert list(first.payments) == [made[2], made[1]]
    second = await payments(wire, page_size=1, page_token=first.next_page_token)
    assert list(second.payments) == [made[0]]
    declined = await payments(wire, page_size=1, status=payment_pb2.PAYMENT_STATUS_DECLINED)
    assert list(declined.payments) == [made[1]]
    captured = await payments(wire, page_size=2, status=payment_pb2.PAYMENT_STATUS_CAPTURED)
    assert list(captured.payments) == [made[2], made[0]]
    of_order = await payments(wire, order_id=made[0].order_id)
    assert (list(of_order.payments), of_order.next_page_token) == ([made[0]], "")
    other = {"order_id": made[0].order_id, "status": payment_pb2.PAYMENT_STATUS_DECLINED}
    assert not (await payments(wire, **other)).payments
    assert not (await payments(wire, order_id=str(new_id()))).payments
    error = await refused(payments(wire, page_token=first.next_page_token, **other))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")


async def test_entries_tell_of_each_movement_with_its_actor_and_trace(wire: Wire) -> None:
    event = placed()
    async with Heard(wire, event.order.id) as heard:
        caused = [await wire.publish("commerce.order.placed", event)]
        payment = (await heard.next())[2].payment
        caused.append(await wire.publish("commerce.order.cancelling", order_events.OrderCancelling(order=event.order)))
        await heard.next()
    first = await entries(wire, payment_id=payment.id, page_size=1)
    second = await entries(wire, payment_id=payment.id, page_token=first.next_page_token)
    found = [*first.entries, *second.entries]
    assert second.next_page_token == ""
    kinds = [payment_pb2.PAYMENT_ENTRY_TYPE_CAPTURE, payment_pb2.PAYMENT_ENTRY_TYPE_REFUND]
    assert [entry.type for entry in found] == kinds
    assert [entry.trace_id for entry in found] == [traceparent.split("-")[1] for traceparent in caused]
    assert {(entry.payment_id, entry.actor, entry.amount.units) for entry in found} == {
        (payment.id, "service:order", AMOUNT.units)
    }
    assert found[0].provider_reference == payment.provider_reference
    assert found[1].provider_reference.startswith("re_")


async def test_entries_of_no_payment_are_not_found_and_lists_are_for_staff(wire: Wire) -> None:
    error = await refused(entries(wire, payment_id=str(new_id())))
    assert (error.code.name, error.reason) == ("NOT_FOUND", "PAYMENT_NOT_FOUND")
    customer = wire.customer(CUSTOMER)
    asked: list[tuple[Any, Any]] = [
        (stub(customer).ListPayments, payment_pb2.ListPaymentsRequest()),
        (stub(customer).ListPaymentEntries, payment_pb2.ListPaymentEntriesRequest(payment_id=str(new_id()))),
    ]
    for method, request in asked:
        error = await refused(customer(method, request))
        assert (error.code.name, error.reason) == ("PERMISSION_DENIED", "ROLE_REQUIRED")
