"""Lists of products: search results by rank, filters, and pages that are exact while products are added."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from google.type.money_pb2 import Money

from commerce.product.v1 import product_pb2, product_pb2_grpc
from product_svc.store import lists
from tests.product.catalogue import make
from tests.services import Client, new_key, refused


async def page(client: Client, **asked: Any) -> product_pb2.ListProductsResponse:
    stub = product_pb2_grpc.ProductServiceStub(client.channel)
    reply: product_pb2.ListProductsResponse = await client(stub.ListProducts, product_pb2.ListProductsRequest(**asked))
    return reply


async def listed(
    client: Client, *, page_size: int = 2, between: Callable[[], Awaitable[object]] | None = None, **asked: Any
) -> list[str]:
    """The ids of all products of a list, page by page. `between` is called after each of the first three pages."""
    found, token = list[str](), ""
    for number in count():
        reply = await page(client, page_size=page_size, page_token=token, **asked)
        found += [product.id for product in reply.products]
        token = reply.next_page_token
        assert len(reply.products) == page_size or not token, "only the last page is shorter"
        if not token:
            return found
        if between is not None and number < 3:
            await between()
    raise AssertionError


async def describe(client: Client, product: product_pb2.Product, description: str) -> str:
    stub = product_pb2_grpc.ProductServiceStub(client.channel)
    changed = product_pb2.Product(id=product.id, description=description)
    await client(stub.UpdateProduct, product_pb2.UpdateProductRequest(product=changed))
    return product.id


async def test_search_results_are_sorted_by_rank_then_id(client: Client) -> None:
    word = f"w{uuid4().hex}"
    described = [await describe(client, await make(client, "Nothing"), f"Like a {word}") for _ in range(3)]
    named = [(await make(client, f"A {word}")).id for _ in range(3)]
    by_sku = [(await make(client, "A thing", sku=f"{word}-{number}")).id for number in range(2)]
    twice = await describe(client, await make(client, f"The {word}"), f"{word} itself")
    ranked = [*by_sku, twice, *named, *described]
    for query in (word, word[:20], word.upper()):
        for page_size in (1, 2, 4, 50):
            assert await listed(client, query=query, page_size=page_size) == ranked


async def test_search_finds_a_sku_as_it_is_written(client: Client) -> None:
    one = f"w{uuid4().hex[:12]}"  # no digit begins it, which would match as a prefix
    wanted = (await make(client, "A thing", sku=f"TEA-{one}.7_X-1")).id
    await make(client, "A thing", sku=f"TEA-{one}.8_X-1")
    for query in (f"TEA-{one}.7_X-1", f"tea {one} 7", f"-{one}/7!"):
        assert await listed(client, query=query) == [wanted]
    for query in ("²", "—", " ", "'", "\\"):
        assert await listed(client, query=f"{query} {one} 9") == []
        assert (await page(client, query=query)).products == []


async def test_search_ranks_very_many_matches_in_blocks_and_leaves_none_out(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = f"w{uuid4().hex}"
    made = []
    for number in range(9):
        name, sku = ("A thing", f"{word}-{number}") if number % 3 == 2 else (f"A {word}", None)
        made.append((await make(client, name, sku=sku)).id)
    # In each block of three, the one whose SKU matches comes first.
    in_blocks = [made[first + place] for first in (0, 3, 6) for place in (2, 0, 1)]
    monkeypatch.setattr(lists, "BLOCK", 3)

    async def add() -> None:
        await make(client, "A new thing", sku=f"{word}-new-{uuid4().hex[:8]}")

    for page_size in (1, 2, 3, 4, 7):
        assert await listed(client, query=word, page_size=page_size) == in_blocks
    found = await listed(client, query=word, page_size=2, between=add)
    assert [each for each in found if each in made] == in_blocks
    assert len(found) == len(set(found))


async def test_search_of_a_common_word_gives_what_that_of_a_rare_one_gives(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = f"w{uuid4().hex}"
    for number in range(6):
        for name in (f"A {word}" if number < 4 else "A thing", f"{word} and {word}" if number > 1 else "A thing"):
            await make(client, name, units=number)
    found = {}
    for common in ("1", "201"):
        lists.ranking.cache_clear()
        monkeypatch.setattr(lists, "_COMMON", sa.literal_column(common))
        for block in (3, 1000):
            monkeypatch.setattr(lists, "BLOCK", block)
            found[common, block] = [
                await listed(client, query=word, page_size=2, min_price=min_price) for min_price in ("", "2")
            ]
    lists.ranking.cache_clear()
    for block in (3, 1000):
        assert found["1", block] == found["201", block]
        assert [len(each) for each in found["1", block]] == [8, 6]


async def test_pages_are_exact_while_products_are_added(client: Client) -> None:
    word = f"w{uuid4().hex}"
    names = ("m", "c", "x", "c", "k", "p")
    made = {(await make(client, f"{name} {word}", units=ord(name))).id for name in names}

    async def add() -> None:
        """Before, behind and among those that are listed already."""
        for name in ("a", "l", "z"):
            await make(client, f"{name} {word}", units=ord(name))

    for order_by in ("", "name", "name desc", "price", "price desc", "createTime", "createTime desc"):
        before = await listed(client, query=word, order_by=order_by)
        found = await listed(client, query=word, order_by=order_by, between=add)
        assert len(found) == len(set(found))
        assert [each for each in found if each in before] == before
        assert made <= set(found)


async def test_list_contains_only_the_products_that_meet_each_filter(client: Client) -> None:
    word = f"w{uuid4().hex}"
    stub = product_pb2_grpc.ProductServiceStub(client.channel)
    made: dict[str, str] = {}
    for name, currency, units, nanos, stock in (
        ("a", "EUR", 5, 0, 0),
        ("b", "EUR", 9, 990_000_000, 3),
        ("c", "USD", 9, 990_000_000, 3),
        ("d", "EUR", 20, 0, 3),
        ("e", "EUR", 0, 0, 1),
    ):
        request = product_pb2.CreateProductRequest(
            sku=f"SKU-{uuid4()}",
            name=f"{name} {word}",
            price=Money(currency_code=currency, units=units, nanos=nanos),
            initial_stock=stock,
        )
        made[(await client(stub.CreateProduct, request, key=new_key())).product.id] = name

    async def found(**asked: Any) -> str:
        ids = [each for each in await listed(client, **asked) if each in made]
        return "".join(made[each] for each in ids)

    for search in ({"query": word}, {"query": word, "order_by": "name"}):
        assert await found(**search) == "abcde"
        assert await found(**search, currency_code="EUR") == "abde"
        assert await found(**search, currency_code="JPY") == ""
        assert await found(**search, min_price="9.99") == "bcd"
        assert await found(**search, min_price="9.991") == "d"
        assert await found(**search, max_price="9.99") == "abce"
        assert await found(**search, max_price="0") == "e"
        assert await found(**search, min_price="5", max_price="20", currency_code="EUR") == "abd"
        assert await found(**search, min_price="6", max_price="5") == ""
        assert await found(**search, in_stock=True) == "bcde"
        assert await found(**search, in_stock=True, currency_code="EUR", min_price="1") == "bd"
    assert await found(query=word, currency_code="EUR", order_by="price desc") == "dbae"
    without_query = await found(page_size=500, currency_code="EUR", min_price="9.99", max_price="9.99")
    assert without_query == "b", "filters need no query"


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"currency_code": "eur"}, "currency_code"),
        ({"currency_code": "EURO"}, "currency_code"),
        ({"min_price": "-1"}, "min_price"),
        ({"min_price": "1,5"}, "min_price"),
        ({"max_price": "1e3"}, "max_price"),
        ({"max_price": "NaN"}, "max_price"),
        ({"order_by": "rank"}, "order_by"),
    ],
)
async def test_bad_filter_of_products_is_named(client: Client, asked: dict[str, str], field: str) -> None:
    error = await refused(page(client, **asked))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "VALIDATION_FAILED")
    assert [violation.field for violation in error.violations] == [field]


async def test_page_token_is_only_of_the_list_with_its_filters(client: Client) -> None:
    word = f"w{uuid4().hex}"
    for _ in range(3):
        await make(client, f"A {word}")
    token = (await page(client, query=word, page_size=1)).next_page_token
    for other in (
        {"order_by": "name"},
        {"currency_code": "EUR"},
        {"min_price": "0"},
        {"max_price": "9"},
        {"in_stock": True},
    ):
        error = await refused(page(client, query=word, page_size=1, page_token=token, **other))
        assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")
