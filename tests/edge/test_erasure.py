"""A customer who is erased: a search of everything that the mesh stores finds them before, and not after."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import uuid4

import nats
import pytest
from redis.asyncio import Redis

import ops.running_mesh
from stack.servers import DATABASES
from tests.edge.test_no_secret_is_logged import logs_of, written
from tests.running import FINAL, RunningMesh, reason_of
from tests.services import eventually, new_key

TABLES = """
    SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
    WHERE schemaname NOT IN ('pg_catalog', 'information_schema')
"""
"""Partitions included."""


async def in_databases(mesh: RunningMesh, values: dict[str, str]) -> set[tuple[str, str]]:
    """Which value is in which table, as text or in bytes."""
    hits = set()
    for role in DATABASES:
        async with mesh.database(role) as connection:
            for (table,) in await connection.fetch(TABLES):
                for what, value in values.items():
                    patterns = [f"%{form}%" for form in (*written(value), value.encode().hex())]
                    query = f"SELECT EXISTS (SELECT FROM {table} row WHERE row::text ILIKE ANY($1))"
                    if await connection.fetchval(query, patterns):
                        hits.add((what, f"{role} {table}"))
    return hits


async def in_redis(mesh: RunningMesh) -> str:
    """All that is in Redis."""
    texts = []
    redis_url = (await mesh.processes())["redis"]["address"]
    async with Redis.from_url(redis_url, decode_responses=True) as client:
        async for key in client.scan_iter():
            read: dict[Any, Any] = {
                "string": client.get,
                "hash": client.hgetall,
                "set": client.smembers,
                "zset": lambda key: client.zrange(key, 0, -1),
                "list": lambda key: client.lrange(key, 0, -1),
                "stream": client.xrange,
            }
            texts.append(f"{key} {await read[await client.type(key)](key)}")
    return "\n".join(texts)


async def in_streams(mesh: RunningMesh) -> str:
    """All that is in the streams, one line a message."""
    texts = []
    client = await nats.connect(ops.running_mesh.RunningMesh.find(mesh.state, {}).nats_url)
    try:
        context = client.jetstream()
        for stream in await context.streams_info():
            assert stream.config.name is not None
            messages = await context.subscribe(">", stream=stream.config.name, ordered_consumer=True)
            for _ in range(stream.state.messages):
                message = await messages.next_msg(timeout=20)
                texts.append(repr((message.subject, message.headers, message.data)))
            await messages.unsubscribe()
    finally:
        await client.close()
    return "\n".join(texts)


async def found(mesh: RunningMesh, values: dict[str, str]) -> set[tuple[str, str]]:
    """Which value is in which place."""
    places = {"Redis": await in_redis(mesh), "streams": await in_streams(mesh), **logs_of(mesh.state)}
    hits = {
        (what, place)
        for place, text in places.items()
        for what, value in values.items()
        if any(form in text.lower() for form in written(value))
    }
    return hits | await in_databases(mesh, values)


async def live(mesh: RunningMesh, planted: dict[str, str]) -> tuple[str, str]:
    """Sign up and in, order with an address, cancel, let another order be shipped and delivered; id and access token.

    Every change has an idempotency key, so that its reply is stored.
    """
    person = {name: planted[name] for name in ("email", "name", "phone")} | {"password": "correct horse"}
    made = await mesh.ok("POST", "/v1/customers", person, key=new_key())
    login = {"email": planted["email"], "password": "correct horse"}
    token = (await mesh.ok("POST", "/v1/sessions", login))["accessToken"]
    path = f"/v1/customers/{made['id']}"
    address = {"regionCode": "GB", "addressLines": [planted["street"]], "recipients": [planted["name"]]}
    kept = await mesh.ok("POST", f"{path}/addresses", {"postalAddress": address}, token=token, key=new_key())
    await mesh.ok("POST", f"{path}/paymentMethods", {"token": "tok_visa"}, token=token, key=new_key())
    # By staff, whose stored reply holds the customer as well.
    await mesh.ok("PATCH", path, {"name": planted["name"] + " II"}, token=mesh.staff_token, key=new_key())

    product = await mesh.product(10)
    body = {"items": [{"productId": product, "quantity": 1}], "addressId": kept["id"]}
    first, second = [await mesh.ok("POST", "/v1/orders", body, token=token, key=new_key()) for _ in range(2)]
    await mesh.ok("POST", "/v1/orders", {**body, "draft": True}, token=token, key=new_key())

    async def status_of(order: dict[str, Any]) -> str | None:
        status: str = (await mesh.ok("GET", f"/v1/orders/{order['id']}", token=token))["status"]
        return status if status in FINAL else None

    cancel = {"reason": f"I have left {planted['street']}"}
    await mesh.ok("POST", f"/v1/orders/{first['id']}:cancel", cancel, token=token, key=new_key())
    for order in (first, second):
        await eventually(partial(status_of, order))
    shipment = {"carrier": "Post", "trackingNumber": "1"}
    await mesh.ok("POST", f"/v1/orders/{second['id']}:ship", shipment, token=mesh.staff_token, key=new_key())
    refused = await mesh.call("DELETE", path, token=token)
    assert (refused.status_code, reason_of(refused)) == (400, "CUSTOMER_HAS_OPEN_ORDERS")
    await mesh.ok("POST", f"/v1/orders/{second['id']}:deliver", {}, token=mesh.staff_token, key=new_key())
    # Whatever is cached is cached now.
    assert planted["name"] in (await mesh.ok("GET", path, token=token))["name"]
    export = await mesh.ok("GET", f"{path}:export", token=token)
    assert (len(export["orders"]), len(export["payments"])) == (3, 2)
    return made["id"], token


@pytest.mark.timeout(240)
async def test_nothing_that_the_mesh_stores_holds_an_erased_customer(mesh: RunningMesh) -> None:
    planted = {
        "email": f"Ada.{uuid4()}@example.com",
        "name": f"Ada {uuid4()}",
        "phone": f"+49{uuid4().int % 10**12:012}",
        "street": f"{uuid4()} Street",
    }
    customer_id, token = await live(mesh, planted)
    owners = {
        *((what, "customer_svc public.customers") for what in ("email", "name", "phone")),
        ("street", "customer_svc public.addresses"),
        ("street", "order_svc public.shipping_addresses"),
        ("street", "order_svc public.orders"),
        *(("street", f"{role} mesh.idempotency") for role in ("customer_svc", "order_svc")),
        # What is in these places is found.
        *(("id", place) for place in ("Redis", "streams", "edge")),
    }

    async def only_owners_are_found() -> bool:
        places = await found(mesh, {**planted, "id": customer_id})
        # Customers and orders may be cached in Redis.
        personal = {place for what, place in places if what != "id"} - {"Redis"}
        return owners <= places and personal == {place for what, place in owners if what != "id"}

    # The edge writes its log once a second, and events are in an outbox until they are published.
    await eventually(only_owners_are_found)

    await mesh.ok("DELETE", f"/v1/customers/{customer_id}", token=token)
    gone = await mesh.call("GET", f"/v1/customers/{customer_id}", token=mesh.staff_token)
    assert (gone.status_code, reason_of(gone)) == (404, "CUSTOMER_NOT_FOUND")

    async def nothing_is_found() -> bool:
        return not await found(mesh, planted)

    await eventually(nothing_is_found, within=90)

    async def is_refused() -> bool:
        return reason_of(await mesh.call("GET", f"/v1/customers/{customer_id}", token=token)) == "TOKEN_INVALID"

    await eventually(is_refused)
    orders = await mesh.ok("GET", f"/v1/orders?customerId={customer_id}", token=mesh.staff_token)
    assert {order["status"] for order in orders["orders"]} == {"ORDER_STATUS_CANCELLED", "ORDER_STATUS_DELIVERED"}
    again = {"email": planted["email"], "name": "Ada", "password": "correct horse"}
    assert (await mesh.ok("POST", "/v1/customers", again))["id"] != customer_id
    assert await mesh.audit() == []
