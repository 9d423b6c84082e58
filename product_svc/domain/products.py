"""Products, and the offers at which they are sold."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

from mesh.errors import Aborted, AlreadyExists, FailedPrecondition, NotFound


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


class EtagMismatch(Aborted):
    """The product has changed since the caller read the etag that they sent."""

    def __init__(self, product_id: UUID) -> None:
        super().__init__(
            f"product {product_id} has changed since it was read: read it again",
            metadata={"productId": str(product_id)},
        )


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

    def create(self, product_id: UUID, available: int, now: datetime, *, low_stock_threshold: int) -> Product:
        """A new product with these details."""
        details = {field.name: getattr(self, field.name) for field in fields(ProductDetails)}
        return Product(
            **details,
            id=product_id,
            state=ProductState.ACTIVE,
            available=available,
            low_stock_threshold=low_stock_threshold,
            create_time=now,
            update_time=now,
            version=1,
        )


class Price(NamedTuple):
    """The price of one piece, in whole units of its currency."""

    amount: Decimal
    currency: str


@dataclass(frozen=True, slots=True)
class ProductFilter:
    """The products in a list. An empty field excludes none."""

    query: str = ""
    """Words of the SKU, the name and the description, each by its beginning; all of them must match."""
    currency: str = ""
    min_price: Decimal | None = None
    max_price: Decimal | None = None
    """The bounds of the price, each included, in whole units of the currency of each product."""
    in_stock: bool = False
    """Whether at least one piece must be available."""


@dataclass(frozen=True, slots=True)
class ProductUpdate:
    """New values for a product; a value of None stays as it is."""

    name: str | None = None
    description: str | None = None
    price: Price | None = None
    low_stock_threshold: int | None = None


@dataclass(frozen=True, slots=True)
class Product(ProductDetails):
    """Something that is sold."""

    id: UUID
    state: ProductState
    available: int
    """The quantity that can be sold now."""
    low_stock_threshold: int
    """Stock is low when the quantity on hand falls to this."""
    create_time: datetime
    update_time: datetime
    version: int
    """It grows with every change of the product."""

    def updated(self, update: ProductUpdate, now: datetime) -> Product:
        """The product with new values; the same object when no value differs. Raises ProductArchived."""
        if self.state is ProductState.ARCHIVED:
            raise ProductArchived(self.id)
        price = update.price or Price(self.price, self.currency)
        threshold = update.low_stock_threshold
        return self._with(
            now,
            name=self.name if update.name is None else update.name,
            description=self.description if update.description is None else update.description,
            price=price.amount,
            currency=price.currency,
            low_stock_threshold=self.low_stock_threshold if threshold is None else threshold,
        )

    def archived(self, now: datetime) -> Product:
        """The product, no longer for sale; the same object if it was archived before."""
        return self._with(now, state=ProductState.ARCHIVED)

    def unarchived(self, now: datetime) -> Product:
        """The product, for sale again; the same object if it is for sale."""
        return self._with(now, state=ProductState.ACTIVE)

    def require_etag(self, etag: str) -> None:
        """Raise EtagMismatch when the caller names another version than this one."""
        if etag and etag != str(self.version):
            raise EtagMismatch(self.id)

    def _with(self, now: datetime, **values: Any) -> Product:
        new = replace(self, **values)
        return self if new == self else replace(new, update_time=now, version=self.version + 1)


class PriceChange(NamedTuple):
    """One change of the price of a product: a row of its history, which never changes."""

    id: UUID
    product_id: UUID
    price: Decimal
    currency: str
    previous_price: Decimal
    previous_currency: str
    change_time: datetime
    actor: str

    @classmethod
    def between(cls, before: Product, after: Product, *, change_id: UUID, actor: str) -> PriceChange | None:
        """The change of price from one version of a product to the next; None if it has the same price."""
        if (before.price, before.currency) == (after.price, after.currency):
            return None
        return cls(
            change_id, after.id, after.price, after.currency, before.price, before.currency, after.update_time, actor
        )


class ProductCreated(NamedTuple):
    """A product was created."""

    product: Product


class ProductUpdated(NamedTuple):
    """A product has new values, or is for sale again."""

    product: Product


class ProductWasArchived(NamedTuple):
    """A product is no longer for sale."""

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
