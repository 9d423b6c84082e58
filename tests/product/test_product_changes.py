"""Changes of products over gRPC: new values, the history of prices, archiving."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.type.money_pb2 import Money

from commerce.product.v1 import events_pb2, product_pb2, product_pb2_grpc
from product_svc.app import Settings
from product_svc.domain import ProductArchived
from stack.servers import Servers
from tests.product.catalogue import make, new_product
from tests.product.process import Warehouse, held, reservation
from tests.services import Client, Keys, new_key, refused


@pytest.fixture(scope="module")
async def database(servers: Servers) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(servers.postgres.url_for("product_svc"))
    yield connection
    await connection.close()


async def read(client: Client, product_id: str) -> product_pb2.Product:
    stub = product_pb2_grpc.ProductServiceStub(client.channel)
    reply = await client(stub.GetProduct, product_pb2.GetProductRequest(product_id=product_id))
    product: product_pb2.Product = reply.product
    return product


async def update(
    client: Client, product_id: str, *, mask: list[str] | None = None, key: str | None = None, **new: Any
) -> product_pb2.Product:
    stub = product_pb2_grpc.ProductServiceStub(client.channel)
    request = product_pb2.UpdateProductRequest(
        product=product_pb2.Product(id=product_id, **new),
        update_mask=None if mask is None else FieldMask(paths=mask),
    )
    reply = await client(stub.UpdateProduct, request, key=key)
    product: product_pb2.Product = reply.product
    return product


async def turn(client: Client, method: str, product_id: str, **given: Any) -> product_pb2.Product:
    """Archive or unarchive a product."""
    request = getattr(product_pb2, f"{method}Request")(product_id=product_id, **given)
    reply = await client(getattr(product_pb2_grpc.ProductServiceStub(client.channel), method), request)
    product: product_pb2.Product = reply.product
    return product


async def price_changes(client: Client, product_id: str, **given: Any) -> product_pb2.ListPriceChangesResponse:
    stub = product_pb2_grpc.ProductServiceStub(client.channel)
    request = product_pb2.ListPriceChangesRequest(product_id=product_id, **given)
    reply: product_pb2.ListPriceChangesResponse = await client(stub.ListPriceChanges, request)
    return reply


async def is_listed(client: Client, product: product_pb2.Product) -> bool:
    stub = product_pb2_grpc.ProductServiceStub(client.channel)
    reply = await client(stub.ListProducts, product_pb2.ListProductsRequest(query=product.name))
    return product.id in {each.id for each in reply.products}


async def published(database: asyncpg.Connection, product_id: str) -> list[tuple[str, int, bytes]]:
    """The events of a product after its creation."""
    rows = await database.fetch(
        "SELECT type, sequence, payload FROM mesh.outbox WHERE aggregate_id = $1 ORDER BY seq OFFSET 1",
        UUID(product_id),
    )
    return [(row["type"].removeprefix("commerce.product."), row["sequence"], row["payload"]) for row in rows]


def euros(units: int) -> Money:
    return Money(currency_code="EUR", units=units)


async def test_update_changes_the_fields_that_the_mask_names(client: Client, database: asyncpg.Connection) -> None:
    made = await make(client, "Tea", units=10)
    new = {"name": " Green tea ", "description": "Fresh", "price": euros(15)}
    updated = await update(client, made.id, mask=["name", "price"], **new)
    assert (updated.name, updated.description, updated.price) == ("Green tea", "", euros(15))
    assert updated.update_time.ToDatetime() > made.update_time.ToDatetime() == updated.create_time.ToDatetime()
    assert updated.etag != made.etag
    assert await read(client, made.id) == updated
    ((kind, sequence, payload),) = await published(database, made.id)
    assert (kind, sequence) == ("updated", 2)
    assert events_pb2.ProductUpdated.FromString(payload).product == updated


async def test_update_without_a_mask_changes_the_fields_that_are_not_empty(client: Client) -> None:
    made = await make(client, "Tea", units=10)
    described = await update(client, made.id, description="Fresh", price=Money(currency_code="USD"))
    assert (described.name, described.description) == ("Tea", "Fresh")
    assert described.price == Money(currency_code="USD"), "a product may become free, in another currency"
    assert (await update(client, made.id, mask=["description"])).description == ""


async def test_low_stock_threshold_is_that_of_the_settings_unless_staff_choose_one(client: Client) -> None:
    stub = product_pb2_grpc.ProductServiceStub(client.channel)
    assert (await make(client, "Tea")).low_stock_threshold == Settings.model_fields["low_stock_threshold"].default
    request = new_product()
    request.low_stock_threshold = 0
    made = (await client(stub.CreateProduct, request, key=new_key())).product
    assert made.HasField("low_stock_threshold")
    assert made.low_stock_threshold == 0
    assert (await update(client, made.id, low_stock_threshold=7)).low_stock_threshold == 7
    assert (await update(client, made.id, mask=["name"], name="Tea", low_stock_threshold=8)).low_stock_threshold == 7
    updated = await update(client, made.id, low_stock_threshold=0)
    assert updated.low_stock_threshold == 0
    assert await read(client, made.id) == updated


async def test_update_with_equal_values_changes_nothing(client: Client, database: asyncpg.Connection) -> None:
    made = await make(client, "Tea", units=10)
    assert await update(client, made.id, name="Tea", price=euros(10)) == made
    assert await update(client, made.id) == made
    assert await published(database, made.id) == []
    assert not (await price_changes(client, made.id)).price_changes


@pytest.mark.parametrize(
    ("mask", "new", "field"),
    [
        (["sku"], {"sku": "OTHER"}, "update_mask"),
        (["name"], {}, "product.name"),
        (["low_stock_threshold"], {}, "product.low_stock_threshold"),
        ([], {"low_stock_threshold": -1}, "product.low_stock_threshold"),
        (["price"], {}, "product.price"),
        ([], {"name": " "}, "product.name"),
        ([], {"price": Money(currency_code="EUR", units=-1)}, "product.price"),
        ([], {"price": Money(currency_code="JPY", nanos=500_000_000)}, "product.price"),
    ],
)
async def test_bad_update_of_a_product_names_the_field(
    client: Client, mask: list[str], new: dict[str, Any], field: str
) -> None:
    made = await make(client, "Tea")
    error = await refused(update(client, made.id, mask=mask, **new))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "VALIDATION_FAILED")
    assert [violation.field for violation in error.violations] == [field]
    assert await read(client, made.id) == made


async def test_change_with_an_older_etag_is_refused(client: Client) -> None:
    made = await make(client, "Tea")
    changed = await update(client, made.id, name="Green tea", etag=made.etag)
    for change in (
        update(client, made.id, name="Black tea", etag=made.etag),
        turn(client, "ArchiveProduct", made.id, etag=made.etag),
        turn(client, "UnarchiveProduct", made.id, etag=made.etag),
    ):
        error = await refused(change)
        assert (error.code.name, error.reason, error.metadata) == ("ABORTED", "ETAG_MISMATCH", {"productId": made.id})
    assert await read(client, made.id) == changed


async def test_concurrent_updates_with_one_etag_change_a_product_once(client: Client) -> None:
    made = await make(client, "Tea", units=1)
    racing = (update(client, made.id, price=euros(units), etag=made.etag) for units in range(2, 7))
    results = await asyncio.gather(*racing, return_exceptions=True)
    (won,) = [each for each in results if isinstance(each, product_pb2.Product)]
    assert await read(client, made.id) == won
    assert len((await price_changes(client, made.id)).price_changes) == 1


async def test_repeated_update_is_made_once_for_a_key(client: Client, database: asyncpg.Connection) -> None:
    made, key = await make(client, "Tea", units=10), new_key()
    first = await update(client, made.id, price=euros(15), key=key)
    await update(client, made.id, price=euros(20))
    assert await update(client, made.id, price=euros(15), key=key) == first
    assert (await read(client, made.id)).price == euros(20)
    assert (await refused(update(client, made.id, price=euros(16), key=key))).reason == "IDEMPOTENCY_KEY_REUSED"
    assert len(await published(database, made.id)) == 2


async def test_price_changes_are_listed_newest_first_page_by_page(client: Client, keys: Keys) -> None:
    boss = uuid4()
    made = await make(client, "Tea", units=1)
    await update(client, made.id, name="Green tea")
    for units in (2, 3):
        await update(client, made.id, price=euros(units))
    last = await update(client.as_(keys.token("staff", boss)), made.id, price=Money(currency_code="USD", units=3))

    first = await price_changes(client, made.id, page_size=1)
    (change,) = first.price_changes
    assert (change.price, change.previous_price) == (Money(currency_code="USD", units=3), euros(3))
    assert (change.change_time, change.actor) == (last.update_time, f"staff:{boss}")
    await update(client, made.id, price=euros(9))  # newer than the pages that follow
    second = await price_changes(client, made.id, page_size=1, page_token=first.next_page_token)
    third = await price_changes(client, made.id, page_size=1, page_token=second.next_page_token)
    assert [(each.previous_price, each.price) for page in (second, third) for each in page.price_changes] == [
        (euros(2), euros(3)),
        (euros(1), euros(2)),
    ]
    assert third.next_page_token == ""

    other = await make(client, "Coffee")
    error = await refused(price_changes(client, other.id, page_token=first.next_page_token))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")


async def test_history_of_prices_cannot_be_altered(client: Client, database: asyncpg.Connection) -> None:
    made = await make(client, "Tea", units=1)
    await update(client, made.id, price=euros(2))
    for statement in ("UPDATE price_changes SET price = 1", "DELETE FROM price_changes", "TRUNCATE price_changes"):
        with pytest.raises(asyncpg.RaiseError, match="append-only"):
            await database.execute(statement)


async def test_archived_product_is_read_but_neither_listed_nor_changed(
    client: Client, database: asyncpg.Connection
) -> None:
    made = await make(client, f"w{uuid4().hex}")
    archived = await turn(client, "ArchiveProduct", made.id, etag=made.etag)
    assert archived.state == product_pb2.PRODUCT_STATE_ARCHIVED
    assert await read(client, made.id) == archived
    assert not await is_listed(client, made)
    assert await turn(client, "ArchiveProduct", made.id) == archived, "again changes nothing"
    error = await refused(update(client, made.id, name="Tea"))
    assert (error.code.name, error.reason, error.metadata) == (
        "FAILED_PRECONDITION",
        "PRODUCT_ARCHIVED",
        {"productId": made.id},
    )

    restored = await turn(client, "UnarchiveProduct", made.id, etag=archived.etag)
    assert restored.state == product_pb2.PRODUCT_STATE_ACTIVE
    assert await is_listed(client, made)
    assert await turn(client, "UnarchiveProduct", made.id) == restored, "again changes nothing"
    (_, _, first), (_, _, second) = events = await published(database, made.id)
    assert [(kind, sequence) for kind, sequence, _ in events] == [("archived", 2), ("updated", 3)]
    assert events_pb2.ProductArchived.FromString(first).product == archived
    assert events_pb2.ProductUpdated.FromString(second).product == restored


async def test_changes_of_a_product_are_for_staff_and_name_one_that_does_not_exist(client: Client, keys: Keys) -> None:
    made = await make(client, "Tea")
    customer = client.as_(keys.token("customer", uuid4()))
    for person, product_id, reason in (
        (customer, made.id, "ROLE_REQUIRED"),
        (client, str(uuid4()), "PRODUCT_NOT_FOUND"),
    ):
        for call in (
            update(person, product_id, name="Mine"),
            turn(person, "ArchiveProduct", product_id),
            turn(person, "UnarchiveProduct", product_id),
            price_changes(person, product_id),
        ):
            assert (await refused(call)).reason == reason
    assert await read(client, made.id) == made


async def test_holds_of_every_process_see_a_change_at_once(client: Client, here: Warehouse, there: Warehouse) -> None:
    stub = product_pb2_grpc.ProductServiceStub(client.channel)
    made = (await client(stub.CreateProduct, new_product(stock=100), key=new_key())).product
    product = UUID(made.id)

    async def prices() -> list[Decimal]:
        """At which each process holds the product; both then remember it."""
        holds = [held((await process.reserve(reservation({product: 1})))[0]) for process in (here, there)]
        return [line.unit_price for hold in holds for line in hold.lines]

    assert await prices() == [Decimal("12.5")] * 2
    await update(client, made.id, price=euros(15))
    assert await prices() == [15, 15]
    await turn(client, "ArchiveProduct", made.id)
    for process in (here, there):
        (refusal,) = await process.reserve(reservation({product: 1}))
        assert isinstance(refusal, ProductArchived)
    await turn(client, "UnarchiveProduct", made.id)
    assert await prices() == [15, 15]
    rows = await here.admin.fetch("SELECT unit_price FROM hold_lines WHERE product_id = $1", product)
    assert sorted(row["unit_price"] for row in rows) == [Decimal("12.5")] * 2 + [15] * 4
    await here.require_balance(product)
