"""The service that the customer service calls."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from commerce.order.v1 import order_pb2, order_pb2_grpc

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
