"""Products, made over gRPC."""

from __future__ import annotations

from uuid import uuid4

from google.type.money_pb2 import Money

from commerce.product.v1 import product_pb2, product_pb2_grpc
from tests.services import Client, new_key


def new_product(sku: str | None = None, stock: int = 0, name: str = "A thing") -> product_pb2.CreateProductRequest:
    """The request for a product that costs 12.50 EUR."""
    return product_pb2.CreateProductRequest(
        sku=sku or f"SKU-{uuid4()}",
        name=name,
        price=Money(currency_code="EUR", units=12, nanos=500_000_000),
        initial_stock=stock,
    )


async def make(
    client: Client, name: str, *, units: int = 1, currency: str = "EUR", sku: str | None = None
) -> product_pb2.Product:
    """A product of this name and price."""
    stub = product_pb2_grpc.ProductServiceStub(client.channel)
    request = new_product(sku, name=name)
    request.price.CopyFrom(Money(currency_code=currency, units=units))
    reply = await client(stub.CreateProduct, request, key=new_key())
    made: product_pb2.Product = reply.product
    return made
