"""The catalogue over gRPC."""

from uuid import uuid4

import asyncpg
import pytest
from google.type.money_pb2 import Money

from commerce.product.v1 import product_pb2, product_pb2_grpc
from stack.servers import Servers
from tests.product.catalogue import make, new_product
from tests.services import Client, new_key, refused


async def test_product_is_created_once_for_a_key(client: Client) -> None:
    stub = product_pb2_grpc.ProductServiceStub(client.channel)
    request, key = new_product(stock=7), new_key()
    made = await client(stub.CreateProduct, request, key=key)
    again = await client(stub.CreateProduct, request, key=key)
    assert made == again
    assert made.product.stock_quantity == 7
    assert made.product.price.units == 12
    read = await client(stub.GetProduct, product_pb2.GetProductRequest(product_id=made.product.id))
    assert read.product == made.product
    error = await refused(client(stub.CreateProduct, new_product(), key=key))
    assert (error.code.name, error.reason) == ("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED")


async def test_product_may_be_free(client: Client) -> None:
    made = await make(client, "A gift", units=0)
    assert made.price == Money(currency_code="EUR")
    stub = product_pb2_grpc.ProductServiceStub(client.channel)
    read = await client(stub.GetProduct, product_pb2.GetProductRequest(product_id=made.id))
    assert read.product == made


@pytest.mark.parametrize(
    "price",
    [
        Money(currency_code="JPY", nanos=500_000_000),
        Money(currency_code="EUR", units=9, nanos=999_000_000),
        Money(currency_code="KWD", units=1, nanos=125_400_000),
        Money(currency_code="XXX", units=1),
        Money(currency_code="EUR", units=-1),
    ],
    ids=str,
)
async def test_price_that_its_currency_does_not_have_is_rejected_by_name(client: Client, price: Money) -> None:
    stub = product_pb2_grpc.ProductServiceStub(client.channel)
    request = new_product()
    request.price.CopyFrom(price)
    error = await refused(client(stub.CreateProduct, request, key=new_key()))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "VALIDATION_FAILED")
    assert [violation.field for violation in error.violations] == ["price"]


async def test_sku_of_another_product_is_rejected(client: Client) -> None:
    stub = product_pb2_grpc.ProductServiceStub(client.channel)
    request = new_product()
    await client(stub.CreateProduct, request)
    error = await refused(client(stub.CreateProduct, request, key=new_key()))
    assert error.reason == "SKU_TAKEN"


async def test_sku_of_another_product_is_not_in_the_log_of_the_database(client: Client, servers: Servers) -> None:
    stub = product_pb2_grpc.ProductServiceStub(client.channel)
    request = new_product(f"SKU-{uuid4()}")
    await client(stub.CreateProduct, request)
    assert (await refused(client(stub.CreateProduct, request, key=new_key()))).reason == "SKU_TAKEN"
    database = await asyncpg.connect(servers.postgres.url_for("product_svc"))
    with pytest.raises(asyncpg.InvalidTextRepresentationError):
        await database.execute("SELECT 'the-control'::int")
    await database.close()
    said = (servers.supervisor.logs / "postgres.log").read_text()
    assert "the-control" in said
    assert request.sku not in said
    assert "products_sku_key" not in said, "no statement fails, whatever the server logs of those that do"


async def names(client: Client, **asked: object) -> list[str]:
    """The names that a list answers with, page by page."""
    stub = product_pb2_grpc.ProductServiceStub(client.channel)
    found: list[str] = []
    token = ""
    while True:
        request = product_pb2.ListProductsRequest(page_size=2, page_token=token, **asked)  # type: ignore[arg-type]
        page = await client(stub.ListProducts, request)
        assert len(page.products) <= 2
        found += [product.name for product in page.products]
        token = page.next_page_token
        if not token:
            return found


async def test_products_are_listed_in_each_order_page_by_page(client: Client) -> None:
    word = f"w{uuid4().hex}"
    for letter, units in (("c", 1), ("a", 3), ("b", 2), ("b", 2), ("d", 2)):
        await make(client, f"{letter} {word}", units=units)

    async def letters(order_by: str) -> str:
        return "".join(name[0] for name in await names(client, query=word, order_by=order_by))

    assert await letters("") == "cabbd", "of the same rank, so by id"
    assert await letters("name") == "abbcd"
    assert await letters("name desc") == "dcbba"
    assert await letters("createTime") == "cabbd"
    assert await letters("createTime desc") == "dbbac"
    assert (await letters("price"))[0] == "c"
    assert (await letters("price"))[-1] == "a"
    assert (await letters("price desc"))[0] == "a"


async def test_ordering_by_price_groups_products_by_currency_across_pages(client: Client) -> None:
    word = f"w{uuid4().hex}"
    made = [("JPY", 5), ("USD", 1), ("EUR", 3), ("USD", 9), ("EUR", 2), ("JPY", 4), ("EUR", 3)]
    for currency, units in made:
        await make(client, f"{currency}{units} {word}", units=units, currency=currency)

    async def prices(order_by: str) -> list[str]:
        return [name.split()[0] for name in await names(client, query=word, order_by=order_by)]

    ascending = ["EUR2", "EUR3", "EUR3", "JPY4", "JPY5", "USD1", "USD9"]
    assert await prices("price") == ascending
    assert await prices("price desc") == ascending[::-1]


async def test_query_finds_words_of_sku_and_name_by_their_beginnings(client: Client) -> None:
    word = f"w{uuid4().hex}"
    await make(client, f"Green tea {word}")
    await make(client, f"Black tea {word}")
    await make(client, "By its SKU", sku=f"{word}-X")
    assert sorted(await names(client, query=word)) == ["Black tea " + word, "By its SKU", "Green tea " + word]
    assert await names(client, query=f"{word} gre") == [f"Green tea {word}"]
    assert await names(client, query=f"GREEN {word[:20]}") == [f"Green tea {word}"]
    assert await names(client, query=f"{word} coffee") == []
    for odd in ("!", "&|()", "' OR 1=1 --", ":*", "\\", "<->", "\u202e"):
        await names(client, query=f"{word} coffee {odd}")
        assert await names(client, query=odd + " " + word + " nowhere") == []


async def test_page_token_is_valid_for_its_list_only(client: Client) -> None:
    stub = product_pb2_grpc.ProductServiceStub(client.channel)
    word = f"w{uuid4().hex}"
    for _ in range(2):
        await make(client, word)
    first = await client(stub.ListProducts, product_pb2.ListProductsRequest(page_size=1, query=word))
    token = first.next_page_token
    for request in (
        product_pb2.ListProductsRequest(page_token=token[:-2] + "AA", query=word),
        product_pb2.ListProductsRequest(page_token=token, query="another"),
        product_pb2.ListProductsRequest(page_token=token, query=word, order_by="price"),
    ):
        error = await refused(client(stub.ListProducts, request))
        assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")


async def test_product_that_does_not_exist_is_named(client: Client) -> None:
    stub = product_pb2_grpc.ProductServiceStub(client.channel)
    missing = str(uuid4())
    error = await refused(client(stub.GetProduct, product_pb2.GetProductRequest(product_id=missing)))
    assert (error.reason, error.metadata) == ("PRODUCT_NOT_FOUND", {"productId": missing})


async def test_products_of_a_batch_are_in_the_order_of_the_request_all_or_none(client: Client) -> None:
    stub = product_pb2_grpc.ProductServiceStub(client.channel)
    ids = [(await make(client, f"product {number}")).id for number in range(3)]

    async def read(*wanted: str) -> list[str]:
        reply = await client(stub.BatchGetProducts, product_pb2.BatchGetProductsRequest(product_ids=wanted))
        return [product.id for product in reply.products]

    assert await read(*ids) == ids
    assert await read(*reversed(ids)) == ids[::-1]
    assert await read(ids[0], ids[1], ids[0].upper()) == [ids[0], ids[1], ids[0]], "two spellings of one id"
    missing, other = str(uuid4()), str(uuid4())
    error = await refused(read(ids[0], missing, other))
    assert (error.reason, error.metadata) == ("PRODUCT_NOT_FOUND", {"productId": missing})


async def test_nul_in_a_text_is_rejected_by_the_name_of_its_field(client: Client) -> None:
    stub = product_pb2_grpc.ProductServiceStub(client.channel)
    described = new_product()
    described.description = "nul \0 in it"
    for method, request, field in (
        (stub.CreateProduct, new_product(name="nul \0 in it"), "name"),
        (stub.CreateProduct, described, "description"),
        (stub.ListProducts, product_pb2.ListProductsRequest(query="\0"), "query"),
        (stub.ListProducts, product_pb2.ListProductsRequest(page_token="\0"), "page_token"),
    ):
        error = await refused(client(method, request, key=new_key()))
        assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "VALIDATION_FAILED")
        assert [violation.field for violation in error.violations] == [field]


async def test_names_and_skus_are_stored_without_the_space_around_them(client: Client) -> None:
    stub = product_pb2_grpc.ProductServiceStub(client.channel)
    sku = f"SKU-{uuid4()}"
    made = (await client(stub.CreateProduct, new_product(f"  {sku} ", name="\u00a0 Green  tea \u3000"))).product
    assert (made.sku, made.name) == (sku, "Green  tea")
    assert (await client(stub.GetProduct, product_pb2.GetProductRequest(product_id=made.id))).product == made
    assert (await refused(client(stub.CreateProduct, new_product(sku), key=new_key()))).reason == "SKU_TAKEN"
