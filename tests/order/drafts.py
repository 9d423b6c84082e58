"""What customers do with drafts, over gRPC."""

from __future__ import annotations

from collections.abc import Mapping

from google.type.money_pb2 import Money

from commerce.order.v1 import order_pb2, order_pb2_grpc
from mesh.errors import MeshError
from tests.mesh.house import Buyer, House

DRAFT = order_pb2.ORDER_STATUS_DRAFT
Stub = order_pb2_grpc.OrderServiceStub


async def create(
    buyer: Buyer,
    wanted: Mapping[str, int] | list[tuple[str, int]] = (),  # type: ignore[assignment]
    *,
    key: str | None = None,
    method: str = "",
) -> order_pb2.Order:
    """A new draft."""
    pairs = list(wanted.items()) if isinstance(wanted, Mapping) else list(wanted)
    request = order_pb2.CreateOrderRequest(
        items=[order_pb2.OrderLine(product_id=product, quantity=quantity) for product, quantity in pairs],
        draft=True,
        payment_method_id=method,
    )
    order: order_pb2.Order = (await buyer.orders(Stub(buyer.orders.channel).CreateOrder, request, key=key)).order
    return order


async def add(
    buyer: Buyer, order_id: str, product: str, quantity: int = 1, *, etag: str = "", key: str | None = None
) -> order_pb2.Order:
    """The draft with more of a product."""
    request = order_pb2.AddOrderItemRequest(order_id=order_id, product_id=product, quantity=quantity, etag=etag)
    order: order_pb2.Order = (await buyer.orders(Stub(buyer.orders.channel).AddOrderItem, request, key=key)).order
    return order


async def update(
    buyer: Buyer, order_id: str, item_id: str, quantity: int, *, etag: str = "", key: str | None = None
) -> order_pb2.Order:
    """The draft with another quantity of an item."""
    request = order_pb2.UpdateOrderItemRequest(
        order_id=order_id, item=order_pb2.OrderItem(id=item_id, quantity=quantity), etag=etag
    )
    order: order_pb2.Order = (await buyer.orders(Stub(buyer.orders.channel).UpdateOrderItem, request, key=key)).order
    return order


async def remove(
    buyer: Buyer, order_id: str, item_id: str, *, etag: str = "", key: str | None = None
) -> order_pb2.Order:
    """The draft without an item."""
    request = order_pb2.RemoveOrderItemRequest(order_id=order_id, item_id=item_id, etag=etag)
    order: order_pb2.Order = (await buyer.orders(Stub(buyer.orders.channel).RemoveOrderItem, request, key=key)).order
    return order


async def set_price(mesh: House, product: str, units: int) -> None:
    """Sell a product at another price from now on."""
    await mesh.sql("product_svc", "UPDATE products SET price = $2, version = version + 1 WHERE id = $1", product, units)


async def archive(mesh: House, product: str) -> None:
    """Stop selling a product."""
    await mesh.sql(
        "product_svc", "UPDATE products SET state = 'ARCHIVED', version = version + 1 WHERE id = $1", product
    )


async def place(
    buyer: Buyer,
    order_id: str,
    *,
    etag: str = "",
    method: str = "",
    address: str = "",
    expected: int | None = None,
    key: str | None = None,
) -> order_pb2.Order:
    """The draft, placed."""
    request = order_pb2.PlaceOrderRequest(order_id=order_id, etag=etag, payment_method_id=method, address_id=address)
    if expected is not None:
        request.expected_total.CopyFrom(Money(currency_code="EUR", units=expected))
    order: order_pb2.Order = (await buyer.orders(Stub(buyer.orders.channel).PlaceOrder, request, key=key)).order
    return order


def contents(order: order_pb2.Order) -> list[tuple[str, int, int]]:
    """Product, quantity and unit price of each item."""
    return [(item.product_id, item.quantity, item.unit_price.units) for item in order.items]


def kind(error: MeshError) -> tuple[type[MeshError], str]:
    """The status and the reason of a refusal."""
    return type(error), error.reason
