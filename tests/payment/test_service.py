"""The payment service as a whole: order events in, payment events out, and its contract over gRPC."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from google.type.money_pb2 import Money

from commerce.order.v1 import events_pb2 as order_events
from commerce.payment.v1 import payment_pb2
from mesh.events import cloudevents as events
from mesh.ids import new_id
from tests.payment.served import AMOUNT, Heard, Wire, charge, placed, process, stub, with_
from tests.services import new_key, refused


@pytest.mark.parametrize(
    ("token", "outcome", "reason"),
    [
        ("tok_visa", "captured", ""),
        ("tok_declined", "declined", "card_declined"),
        ("tok_insufficient_funds", "declined", "insufficient_funds"),
        ("tok_slow", "captured", ""),
        ("tok_timeout", "captured", ""),
        ("tok_flaky", "captured", ""),
        ("tok_of_nobody", "declined", "token_unknown"),
    ],
)
async def test_an_order_that_is_placed_is_charged_as_its_token_says(
    wire: Wire, token: str, outcome: str, reason: str
) -> None:
    event = placed(token)
    async with Heard(wire, event.order.id) as heard:
        traceparent = await wire.publish("commerce.order.placed", event)
        event_type, header, payload = await heard.next()
    assert event_type == f"commerce.payment.{outcome}"
    assert payload.payment.failure_reason == reason
    assert payload.payment.amount == AMOUNT
    assert header["ce-subject"] == payload.payment.id
    assert header["ce-sequence"] == payload.payment.etag
    assert header["traceparent"].split("-")[1] == traceparent.split("-")[1]
    assert token.encode() not in payload.SerializeToString()


async def test_an_event_that_is_delivered_twice_changes_nothing(wire: Wire) -> None:
    event, event_id = placed(), new_id()
    async with Heard(wire, event.order.id) as heard:
        await wire.publish("commerce.order.placed", event, event_id=event_id)
        _, _, captured = await heard.next()
        # With an id of its own for the stream, which would drop the copy otherwise.
        headers = events.headers(
            event_id=event_id,
            event_type="commerce.order.placed",
            source="order",
            aggregate_id=UUID(event.order.id),
            sequence=1,
            time=datetime.now(UTC),
            traceparent="",
        )
        headers["Nats-Msg-Id"] = str(new_id())
        subject = f"commerce.order.placed.{event.order.id}"
        await wire.bus.jetstream.publish(subject, event.SerializeToString(), headers=headers)
        await wire.publish("commerce.order.cancelling", order_events.OrderCancelling(order=event.order))
        event_type, _, refunded = await heard.next()
    assert event_type == "commerce.payment.refunded"
    assert refunded.payment.id == captured.payment.id


async def test_an_order_that_is_cancelled_gets_its_money_back(wire: Wire) -> None:
    event = placed()
    async with Heard(wire, event.order.id) as heard:
        await wire.publish("commerce.order.placed", event)
        assert (await heard.next())[0] == "commerce.payment.captured"
        cause = await wire.publish("commerce.order.cancelling", order_events.OrderCancelling(order=event.order))
        event_type, header, payload = await heard.next()
    assert event_type == "commerce.payment.refunded"
    assert header["traceparent"].split("-")[1] == cause.split("-")[1]
    assert payload.amount == AMOUNT
    assert payload.payment.refunded_amount == AMOUNT
    assert payload.payment.status == payment_pb2.PAYMENT_STATUS_REFUNDED


async def test_an_order_that_is_cancelled_before_it_is_heard_of_is_voided(wire: Wire) -> None:
    event = placed()
    async with Heard(wire, event.order.id) as heard:
        await wire.publish("commerce.order.cancelling", order_events.OrderCancelling(order=event.order))
        event_type, _, payload = await heard.next()
    assert event_type == "commerce.payment.voided"
    assert payload.payment.status == payment_pb2.PAYMENT_STATUS_VOIDED
    assert payload.payment.amount == AMOUNT


@pytest.mark.parametrize(
    ("token", "status", "reason"),
    [
        ("tok_visa", payment_pb2.PAYMENT_STATUS_CAPTURED, ""),
        ("tok_slow", payment_pb2.PAYMENT_STATUS_CAPTURED, ""),
        ("tok_timeout", payment_pb2.PAYMENT_STATUS_CAPTURED, ""),
        ("tok_insufficient_funds", payment_pb2.PAYMENT_STATUS_DECLINED, "insufficient_funds"),
    ],
)
async def test_processing_a_payment_answers_with_the_outcome(
    wire: Wire, token: str, status: payment_pb2.PaymentStatus.ValueType, reason: str
) -> None:
    request = process(token)
    payment = await charge(wire, request)
    assert (payment.status, payment.failure_reason) == (status, reason)
    assert (payment.order_id, payment.customer_id) == (request.order_id, request.customer_id)
    assert payment.amount == AMOUNT
    assert payment.HasField("process_time")
    assert token.encode() not in payment.SerializeToString()


async def test_an_order_is_charged_once_however_often_it_is_asked_for(wire: Wire) -> None:
    request = process()
    payments = await asyncio.gather(*(charge(wire, request, key=new_key()) for _ in range(20)))
    assert len({payment.id for payment in payments}) == 1
    assert len({payment.provider_reference for payment in payments if payment.provider_reference}) == 1
    assert (await charge(wire, request)).status == payment_pb2.PAYMENT_STATUS_CAPTURED


async def test_a_key_stands_for_the_payment_and_its_replay_tells_how_it_is_now(wire: Wire) -> None:
    request, key = process("tok_slow"), new_key()
    # The caller cannot wait for the outcome.
    first = await charge(wire, request, key=key, timeout=1.4)
    assert first.status == payment_pb2.PAYMENT_STATUS_PENDING
    assert not first.HasField("process_time")
    again = await charge(wire, request, key=key)
    assert (again.id, again.status) == (first.id, payment_pb2.PAYMENT_STATUS_CAPTURED)
    error = await refused(charge(wire, process(), key=key))
    assert (error.code.name, error.reason) == ("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED")


async def test_an_order_is_not_charged_another_amount(wire: Wire) -> None:
    request = process()
    await charge(wire, request)
    error = await refused(charge(wire, with_(request, amount=Money(units=13))))
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "PAYMENT_STATE")
    assert error.metadata["status"] == "CAPTURED"


async def test_an_order_that_was_cancelled_is_not_charged(wire: Wire) -> None:
    event = placed()
    async with Heard(wire, event.order.id) as heard:
        await wire.publish("commerce.order.cancelling", order_events.OrderCancelling(order=event.order))
        await heard.next()
    request = process(order_id=event.order.id, customer_id=event.order.customer_id)
    error = await refused(charge(wire, request))
    assert (error.reason, error.metadata["status"]) == ("PAYMENT_STATE", "VOIDED")


async def test_an_unknown_provider_is_refused(wire: Wire) -> None:
    error = await refused(charge(wire, process(provider="nobody")))
    assert (error.code.name, error.reason) == ("NOT_FOUND", "PROVIDER_NOT_FOUND")


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("order_id", {"order_id": "7"}),
        ("customer_id", {"customer_id": ""}),
        ("amount", {"amount": None}),
        ("amount", {"amount": Money(currency_code="EUR")}),
        ("provider", {"provider": "Not a name"}),
        ("payment_method_id", {"payment_method_id": ""}),
        ("token", {"token": "4242424242424242"}),
    ],
)
async def test_a_bad_request_names_its_field(wire: Wire, field: str, fields: dict[str, Any]) -> None:
    error = await refused(charge(wire, process(**fields)))
    assert error.reason == "VALIDATION_FAILED"
    assert field in {violation.field for violation in error.violations}


async def test_processing_charges_the_named_payment_method_and_no_token_of_the_request(wire: Wire) -> None:
    payment = await charge(wire, process("tok_declined", token="tok_visa"))
    assert (payment.status, payment.failure_reason) == (payment_pb2.PAYMENT_STATUS_DECLINED, "card_declined")


@pytest.mark.parametrize("missing", ["customer", "payment method", "customer's payment method"])
async def test_processing_a_payment_method_that_is_not_there_declines(wire: Wire, missing: str) -> None:
    somebody, something = str(new_id()), str(new_id())
    fields = {
        "customer": {"customer_id": somebody, "payment_method_id": something},
        "payment method": {"payment_method_id": something},
        "customer's payment method": {"customer_id": somebody},
    }
    payment = await charge(wire, process(**fields[missing]))
    assert (payment.status, payment.failure_reason) == (
        payment_pb2.PAYMENT_STATUS_DECLINED,
        "payment_method_not_found",
    )


async def test_only_services_process_payments(wire: Wire) -> None:
    for client in (wire.gateway, wire.staff, wire.customer(str(uuid4()))):
        error = await refused(client(stub(client).ProcessPayment, process()))
        assert (error.code.name, error.reason) == ("PERMISSION_DENIED", "ROLE_REQUIRED")


async def test_a_payment_is_read_by_its_customer_and_by_staff(wire: Wire) -> None:
    payment = await charge(wire, process())
    for client in (wire.customer(payment.customer_id), wire.staff):
        by_id = await client(stub(client).GetPayment, payment_pb2.GetPaymentRequest(payment_id=payment.id))
        of_order = await client(
            stub(client).GetOrderPayment, payment_pb2.GetOrderPaymentRequest(order_id=payment.order_id)
        )
        assert by_id.payment == of_order.payment == payment


async def test_a_strangers_payment_reads_like_one_that_is_not_there(wire: Wire) -> None:
    payment, stranger = await charge(wire, process()), wire.customer(str(uuid4()))
    for payment_id in (payment.id, str(uuid4())):
        request = payment_pb2.GetPaymentRequest(payment_id=payment_id)
        error = await refused(stranger(stub(stranger).GetPayment, request))
        assert (error.code.name, error.reason) == ("NOT_FOUND", "PAYMENT_NOT_FOUND")
        assert error.message == f"there is no payment {payment_id}"
    for order_id in (payment.order_id, str(uuid4())):
        of_order = payment_pb2.GetOrderPaymentRequest(order_id=order_id)
        error = await refused(stranger(stub(stranger).GetOrderPayment, of_order))
        assert (error.code.name, error.reason) == ("NOT_FOUND", "PAYMENT_NOT_FOUND")
        assert error.message == f"order {order_id} has no payment"


async def test_reading_needs_a_token_and_an_id(wire: Wire) -> None:
    by_id, of_order = payment_pb2.GetPaymentRequest(), payment_pb2.GetOrderPaymentRequest()
    for method, request in ((stub(wire.gateway).GetPayment, by_id), (stub(wire.gateway).GetOrderPayment, of_order)):
        error = await refused(wire.gateway(method, request))
        assert (error.code.name, error.reason) == ("UNAUTHENTICATED", "TOKEN_MISSING")
        error = await refused(wire.staff(method, request))
        assert error.reason == "VALIDATION_FAILED"
