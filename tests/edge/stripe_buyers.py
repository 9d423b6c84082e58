"""Customers who pay through our fake of Stripe, with secrets that are like nothing else and so can be searched for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from tests.running import RunningMesh, Shopper, reason_of
from tests.services import eventually, new_key
from tests.stripe.fake import AUTHENTICATED, DECLINED, VISA, FakeStripe, Refused

CARD = "4000056655665556"
"""A card number that Stripe quotes, in an error and in a webhook."""


def planted_stripe() -> FakeStripe:
    """A fake whose keys are like nothing else."""
    return FakeStripe(secret_key=f"sk_test_{uuid4().hex}", webhook_secret=f"whsec_{uuid4().hex}")


def environment_of(fake: FakeStripe) -> Mapping[str, str]:
    """The settings of a mesh that talks to the fake."""
    return {
        "MESH_PAYMENT_PROVIDERS": "sandbox,stripe",
        "MESH_STRIPE_SECRET_KEY": fake.secret_key,
        "MESH_STRIPE_WEBHOOK_SECRET": fake.webhook_secret,
        "MESH_STRIPE_API_URL": fake.url,
    }


@dataclass(frozen=True)
class Bought:
    """What was bought through Stripe."""

    reference: str
    """The PaymentIntent of a confirmed order: no secret, and to be found."""
    methods: frozenset[str]
    """PaymentMethods: the customer service keeps them, and nothing else may."""
    secrets: frozenset[str]
    """What nothing in the mesh may hold: keys, client secrets, signatures, card numbers."""


async def buy_through_stripe(mesh: RunningMesh, fake: FakeStripe, shopper: Shopper) -> Bought:
    """Pay with cards that are charged, declined, and ask for 3-D Secure; and meet errors that quote secrets."""
    product = await mesh.product(10)
    statuses, methods = {VISA: "CONFIRMED", DECLINED: "CANCELLED"}, set()
    orders: dict[str, str] = {}
    for number in (VISA, DECLINED, AUTHENTICATED):
        token = fake.method(number)
        methods.add(token)
        body = {"token": token, "provider": "stripe"}
        added = await mesh.ok("POST", "/v1/customers/me/paymentMethods", body, token=shopper.token)
        order = {**shopper.order_body({product: 1}), "paymentMethodId": added["id"]}
        orders[number] = (await mesh.ok("POST", "/v1/orders", order, token=shopper.token, key=new_key()))["id"]
    for number, status in statuses.items():
        assert (await shopper.decided(orders[number]))["status"] == f"ORDER_STATUS_{status}"
    client_secret = await authenticate(mesh, fake, shopper, orders[AUTHENTICATED])
    await quote(mesh, fake, shopper)
    payment = await mesh.ok("GET", f"/v1/orders/{orders[VISA]}/payment", token=shopper.token)
    others = {str(intent["client_secret"]) for intent in fake.intents.values()}
    secrets = {fake.secret_key, fake.webhook_secret, CARD, client_secret, *others}
    return Bought(payment["providerReference"], frozenset(methods), frozenset(secrets))


async def authenticate(mesh: RunningMesh, fake: FakeStripe, shopper: Shopper, order_id: str) -> str:
    """The shopper, and nobody else, gets the client secret, and passes 3-D Secure; Stripe's webhook says so."""
    path = f"/v1/orders/{order_id}/payment"

    async def waits() -> bool:
        answer = await mesh.call("GET", path, token=shopper.token)
        return answer.status_code == 200 and answer.json()["status"] == "PAYMENT_STATUS_REQUIRES_ACTION"

    await eventually(waits)
    payment = await mesh.ok("GET", path, token=shopper.token)
    client_secret: str = payment["nextAction"]["clientSecret"]
    assert client_secret == fake.intents[payment["providerReference"]]["client_secret"]
    assert client_secret not in (await mesh.call("GET", path, token=mesh.staff_token)).text
    fake.authenticate(client_secret, success=True)
    intent = {**fake.intents[payment["providerReference"]], "description": CARD}
    body = fake.event("payment_intent.succeeded", intent)
    for headers, status in ((fake.signed(body), 200), (fake.signed(body, secret="whsec_of_another"), 401)):
        answer = await mesh.http.post("/v1/paymentWebhooks/stripe", content=body, headers=headers)
        assert answer.status_code == status, answer.text
        assert client_secret not in answer.text
    assert (await shopper.decided(order_id))["status"] == "ORDER_STATUS_CONFIRMED"
    return client_secret


async def quote(mesh: RunningMesh, fake: FakeStripe, shopper: Shopper) -> None:
    """Stripe refuses and fails with texts that quote a card number and the secret key."""
    # The payment service asks, too, for its own reasons.
    fake.failing = "payment_methods"
    said: dict[str, Any] = {"message": f"No such thing: {CARD}, {fake.secret_key}"}
    for error, reason in (
        (Refused(500, "api_error", **said), "DEPENDENCY_UNAVAILABLE"),
        (Refused(400, "invalid_request_error", **said), "PROVIDER_TOKEN_UNKNOWN"),
    ):
        fake.failures.append(error)
        body = {"token": fake.method(VISA), "provider": "stripe"}
        answer = await mesh.call("POST", "/v1/customers/me/paymentMethods", body, token=shopper.token)
        assert reason_of(answer) == reason, answer.text
        assert all(each not in answer.text for each in (CARD, fake.secret_key, body["token"]))
