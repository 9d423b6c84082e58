"""What a load needs: customers who can pay, products with stock, and requests."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import httpx

from ops.bench.driver import Action
from ops.running_mesh import RunningMesh
from stack.errors import StackError

LINES = 3
"""Lines of an order."""
BASKETS = 4096
"""Different orders, made before the load and placed repeatedly, each time under a new key."""
PRODUCTS = 300
"""Products that orders choose from."""
PLENTY = 10_000_000
"""Stock that no load sells out, nor half of it."""
_AT_ONCE = 4
"""Sign-ups at a time: password hashing refuses more than a few."""
_BUSY = {429, 503}

# Customers of earlier loads: to sign up another one costs a password hash.
_CUSTOMERS = """
SELECT c.id FROM customers c JOIN payment_methods p ON p.customer_id = c.id
WHERE c.email LIKE 'bench-%@example.com' AND p.is_default AND p.token = 'tok_visa' ORDER BY c.id LIMIT $1
"""

# Products of earlier loads. They are the same for each load, however many other products there are.
_PRODUCTS = """
SELECT p.id, s.on_hand FROM products p JOIN stocks s ON s.product_id = p.id
WHERE p.sku LIKE 'BENCH-%' AND s.reserved = 0 AND s.on_hand >= $2 ORDER BY md5(p.id::text) LIMIT $1
"""

Tell = Callable[[str], None]
"""Gets the step that begins."""


@dataclass(frozen=True, slots=True)
class Shop:
    """Customers and products for a load."""

    mesh: RunningMesh
    customers: Sequence[UUID]
    authorizations: Sequence[bytes]
    """Of each customer, as a header line."""
    stock: dict[UUID, int]
    """The stock of the products that are bought and read, the hot one first."""

    @classmethod
    async def open(
        cls, mesh: RunningMesh, *, customers: int, products: int = PRODUCTS, hot_stock: int = 0, tell: Tell
    ) -> Shop:
        """Create what is missing, through the edge. With `hot_stock`, the first product has that stock."""
        async with httpx.AsyncClient(base_url=mesh.run.edge, timeout=30, trust_env=False) as http:
            ids = await _customers(mesh, http, customers, tell)
            stock = await _products(mesh, http, products, hot_stock, tell)
        lines = [f"authorization: Bearer {mesh.token('customer', each)}\r\n".encode() for each in ids]
        return cls(mesh, ids, lines, stock)

    def orders(self, *, weight: float = 1.0, hot: bool = False) -> Action:
        """Place orders of three different products; with `hot`, the first product is in each."""
        dice = random.Random(len(self.stock))  # noqa: S311 - which baskets there are is no secret
        products = [str(each) for each in self.stock]
        requests = []
        for _ in range(BASKETS):
            chosen = [products[0], *dice.sample(products[1:], LINES - 1)] if hot else dice.sample(products, LINES)
            quantities = [1 if hot and each == products[0] else dice.randint(1, 3) for each in chosen]
            items = [{"productId": each, "quantity": number} for each, number in zip(chosen, quantities, strict=True)]
            body = json.dumps({"items": items}, separators=(",", ":")).encode()
            head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            requests.append((self._head("POST", "/v1/orders", head), body))
        return Action(kind="place", weight=weight, requests=requests, places=True)

    def product_reads(self, *, weight: float = 1.0) -> Action:
        """Read one product."""
        requests = [(self._head("GET", f"/v1/products/{each}"), b"") for each in self.stock]
        return Action(kind="product", weight=weight, requests=requests)

    def own_order_reads(self, *, weight: float = 1.0) -> Action:
        """Read the first page of one's own orders, ten of them."""
        return Action(kind="own orders", weight=weight, requests=[(self._head("GET", "/v1/orders?pageSize=10"), b"")])

    def _head(self, method: str, path: str, more: str = "") -> bytes:
        return f"{method} {path} HTTP/1.1\r\nhost: {self.mesh.host}\r\n{more}".encode()


async def _customers(mesh: RunningMesh, http: httpx.AsyncClient, count: int, tell: Tell) -> list[UUID]:
    connection = await mesh.connect("customer")
    try:
        known = [row["id"] for row in await connection.fetch(_CUSTOMERS, count)]
    finally:
        await connection.close()
    missing = count - len(known)
    if missing:
        tell(f"signing up {missing} customers")
    return known + await _in_turns(_customer(mesh, http) for _ in range(missing))


async def _products(
    mesh: RunningMesh, http: httpx.AsyncClient, count: int, hot_stock: int, tell: Tell
) -> dict[UUID, int]:
    wanted = count - bool(hot_stock)
    connection = await mesh.connect("product")
    try:
        known = {row["id"]: row["on_hand"] for row in await connection.fetch(_PRODUCTS, wanted, PLENTY // 2)}
    finally:
        await connection.close()
    missing = [hot_stock] * bool(hot_stock) + [PLENTY] * (wanted - len(known))
    if len(missing) > 1:
        tell(f"making {len(missing)} products")
    # Several staff members, because the edge limits the requests of each.
    staff = [mesh.token("staff", uuid4()) for _ in range(_AT_ONCE)]
    made = await _in_turns(
        _product(http, staff[number % _AT_ONCE], number, stock) for number, stock in enumerate(missing)
    )
    return dict(zip(made, missing, strict=True)) | known


async def _customer(mesh: RunningMesh, http: httpx.AsyncClient) -> UUID:
    made = await _insist(
        http,
        "/v1/customers",
        {"email": f"bench-{uuid4()}@example.com", "name": "Bench", "password": str(uuid4())},
        token="",
    )
    customer_id = UUID(made["id"])
    await _insist(
        http,
        f"/v1/customers/{customer_id}/paymentMethods",
        {"token": "tok_visa", "makeDefault": True},
        token=mesh.token("customer", customer_id),
    )
    return customer_id


async def _product(http: httpx.AsyncClient, token: str, number: int, stock: int) -> UUID:
    made = await _insist(
        http,
        "/v1/products",
        {
            "sku": f"BENCH-{uuid4()}",
            "name": f"Bench product {number}",
            "description": "Made for a load, and left over from it.",
            "price": {"currencyCode": "EUR", "units": str(1 + number % 90), "nanos": 990_000_000},
            "initialStock": stock,
        },
        token=token,
    )
    return UUID(made["id"])


async def _insist(http: httpx.AsyncClient, path: str, body: dict[str, Any], *, token: str) -> dict[str, Any]:
    """Send a request under one key until the mesh is not busy. Raises StackError when it is refused."""
    headers = {"idempotency-key": str(uuid4())}
    if token:
        headers["authorization"] = f"Bearer {token}"
    while True:
        answer = await http.post(path, json=body, headers=headers)
        if answer.status_code not in _BUSY:
            break
        await asyncio.sleep(0.2)
    if not answer.is_success:
        raise StackError(f"POST {path} answered {answer.status_code}: {answer.text}")
    content: dict[str, Any] = answer.json()
    return content


async def _in_turns(work: Iterable[Coroutine[None, None, UUID]]) -> list[UUID]:
    """Do all work, a few at a time; the results are in order."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one(each: Coroutine[None, None, UUID]) -> UUID:
        async with turns:
            return await each

    return await asyncio.gather(*(one(each) for each in work))
