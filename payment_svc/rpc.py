"""The payment service's contract: request → use case → reply."""

from __future__ import annotations

from commerce.payment.v1 import payment_pb2 as payment
from mesh import tasks
from mesh.ids import parse_id
from mesh.rpc.call import Call
from mesh.rpc.replies import Change, Reply
from mesh.rpc.wire import uuid_or_none
from payment_svc import wire
from payment_svc.domain import Payment, Refund
from payment_svc.usecases import Payments, Refunds, Webhooks


class PaymentService:
    """`commerce.payment.v1.PaymentService`."""

    def __init__(self, payments: Payments, refunds: Refunds, webhooks: Webhooks) -> None:
        self._payments = payments
        self._refunds = refunds
        self._webhooks = webhooks

    async def ProcessPayment(self, request: payment.ProcessPaymentRequest, call: Call) -> Reply[Payment]:
        change: Change[Payment] = Change(
            call, lambda processed: payment.ProcessPaymentResponse(payment=wire.payment(processed))
        )
        return await self._payments.process_payment(change, wire.requested(request))

    async def GetPayment(self, request: payment.GetPaymentRequest, call: Call) -> payment.GetPaymentResponse:
        found, action = await self._payments.get_payment(call, parse_id(request.payment_id))
        return payment.GetPaymentResponse(payment=wire.payment(found, action))

    async def GetOrderPayment(
        self, request: payment.GetOrderPaymentRequest, call: Call
    ) -> payment.GetOrderPaymentResponse:
        found, action = await self._payments.get_order_payment(call, parse_id(request.order_id))
        return payment.GetOrderPaymentResponse(payment=wire.payment(found, action))

    async def BatchGetOrderPayments(
        self, request: payment.BatchGetOrderPaymentsRequest, call: Call
    ) -> payment.BatchGetOrderPaymentsResponse:
        found = await self._payments.get_order_payments([parse_id(each) for each in request.order_ids])
        reply = payment.BatchGetOrderPaymentsResponse()
        async for each in tasks.in_portions(found):
            reply.payments.append(wire.payment(each))
        return reply

    async def ListPayments(self, request: payment.ListPaymentsRequest, call: Call) -> payment.ListPaymentsResponse:
        found, token = await self._payments.list_payments(
            status=wire.status(request.status),
            order_id=uuid_or_none(request.order_id),
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return payment.ListPaymentsResponse(payments=[wire.payment(each) for each in found], next_page_token=token)

    async def RefundPayment(self, request: payment.RefundPaymentRequest, call: Call) -> Reply[tuple[Payment, Refund]]:
        change: Change[tuple[Payment, Refund]] = Change(
            call,
            lambda refunded: payment.RefundPaymentResponse(
                payment=wire.payment(refunded[0]), refund=wire.refund(refunded[1], with_reason=True)
            ),
        )
        return await self._refunds.refund_payment(change, wire.new_refund(request), wire.refund_id)

    async def ListRefunds(self, request: payment.ListRefundsRequest, call: Call) -> payment.ListRefundsResponse:
        found, token = await self._refunds.list_refunds(
            call, parse_id(request.payment_id), page_size=request.page_size, page_token=request.page_token
        )
        return payment.ListRefundsResponse(
            refunds=[wire.refund(each, with_reason=call.caller.is_staff) for each in found], next_page_token=token
        )

    async def ListPaymentEntries(
        self, request: payment.ListPaymentEntriesRequest, call: Call
    ) -> payment.ListPaymentEntriesResponse:
        of, found, token = await self._payments.list_entries(
            parse_id(request.payment_id), page_size=request.page_size, page_token=request.page_token
        )
        return payment.ListPaymentEntriesResponse(
            entries=[wire.entry(each, of.currency) for each in found], next_page_token=token
        )

    async def ReceiveWebhook(self, request: payment.ReceiveWebhookRequest, call: Call) -> Reply[None]:
        change: Change[None] = Change(call, lambda _: payment.ReceiveWebhookResponse())
        return await self._webhooks.receive_webhook(change, request.provider, request.payload.data)

    async def GetPaymentTimeline(
        self, request: payment.GetPaymentTimelineRequest, call: Call
    ) -> payment.GetPaymentTimelineResponse:
        steps = await self._payments.get_timeline(parse_id(request.order_id))
        return payment.GetPaymentTimelineResponse(events=[wire.timeline_event(each) for each in steps])
