"""The running payment service in tests: its clients, its streams, and requests to it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import nats
from google.type.money_pb2 import Money
from nats.aio.msg import Msg

from commerce.order.v1 import events_pb2 as order_events
from commerce.order.v1 import order_pb2
from commerce.payment.v1 import events_pb2, payment_pb2, payment_pb2_grpc
from mesh.events import cloudevents as events
from mesh.events.bus import Bus
from mesh.ids import new_id
from mesh.observe.trace import Trace
from tests.services import TEST_TIMEOUT_S, Client, Keys

AMOUNT = Money(currency_code="EUR", units=12, nanos=500_000_000)
CUSTOMER = str(new_id())
TOKENS = (
    "tok_visa",
    "tok_declined",
    "tok_insufficient_funds",
    "tok_slow",
    "tok_timeout",
    "tok_flaky",
    "tok_refund_fails",
    "tok_dispute",
    "tok_3ds",
    "tok_of_nobody",
)
METHODS = {token: str(new_id()) for token in TOKENS}
"""The customer's payment methods, by token; the last one is of no card of the sandbox."""


@dataclass
class Wire:
    """The running service, as customers (through `gateway`) and as services reach it, and the streams."""

    gateway: Client
    peer: Client
    keys: Keys
    bus: Bus
    nats_url: str

    def customer(self, customer_id: str) -> Client:
        return self.gateway.as_(self.keys.token("customer", UUID(customer_id)))

    @property
    def staff(self) -> Client:
        return self.gateway.as_(self.keys.token("staff", uuid4()))

    async def publish(self, event_type: str, payload: Any, *, event_id: UUID | None = None) -> str:
        """Publish an order's event; the traceparent it carries."""
        traceparent = Trace.new().traceparent
        headers = events.headers(
            event_id=event_id or new_id(),
            event_type=event_type,
            source="order",
            aggregate_id=UUID(payload.order.id),
            sequence=1,
            time=datetime.now(UTC),
            traceparent=traceparent,
        )
        subject = f"{event_type}.{payload.order.id}"
        await self.bus.jetstream.publish(subject, payload.SerializeToString(), headers=headers)
        return traceparent


PAYLOADS: dict[str, Any] = {
    "commerce.payment.action_required": events_pb2.PaymentActionRequired,
    "commerce.payment.captured": events_pb2.PaymentCaptured,
    "commerce.payment.declined": events_pb2.PaymentDeclined,
    "commerce.payment.voided": events_pb2.PaymentVoided,
    "commerce.payment.refunded": events_pb2.PaymentRefunded,
    "commerce.payment.disputed": events_pb2.PaymentDisputed,
    "commerce.payment.difference_found": events_pb2.PaymentDifferenceFound,
}


class Heard:
    """The payment events of one order, as the order service would hear them."""

    def __init__(self, wire: Wire, order_id: str) -> None:
        self._url = wire.nats_url
        self._order_id = order_id
        self._messages: asyncio.Queue[tuple[dict[str, str], Any]] = asyncio.Queue()

    async def __aenter__(self) -> Heard:
        self._client = await nats.connect(self._url)
        await self._client.subscribe("commerce.payment.>", cb=self._take)
        await self._client.flush()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def _take(self, message: Msg) -> None:
        header = message.headers or {}
        payload = PAYLOADS[header["ce-type"]].FromString(message.data)
        if payload.payment.order_id == self._order_id:
            self._messages.put_nowait((header, payload))

    async def next(self) -> tuple[str, dict[str, str], Any]:
        """Type, headers and payload of the order's next payment event."""
        async with asyncio.timeout(TEST_TIMEOUT_S):
            header, payload = await self._messages.get()
        return header["ce-type"], header, payload


def placed(token: str = "tok_visa") -> order_events.OrderPlaced:
    return order_events.OrderPlaced(
        order=order_pb2.Order(
            id=str(new_id()), customer_id=CUSTOMER, total_amount=AMOUNT, payment_method_id=METHODS[token]
        ),
        provider="sandbox",
    )


def process(paid_with: str = "tok_visa", **fields: Any) -> payment_pb2.ProcessPaymentRequest:
    return payment_pb2.ProcessPaymentRequest(
        **{
            "order_id": str(new_id()),
            "customer_id": CUSTOMER,
            "amount": AMOUNT,
            "provider": "sandbox",
            "payment_method_id": METHODS[paid_with],
            **fields,
        }
    )


def with_(request: payment_pb2.ProcessPaymentRequest, **fields: Any) -> payment_pb2.ProcessPaymentRequest:
    other = payment_pb2.ProcessPaymentRequest()
    other.CopyFrom(request)
    other.MergeFrom(payment_pb2.ProcessPaymentRequest(**fields))
    return other


def stub(client: Client) -> payment_pb2_grpc.PaymentServiceStub:
    return payment_pb2_grpc.PaymentServiceStub(client.channel)


async def charge(wire: Wire, request: payment_pb2.ProcessPaymentRequest, **more: Any) -> payment_pb2.Payment:
    reply: payment_pb2.ProcessPaymentResponse = await wire.peer(stub(wire.peer).ProcessPayment, request, **more)
    return reply.payment
