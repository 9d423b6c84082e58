"""The services that the customer service calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from commerce.order.v1 import order_pb2, order_pb2_grpc
from commerce.payment.v1 import payment_pb2, payment_pb2_grpc
from customer_svc.domain import CustomerHasOpenOrders
from mesh.errors import FailedPrecondition

if TYPE_CHECKING:
    from mesh.rpc.call import Call
    from mesh.rpc.clients import Peer


class OrderPeer:
    """The order service. Its orders are passed on as it describes them."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def list_orders(
        self, call: Call, customer_id: UUID, *, page_size: int, page_token: str
    ) -> tuple[list[order_pb2.Order], str]:
        """A page of the orders of a customer whom the caller may see, and the token of the next page.

        Raises InvalidArgument / PAGE_TOKEN_INVALID, or Unavailable.
        """
        stub = self._peer.stub(order_pb2_grpc.OrderServiceStub)
        request = order_pb2.ListOrdersRequest(customer_id=str(customer_id), page_size=page_size, page_token=page_token)
        reply = await self._peer.ask(stub.ListOrders, request, calls=[call], on_behalf_of=call)
        return list(reply.orders), reply.next_page_token

    async def erase_customer(self, customer_id: UUID, *, only_check: bool = False, calls: Sequence[Call] = ()) -> None:
        """Erase a customer from their orders, or only check whether that is possible.

        Raises CustomerHasOpenOrders, and changes nothing then; or Unavailable.
        """
        stub = self._peer.stub(order_pb2_grpc.OrderServiceStub)
        request = order_pb2.EraseCustomerOrdersRequest(customer_id=str(customer_id), validate_only=only_check)
        try:
            await self._peer.ask(stub.EraseCustomerOrders, request, calls=calls)
        except FailedPrecondition as error:
            if error.reason != CustomerHasOpenOrders.reason:
                raise
            raise CustomerHasOpenOrders(customer_id) from None


class PaymentPeer:
    """The payment service. Its payments are passed on as it describes them."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def payments_of(self, call: Call, orders: Sequence[order_pb2.Order]) -> list[payment_pb2.Payment]:
        """The payments of these orders, at most 500; orders without one are left out. Raises Unavailable."""
        if not orders:
            return []
        stub = self._peer.stub(payment_pb2_grpc.PaymentServiceStub)
        request = payment_pb2.BatchGetOrderPaymentsRequest(order_ids=[order.id for order in orders])
        reply = await self._peer.ask(stub.BatchGetOrderPayments, request, calls=[call])
        return list(reply.payments)
