"""A provider's token is with the customer service, which keeps it, and at the provider; nothing else may hold one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import UUID

import pytest

from stack.servers import DATABASES
from tests import leaks
from tests.edge.stripe_buyers import buy_through_stripe, environment_of, planted_stripe
from tests.running import RunningMesh, Shopper, reason_of, running_mesh
from tests.services import eventually, new_key, unknown_token

TOKENS = ("tok_visa", "tok_insufficient_funds", "tok_timeout", "tok_flaky", "tok_declined")
KEEPERS = {
    ("customer_svc", "public.payment_methods"),
    # The sandbox's own record: it plays the provider.
    ("payment_svc", "sandbox.charges"),
    ("payment_svc", "sandbox.attempts"),
}


@pytest.mark.timeout(180)
async def test_no_event_stored_reply_inbox_or_log_holds_a_token(tmp_path: Path) -> None:
    state, planted, control = tmp_path / "state", unknown_token(), unknown_token()
    async with AsyncExitStack() as stack:
        fake = await stack.enter_async_context(planted_stripe())
        environment = {"MESH_LOG_LEVEL": "debug", **environment_of(fake)}
        mesh = await stack.enter_async_context(running_mesh(state, environment=environment))
        shopper = await mesh.shopper(*TOKENS)
        # One that is like nothing else, on the card that would be declined anyway.
        await mesh.sql(
            "customer_svc",
            "UPDATE payment_methods SET token = $1 WHERE id = $2",
            planted,
            UUID(shopper.methods["tok_declined"]),
        )
        orders = await all_kinds_of_orders(mesh, shopper)
        refusal = await mesh.call("POST", "/v1/customers/me/paymentMethods", {"token": planted}, token=shopper.token)
        assert (refusal.status_code, reason_of(refusal)) == (400, "PROVIDER_TOKEN_UNKNOWN")
        assert planted not in refusal.text
        # What the search must find in the logs: the path of a request is logged.
        assert (await mesh.call("GET", f"/v1/products/{control}")).status_code == 400

        stripe = await buy_through_stripe(mesh, fake, shopper)
        await eventually(lambda: everything_published(mesh))

        secret, order_id = [*TOKENS, planted, *stripe.methods, *stripe.secrets], orders["tok_visa"]
        places = {role: await search(mesh, role, [*secret, order_id, stripe.reference]) for role in DATABASES}
        keepers = {token: {(role, table) for role in DATABASES for table in places[role][token]} for token in secret}
        assert keepers["tok_visa"] == keepers[planted] == KEEPERS
        assert all(tables <= KEEPERS for tables in keepers.values()), keepers
        assert all(keepers[method] == {("customer_svc", "public.payment_methods")} for method in stripe.methods)
        assert all(not keepers[text] for text in stripe.secrets), keepers
        assert places["payment_svc"][stripe.reference] >= {"public.payments", "public.payment_entries"}
        assert places["order_svc"][order_id] >= {"public.orders", "mesh.idempotency", *outboxes(places["order_svc"])}
        assert outboxes(places["payment_svc"])
        event = "SELECT event_id FROM mesh.outbox WHERE type = 'commerce.order.placed' AND aggregate_id = $1"
        event_id = str((await mesh.sql("order_svc", event, UUID(order_id)))[0]["event_id"])
        assert (await search(mesh, "payment_svc", [event_id]))[event_id] == {"mesh.inbox"}

    streams, logs = (
        leaks.in_files(state / name, [*secret, order_id, stripe.reference, control]) for name in ("nats", "logs")
    )
    assert any("ORDERS" in path for path in streams[order_id])
    assert any("PAYMENTS" in path for path in streams[order_id])
    assert any("PAYMENTS" in path for path in streams[stripe.reference])
    assert logs[control]
    assert {token: streams[token] | logs[token] for token in secret} == {token: set() for token in secret}


async def all_kinds_of_orders(mesh: RunningMesh, shopper: Shopper) -> Mapping[str, str]:
    """The ids of orders that have come to rest, one for each token."""
    product, orders = await mesh.product(10), {}
    for token in TOKENS:
        key = new_key()
        first, again = [await shopper.order({product: 1}, method=token, key=key) for _ in range(2)]
        assert again.headers["idempotency-replayed"] == "true"
        orders[token] = first.json()["id"]
    expected = {"tok_insufficient_funds": "ORDER_STATUS_CANCELLED", "tok_declined": "ORDER_STATUS_CANCELLED"}
    for token, order_id in orders.items():
        assert (await shopper.decided(order_id))["status"] == expected.get(token, "ORDER_STATUS_CONFIRMED")
        payment = await mesh.ok("GET", f"/v1/orders/{order_id}/payment", token=shopper.token)
        if token == "tok_declined":
            assert payment["failureReason"] == "token_unknown", "the planted token was charged"
    await eventually(lambda: everything_published(mesh))
    return orders


async def everything_published(mesh: RunningMesh) -> bool:
    """Whether all outboxes are empty."""
    left = [await mesh.sql(role, "SELECT FROM mesh.unpublished LIMIT 1") for role in DATABASES]
    return not any(left)


async def search(mesh: RunningMesh, role: str, texts: list[str]) -> leaks.Places:
    """The tables of a service that hold each of the texts."""
    async with mesh.database(role) as connection:
        return await leaks.in_database(connection, texts)


def outboxes(places: leaks.Places) -> set[str]:
    """The partitions of the outbox among some tables."""
    return {table for tables in places.values() for table in tables if table.startswith("mesh.outbox_2")}
