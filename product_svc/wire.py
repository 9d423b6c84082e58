"""Products, stock and holds ↔ the messages of the contract."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

from google.type.money_pb2 import Money

from commerce.order.v1 import order_pb2
from commerce.product.v1 import events_pb2, inventory_pb2, product_pb2
from mesh.errors import MeshError
from mesh.events.cloudevents import Event
from mesh.ids import parse_id
from mesh.rpc import status, wire
from product_svc.domain import (
    Fact,
    Hold,
    HoldDecision,
    HoldState,
    Movement,
    MovementReason,
    Price,
    PriceChange,
    Product,
    ProductCreated,
    ProductDetails,
    ProductFilter,
    ProductState,
    ProductUpdate,
    ProductUpdated,
    ProductWasArchived,
    Reservation,
    Stock,
    StockChange,
    StockChanged,
    StockLow,
    Total,
)

if TYPE_CHECKING:
    from mesh.db.history import Step

STATES = {
    ProductState.ACTIVE: product_pb2.PRODUCT_STATE_ACTIVE,
    ProductState.ARCHIVED: product_pb2.PRODUCT_STATE_ARCHIVED,
}
REASONS = {
    MovementReason.RECEIPT: inventory_pb2.STOCK_MOVEMENT_REASON_RECEIPT,
    MovementReason.ADJUSTMENT: inventory_pb2.STOCK_MOVEMENT_REASON_ADJUSTMENT,
    MovementReason.SALE: inventory_pb2.STOCK_MOVEMENT_REASON_SALE,
    MovementReason.RETURN: inventory_pb2.STOCK_MOVEMENT_REASON_RETURN,
}
REASON_OF = {number: reason for reason, number in REASONS.items()}
HOLD_STATES = {
    HoldState.HELD: inventory_pb2.HOLD_STATE_HELD,
    HoldState.COMMITTED: inventory_pb2.HOLD_STATE_COMMITTED,
    HoldState.RELEASED: inventory_pb2.HOLD_STATE_RELEASED,
    HoldState.RETURNED: inventory_pb2.HOLD_STATE_RETURNED,
}
DECISION_OF = {
    order_pb2.HOLD_RESOLUTION_KEEP: HoldDecision.KEEP,
    order_pb2.HOLD_RESOLUTION_COMMIT: HoldDecision.COMMIT,
    order_pb2.HOLD_RESOLUTION_RELEASE: HoldDecision.RELEASE,
}


def product_details(request: product_pb2.CreateProductRequest) -> ProductDetails:
    """The details of a new product, without the white space around names."""
    return ProductDetails(
        sku=request.sku.strip(),
        name=request.name.strip(),
        description=request.description,
        price=wire.amount(request.price),
        currency=request.price.currency_code,
    )


def product_filter(request: product_pb2.ListProductsRequest) -> ProductFilter:
    """The products that a list is to contain."""
    return ProductFilter(
        query=request.query,
        currency=request.currency_code,
        min_price=Decimal(request.min_price) if request.min_price else None,
        max_price=Decimal(request.max_price) if request.max_price else None,
        in_stock=request.in_stock,
    )


def product_update(request: product_pb2.UpdateProductRequest) -> ProductUpdate:
    """The fields that the mask names; without a mask, all that are not empty."""
    new = request.product
    price = Price(wire.amount(new.price), new.price.currency_code) if new.HasField("price") else None
    values: dict[str, Any] = {
        "name": new.name.strip(),
        "description": new.description,
        "price": price,
        "low_stock_threshold": new.low_stock_threshold if new.HasField("low_stock_threshold") else None,
    }
    chosen = set(request.update_mask.paths) or {field for field, value in values.items() if value not in {"", None}}
    return ProductUpdate(**{field: value for field, value in values.items() if field in chosen})


def price_change(value: PriceChange) -> product_pb2.PriceChange:
    """The message of a change of price."""
    return product_pb2.PriceChange(
        price=wire.money(value.price, value.currency),
        previous_price=wire.money(value.previous_price, value.previous_currency),
        change_time=wire.timestamp(value.change_time),
        actor=value.actor,
    )


def product(value: Product) -> product_pb2.Product:
    """The message of a product."""
    return product_pb2.Product(
        id=str(value.id),
        sku=value.sku,
        name=value.name,
        description=value.description,
        price=wire.money(value.price, value.currency),
        stock_quantity=value.available,
        state=STATES[value.state],
        low_stock_threshold=value.low_stock_threshold,
        create_time=wire.timestamp(value.create_time),
        update_time=wire.timestamp(value.update_time),
        etag=str(value.version),
    )


def stock_change(request: inventory_pb2.UpdateStockRequest) -> StockChange:
    """The change of stock that staff request."""
    relative = request.WhichOneof("change") == "delta"
    return StockChange(
        parse_id(request.product_id),
        request.delta if relative else None,
        None if relative else request.set,
        REASON_OF[request.reason],
        request.note,
    )


def stock(value: Stock) -> inventory_pb2.Stock:
    """The message of a stock."""
    message = inventory_pb2.Stock()
    _put_stock(message, value)
    return message


def _put_stock(message: inventory_pb2.Stock, value: Stock) -> None:
    message.product_id = str(value.product_id)
    message.on_hand = value.on_hand
    message.reserved = value.reserved
    message.available = value.available
    wire.put_time(message.update_time, value.update_time)


def movement(value: Movement) -> inventory_pb2.StockMovement:
    """The message of a movement."""
    message = inventory_pb2.StockMovement()
    _put_movement(message, value)
    return message


def _put_movement(message: inventory_pb2.StockMovement, value: Movement) -> None:
    message.id = str(value.id)
    message.product_id = str(value.product_id)
    message.delta = value.delta
    message.on_hand_after = value.on_hand_after
    message.reason = REASONS[value.reason]
    message.order_id = str(value.order_id) if value.order_id else ""
    message.note = value.note
    message.actor = value.actor
    wire.put_time(message.create_time, value.create_time)


def reservation(message: inventory_pb2.Reservation) -> Reservation:
    """The request for a hold."""
    return Reservation(
        parse_id(message.order_id),
        message.hold_key,
        parse_id(message.customer_id),
        wire.moment(message.expire_time),
        {parse_id(line.product_id): line.quantity for line in message.lines},
        _total(message.expected_total) if message.HasField("expected_total") else None,
    )


def _total(message: Money) -> Total:
    return Total(wire.amount(message), message.currency_code)


def reservation_result(outcome: Hold | Exception) -> inventory_pb2.ReservationResult:
    """A hold, or the reason for its rejection. Any other error is raised."""
    if isinstance(outcome, MeshError):
        return inventory_pb2.ReservationResult(error=status.to_status(outcome))
    if isinstance(outcome, Exception):
        raise outcome
    result = inventory_pb2.ReservationResult()
    result.hold.order_id = str(outcome.order_id)
    wire.put_time(result.hold.expire_time, outcome.expire_time)
    for line in outcome.lines:
        held = result.hold.lines.add(
            product_id=str(line.product_id), sku=line.sku, name=line.name, quantity=line.quantity
        )
        wire.put_money(held.unit_price, line.unit_price, line.currency)
    return result


def hold_result(order_id: UUID, state: HoldState | None) -> inventory_pb2.HoldResult:
    """The state of the hold of an order; none if the order has no hold."""
    return inventory_pb2.HoldResult(
        order_id=str(order_id), state=HOLD_STATES[state] if state else inventory_pb2.HOLD_STATE_ABSENT
    )


def event(fact: Fact) -> Event:
    """The event of a fact."""
    match fact:
        case ProductCreated(made):
            return Event.of(made.id, made.version, _created(fact))
        case ProductUpdated(updated):
            return Event.of(updated.id, updated.version, events_pb2.ProductUpdated(product=product(updated)))
        case ProductWasArchived(archived):
            return Event.of(archived.id, archived.version, events_pb2.ProductArchived(product=product(archived)))
        case StockChanged(changed, _):
            return Event.of(changed.product_id, changed.version, _stock_changed(fact))
        case StockLow(low, _):
            return Event.of(low.product_id, low.version, _stock_low(fact))


def _created(fact: ProductCreated) -> events_pb2.ProductCreated:
    return events_pb2.ProductCreated(product=product(fact.product))


def _stock_changed(fact: StockChanged) -> events_pb2.StockChanged:
    message = events_pb2.StockChanged(product_id=str(fact.stock.product_id))
    _put_stock(message.stock, fact.stock)
    for each in fact.movements:
        _put_movement(message.movements.add(), each)
    return message


def _stock_low(fact: StockLow) -> events_pb2.StockLow:
    return events_pb2.StockLow(product_id=str(fact.stock.product_id), stock=stock(fact.stock), threshold=fact.threshold)


def timeline_event(step: Step) -> order_pb2.TimelineEvent:
    """A step of a hold in the timeline of its order."""
    return order_pb2.TimelineEvent(
        time=wire.timestamp(step.time),
        service="product",
        type=step.type,
        summary=_SUMMARIES[step.type],
        event_id=str(step.event_id),
        trace_id=step.trace_id,
        actor=step.actor,
    )


_SUMMARIES = {
    "hold.reserved": "The stock was held.",
    "hold.committed": "The held stock was sold.",
    "hold.released": "The held stock was released.",
    "hold.returned": "The sold stock was returned.",
}
