"""The services that the product service asks."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from commerce.order.v1 import order_pb2, order_pb2_grpc
from mesh.ids import parse_id
from mesh.rpc.clients import Peer
from product_svc.domain import HoldState

_HOLD_DECISIONS = {
    order_pb2.HOLD_RESOLUTION_KEEP: HoldState.HELD,
    order_pb2.HOLD_RESOLUTION_COMMIT: HoldState.COMMITTED,
    order_pb2.HOLD_RESOLUTION_RELEASE: HoldState.RELEASED,
}


class OrderPeer:
    """The order service."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def resolve_holds(self, order_ids: Sequence[UUID]) -> dict[UUID, HoldState]:
        """What each order wants of its hold; for an order that was never placed, RELEASED, and it never will be."""
        stub = self._peer.stub(order_pb2_grpc.OrderServiceStub)
        request = order_pb2.ResolveHoldsRequest(order_ids=[str(each) for each in order_ids])
        reply = await self._peer.ask(stub.ResolveHolds, request)
        return {parse_id(each.order_id): _HOLD_DECISIONS[each.resolution] for each in reply.decisions}
