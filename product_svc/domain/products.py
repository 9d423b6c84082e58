"""Products, and the offers at which they are sold."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from mesh.errors import AlreadyExists, FailedPrecondition, NotFound


class ProductNotFound(NotFound):
    """There is no product with this id."""

    reason = "PRODUCT_NOT_FOUND"

    def __init__(self, product_id: UUID) -> None:
        super().__init__(f"there is no product {product_id}", metadata={"productId": str(product_id)})


class SkuTaken(AlreadyExists):
    """Another product has this SKU."""

    reason = "SKU_TAKEN"

    def __init__(self, sku: str) -> None:
        super().__init__(f"the SKU {sku} is taken", metadata={"sku": sku})


class ProductArchived(FailedPrecondition):
    """The product is no longer sold."""

    reason = "PRODUCT_ARCHIVED"

    def __init__(self, product_id: UUID) -> None:
        super().__init__(f"product {product_id} is archived", metadata={"productId": str(product_id)})


class ProductState(StrEnum):
    """Whether a product is sold."""

    ACTIVE = "ACTIVE"
    ARCHIVED = "ARCHIVED"


@dataclass(frozen=True, slots=True)
class ProductDetails:
    """The fields of a product that staff define."""

    sku: str
    name: str
    description: str
    price: Decimal
    currency: str

    def create(self, product_id: UUID, available: int, now: datetime) -> Product:
        """A new product with these details."""
        details = {field.name: getattr(self, field.name) for field in fields(ProductDetails)}
        return Product(
            **details,
            id=product_id,
            state=ProductState.ACTIVE,
            available=available,
            create_time=now,
            update_time=now,
            version=1,
        )


@dataclass(frozen=True, slots=True)
class Product(ProductDetails):
    """Something that is sold."""

    id: UUID
    state: ProductState
    available: int
    """The quantity that can be sold now."""
    create_time: datetime
    update_time: datetime
    version: int
    """It grows with every change of the product."""


class ProductCreated(NamedTuple):
    """A product was created."""

    product: Product


class Offer(NamedTuple):
    """The conditions at which a version of a product is sold."""

    product_id: UUID
    sku: str
    name: str
    price: Decimal
    currency: str
    state: ProductState
    version: int
    """The version of the product."""
