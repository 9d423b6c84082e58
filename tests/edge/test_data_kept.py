"""What `mesh down` leaves, and the next `mesh up` finds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.running import running_mesh
from tests.services import new_key


async def test_customers_tokens_orders_and_stock_outlive_a_stop(tmp_path: Path) -> None:
    key = new_key()
    async with running_mesh(tmp_path) as mesh:
        shopper = await mesh.shopper("tok_visa")
        product = await mesh.product(10)
        order = await shopper.decided((await shopper.order({product: 3}, key=key)).json()["id"])
        assert order["status"] == "ORDER_STATUS_CONFIRMED"
        await mesh.stock_is(product, on_hand=7)
        order = await mesh.ok("GET", f"/v1/orders/{order['id']}", token=shopper.token)
        payment = await mesh.ok("GET", f"/v1/orders/{order['id']}/payment", token=shopper.token)
        customer = await mesh.ok("GET", "/v1/customers/me", token=shopper.token)
        methods = await mesh.ok("GET", "/v1/customers/me/paymentMethods", token=shopper.token)

    async with running_mesh(tmp_path) as mesh:
        # With the token of before: the key that signs them is the same.
        shopper = replace(shopper, mesh=mesh)
        assert await mesh.ok("GET", "/v1/customers/me", token=shopper.token) == customer
        assert await mesh.ok("GET", "/v1/customers/me/paymentMethods", token=shopper.token) == methods
        assert await mesh.ok("GET", f"/v1/orders/{order['id']}", token=shopper.token) == order
        assert await mesh.ok("GET", f"/v1/orders/{order['id']}/payment", token=shopper.token) == payment
        await mesh.stock_is(product, on_hand=7)
        again = await shopper.order({product: 3}, key=key)
        assert (again.json()["id"], again.headers["idempotency-replayed"]) == (order["id"], "true")
        session = await mesh.ok("POST", "/v1/sessions", {"email": customer["email"], "password": "correct horse"})
        more = await replace(shopper, token=session["accessToken"]).order({product: 7})
        assert (await shopper.decided(more.json()["id"]))["status"] == "ORDER_STATUS_CONFIRMED"
        await mesh.stock_is(product, on_hand=0)
