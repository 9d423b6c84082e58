"""The services that the product service calls."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from commerce.order.v1 import order_pb2, order_pb2_grpc
from mesh.ids import parse_id
from mesh.rpc.clients import Peer
from product_svc import wire
from product_svc.domain import HoldDecision


class OrderPeer:
    """The order service."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def hold_decisions(self, order_ids: Sequence[UUID]) -> dict[UUID, HoldDecision]:
        """The decision about the hold of each order. An order whose hold is released can never be placed."""
        stub = self._peer.stub(order_pb2_grpc.OrderServiceStub)
        request = order_pb2.ResolveHoldsRequest(order_ids=[str(each) for each in order_ids])
        reply = await self._peer.ask(stub.ResolveHolds, request)
        return {parse_id(each.order_id): wire.DECISION_OF[each.resolution] for each in reply.decisions}
