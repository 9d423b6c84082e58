"""The services that the order service asks. Each question carries many orders."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from google.rpc import status_pb2
from google.type import postal_address_pb2

from commerce.customer.v1 import customer_pb2, customer_pb2_grpc
from commerce.order.v1 import order_pb2
from commerce.payment.v1 import payment_pb2, payment_pb2_grpc
from commerce.product.v1 import inventory_pb2, inventory_pb2_grpc, product_pb2, product_pb2_grpc
from mesh.errors import MeshError, Violation
from mesh.ids import parse_id
from mesh.rpc import status, wire
from mesh.rpc.call import Call
from mesh.rpc.clients import Peer
from order_svc.domain import (
    HeldLine,
    Hold,
    HoldRequest,
    Offer,
    OrderRequest,
    PaymentMethod,
    PaymentMethodMissing,
    PostalAddress,
    Selection,
    TimelineEvent,
)


class CustomerPeer:
    """The customer service."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def select(
        self, wanted: Sequence[tuple[UUID, OrderRequest]], calls: Sequence[Call]
    ) -> list[Selection | MeshError]:
        """The payment method and the address for each customer and request.

        An error if there is no such customer, payment method or address.
        """
        stub = self._peer.stub(customer_pb2_grpc.CustomerServiceStub)
        request = customer_pb2.SelectPaymentMethodsRequest(
            queries=[
                customer_pb2.PaymentMethodQuery(
                    customer_id=str(customer_id),
                    payment_method_id=str(each.payment_method_id) if each.payment_method_id else "",
                    address_id=str(each.address_id) if each.address_id else "",
                )
                for customer_id, each in wanted
            ]
        )
        reply = await self._peer.ask(stub.SelectPaymentMethods, request, calls=calls)
        currencies = {each.provider: frozenset(each.currency_codes) for each in reply.limited_providers}
        return [_selection(result, currencies) for result in reply.results]


class ProductPeer:
    """The product service's catalogue."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def offers(self, product_ids: Sequence[UUID], call: Call) -> dict[UUID, Offer]:
        """How these products, at most 100, are sold now. Raises NotFound / PRODUCT_NOT_FOUND if one does not exist."""
        if not product_ids:
            return {}
        stub = self._peer.stub(product_pb2_grpc.ProductServiceStub)
        request = product_pb2.BatchGetProductsRequest(product_ids=[str(each) for each in product_ids])
        reply = await self._peer.ask(stub.BatchGetProducts, request, calls=[call])
        return {offer.product_id: offer for offer in map(_offer, reply.products)}


class StockPeer:
    """The product service's inventory."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def reserve(
        self, wanted: Sequence[HoldRequest], expire_time: datetime, calls: Sequence[Call]
    ) -> list[Hold | MeshError]:
        """Hold stock for each; an error where that fails.

        A key that holds already gets its hold back, with the order id of its first attempt.
        """
        stub = self._peer.stub(inventory_pb2_grpc.InventoryServiceStub)
        request = inventory_pb2.ReserveStockRequest()
        for each in wanted:
            reservation = request.reservations.add(
                order_id=str(each.order_id), hold_key=each.key, customer_id=str(each.customer_id)
            )
            wire.put_time(reservation.expire_time, expire_time)
            for product_id, quantity in each.quantities.items():
                reservation.lines.add(product_id=str(product_id), quantity=quantity)
            if each.expected_total is not None:
                # A total of zero without a currency is a message with no field set.
                reservation.expected_total.SetInParent()
                wire.put_money(reservation.expected_total, *each.expected_total)
        reply = await self._peer.ask(stub.ReserveStock, request, calls=calls)
        return [_refusal(result.error) if result.HasField("error") else _hold(result.hold) for result in reply.results]

    async def timeline(self, order_id: UUID, call: Call) -> list[TimelineEvent]:
        """What became of the hold of an order."""
        stub = self._peer.stub(inventory_pb2_grpc.InventoryServiceStub)
        request = inventory_pb2.GetHoldTimelineRequest(order_id=str(order_id))
        reply = await self._peer.ask(stub.GetHoldTimeline, request, calls=[call])
        return [_timeline_event(event) for event in reply.events]

    async def release(self, order_ids: Sequence[UUID]) -> None:
        """Release the stock held for these orders."""
        stub = self._peer.stub(inventory_pb2_grpc.InventoryServiceStub)
        await self._peer.ask(
            stub.ReleaseStock, inventory_pb2.ReleaseStockRequest(order_ids=[str(each) for each in order_ids])
        )


class PaymentPeer:
    """The payment service."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def timeline(self, order_id: UUID, call: Call) -> list[TimelineEvent]:
        """The events of the payment of an order."""
        stub = self._peer.stub(payment_pb2_grpc.PaymentServiceStub)
        request = payment_pb2.GetPaymentTimelineRequest(order_id=str(order_id))
        reply = await self._peer.ask(stub.GetPaymentTimeline, request, calls=[call])
        return [_timeline_event(event) for event in reply.events]


def _timeline_event(message: order_pb2.TimelineEvent) -> TimelineEvent:
    return TimelineEvent(
        wire.moment(message.time),
        message.service,
        parse_id(message.event_id),
        message.type,
        message.summary,
        message.trace_id,
        message.actor,
    )


def _selection(
    result: customer_pb2.SelectedPaymentMethodResult, currencies: Mapping[str, Collection[str]]
) -> Selection | MeshError:
    address = _postal_address(result.postal_address) if result.HasField("postal_address") else None
    if not result.HasField("error"):
        selected = result.payment_method
        method = PaymentMethod(parse_id(selected.id), selected.provider, currencies.get(selected.provider, ()))
        return Selection(method, address)
    error = status.from_status(result.error)
    return Selection(None, address) if error.reason == PaymentMethodMissing.reason else error


def _postal_address(message: postal_address_pb2.PostalAddress) -> PostalAddress:
    return PostalAddress(
        message.region_code,
        message.language_code,
        message.postal_code,
        message.sorting_code,
        message.administrative_area,
        message.locality,
        message.sublocality,
        tuple(message.address_lines),
        tuple(message.recipients),
        message.organization,
    )


def _offer(message: product_pb2.Product) -> Offer:
    return Offer(
        parse_id(message.id),
        message.sku,
        message.name,
        wire.amount(message.price),
        message.price.currency_code,
        message.state == product_pb2.PRODUCT_STATE_ARCHIVED,
    )


def _refusal(message: status_pb2.Status) -> MeshError:
    """Why there is no hold, in the terms of who orders: the lines of a reservation are the items of an order."""
    error = status.from_status(message)
    error.violations = tuple(
        Violation("items" if each.field == "lines" else each.field, each.description) for each in error.violations
    )
    return error


def _hold(message: inventory_pb2.Hold) -> Hold:
    return Hold(
        parse_id(message.order_id),
        tuple(
            HeldLine(
                parse_id(line.product_id),
                line.sku,
                line.name,
                line.quantity,
                wire.amount(line.unit_price),
                line.unit_price.currency_code,
            )
            for line in message.lines
        ),
    )
