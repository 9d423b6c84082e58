"""The order service's contract: request → use case → reply."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from operator import attrgetter

from commerce.order.v1 import order_pb2 as order
from mesh import tasks
from mesh.ids import parse_id
from mesh.rpc.call import Call
from mesh.rpc.replies import Change, Reply
from mesh.rpc.wire import uuid_or_none
from order_svc import wire
from order_svc.domain import Order
from order_svc.usecases import Cancellation, Drafts, Erasures, Fulfilment, Holds, Placement, Reading, Timeline, Watching

_PORTION = 256
"""Orders and items of a reply that are converted without letting other calls run."""


class OrderService:
    """`commerce.order.v1.OrderService`."""

    def __init__(
        self,
        placement: Placement,
        drafts: Drafts,
        reading: Reading,
        cancellation: Cancellation,
        fulfilment: Fulfilment,
        holds: Holds,
        timeline: Timeline,
        watching: Watching,
        erasures: Erasures,
    ) -> None:
        self._placement = placement
        self._drafts = drafts
        self._reading = reading
        self._cancellation = cancellation
        self._fulfilment = fulfilment
        self._holds = holds
        self._timeline = timeline
        self._watching = watching
        self._erasures = erasures

    async def CreateOrder(self, request: order.CreateOrderRequest, call: Call) -> Reply[Order]:
        change: Change[Order] = Change(call, lambda created: order.CreateOrderResponse(order=wire.order(created)))
        create = self._drafts.create_draft if request.draft else self._placement.place
        return await create(change, wire.order_request(request))

    async def GetOrder(self, request: order.GetOrderRequest, call: Call) -> order.GetOrderResponse:
        found = await self._reading.get_order(call, parse_id(request.order_id))
        return order.GetOrderResponse(order=wire.order(found))

    async def ListOrders(self, request: order.ListOrdersRequest, call: Call) -> order.ListOrdersResponse:
        found, token = await self._reading.list_orders(
            call,
            customer_id=uuid_or_none(request.customer_id),
            status=wire.STATUS_OF.get(request.status),
            page_size=request.page_size,
            page_token=request.page_token,
        )
        reply = order.ListOrdersResponse(next_page_token=token)
        async for each in tasks.in_portions(found, weight=attrgetter("size"), portion=_PORTION):
            reply.orders.append(wire.order(each))
        return reply

    async def AddOrderItem(self, request: order.AddOrderItemRequest, call: Call) -> Reply[Order]:
        change: Change[Order] = Change(call, lambda edited: order.AddOrderItemResponse(order=wire.order(edited)))
        return await self._drafts.add_item(
            change,
            parse_id(request.order_id),
            product_id=parse_id(request.product_id),
            quantity=request.quantity,
            etag=request.etag,
        )

    async def UpdateOrderItem(self, request: order.UpdateOrderItemRequest, call: Call) -> Reply[Order]:
        change: Change[Order] = Change(call, lambda edited: order.UpdateOrderItemResponse(order=wire.order(edited)))
        return await self._drafts.change_quantity(
            change,
            parse_id(request.order_id),
            item_id=parse_id(request.item.id),
            quantity=request.item.quantity,
            etag=request.etag,
        )

    async def RemoveOrderItem(self, request: order.RemoveOrderItemRequest, call: Call) -> Reply[Order]:
        change: Change[Order] = Change(call, lambda edited: order.RemoveOrderItemResponse(order=wire.order(edited)))
        return await self._drafts.remove_item(
            change, parse_id(request.order_id), item_id=parse_id(request.item_id), etag=request.etag
        )

    async def PlaceOrder(self, request: order.PlaceOrderRequest, call: Call) -> Reply[Order]:
        change: Change[Order] = Change(call, lambda placed: order.PlaceOrderResponse(order=wire.order(placed)))
        return await self._placement.place_draft(
            change, parse_id(request.order_id), wire.draft_request(request), etag=request.etag
        )

    async def CancelOrder(self, request: order.CancelOrderRequest, call: Call) -> Reply[Order]:
        change: Change[Order] = Change(call, lambda cancelling: order.CancelOrderResponse(order=wire.order(cancelling)))
        return await self._cancellation.cancel_order(
            change, parse_id(request.order_id), note=request.reason, etag=request.etag
        )

    async def ShipOrder(self, request: order.ShipOrderRequest, call: Call) -> Reply[Order]:
        change: Change[Order] = Change(call, lambda shipped: order.ShipOrderResponse(order=wire.order(shipped)))
        return await self._fulfilment.ship_order(
            change,
            parse_id(request.order_id),
            carrier=request.carrier,
            tracking_number=request.tracking_number,
            etag=request.etag,
        )

    async def DeliverOrder(self, request: order.DeliverOrderRequest, call: Call) -> Reply[Order]:
        change: Change[Order] = Change(call, lambda delivered: order.DeliverOrderResponse(order=wire.order(delivered)))
        return await self._fulfilment.deliver_order(change, parse_id(request.order_id), etag=request.etag)

    async def WatchOrder(self, request: order.WatchOrderRequest, call: Call) -> AsyncIterator[order.WatchOrderResponse]:
        async with aclosing(self._watching.watch_order(call, parse_id(request.order_id))) as states:
            async for state in states:
                yield order.WatchOrderResponse(order=wire.order(state))

    async def EraseCustomerOrders(
        self, request: order.EraseCustomerOrdersRequest, call: Call
    ) -> order.EraseCustomerOrdersResponse:
        await self._erasures.erase_customer(parse_id(request.customer_id), only_check=request.validate_only)
        return order.EraseCustomerOrdersResponse()

    async def GetOrderTimeline(
        self, request: order.GetOrderTimelineRequest, call: Call
    ) -> order.GetOrderTimelineResponse:
        return wire.timeline(await self._timeline.get_timeline(call, parse_id(request.order_id)), call.caller)

    async def ResolveHolds(self, request: order.ResolveHoldsRequest, call: Call) -> order.ResolveHoldsResponse:
        ids = [parse_id(each) for each in request.order_ids]
        decisions = await self._holds.resolve_holds(ids)
        return order.ResolveHoldsResponse(decisions=[wire.decision(each, decisions[each]) for each in ids])
