"""Webhooks of Stripe: signed over the raw body, and not for ever; and what they are about."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from aiohttp import web

from payment_svc.providers.protocol import Webhook, WebhookSignatureInvalid
from payment_svc.providers.stripe.provider import Stripe
from tests.services import TEST_TIMEOUT_S
from tests.stripe.fake import FakeStripe
from tests.stripe.servers import SECRET_KEY, WEBHOOK_SECRET

NOW = datetime(2026, 11, 28, 22, tzinfo=UTC)
AT = NOW.timestamp()
FAKE = FakeStripe()
BODY = FAKE.event(
    "payment_intent.succeeded", {"object": "payment_intent", "id": "pi_1", "metadata": {"key": "payment-1"}}
)


@pytest.fixture
def stripe() -> Stripe:
    return Stripe(SECRET_KEY, WEBHOOK_SECRET)


@pytest.mark.parametrize(
    ("about", "hints"),
    [
        ({"object": "payment_intent", "id": "pi_1", "metadata": {"key": "p"}}, ("p", "", "pi_1")),
        ({"object": "payment_intent", "id": "pi_1", "metadata": {}}, ("", "", "pi_1")),
        ({"object": "charge", "id": "ch_1", "payment_intent": "pi_1", "metadata": {"key": "p"}}, ("p", "", "pi_1")),
        ({"object": "refund", "id": "re_1", "payment_intent": "pi_1", "metadata": {"key": "r"}}, ("", "r", "pi_1")),
        ({"object": "dispute", "id": "dp_1", "payment_intent": "pi_1", "metadata": {}}, ("", "", "pi_1")),
        ({"object": "charge", "id": "ch_1", "payment_intent": None, "metadata": {}}, ("", "", "")),
        ({"object": "payout", "id": "po_1"}, ("", "", "")),
    ],
)
def test_webhook_says_what_it_is_about(stripe: Stripe, about: dict[str, Any], hints: tuple[str, str, str]) -> None:
    body = FAKE.event("some.type", about, event_id="evt_1")
    assert stripe.parse_webhook(FAKE.signed(body, at=AT), body, now=NOW) == Webhook("evt_1", "some.type", *hints)


def test_thin_event_says_no_more_than_its_type(stripe: Stripe) -> None:
    body = json.dumps({"id": "evt_1", "object": "v2.core.event", "type": "v2.core.event_destination.ping"}).encode()
    webhook = stripe.parse_webhook(FAKE.signed(body, at=AT), body, now=NOW)
    assert webhook == Webhook("evt_1", "v2.core.event_destination.ping")


def test_one_of_several_signatures_is_enough(stripe: Stripe) -> None:
    """While the secret of an endpoint is being rolled, Stripe signs with both."""
    other = FAKE.signed(BODY, at=AT, secret="whsec_before")["stripe-signature"]
    ours = FAKE.signed(BODY, at=AT)["stripe-signature"].partition(",")[2]
    assert stripe.parse_webhook({"stripe-signature": f"{other},{ours},v0=x"}, BODY, now=NOW).reference == "pi_1"


@pytest.mark.parametrize("age", [timedelta(seconds=299), timedelta(seconds=-299)])
def test_signature_within_the_tolerance_is_valid(stripe: Stripe, age: timedelta) -> None:
    assert stripe.parse_webhook(FAKE.signed(BODY, at=(NOW - age).timestamp()), BODY, now=NOW).charge_key == "payment-1"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, BODY),
        ({"stripe-signature": ""}, BODY),
        ({"stripe-signature": "nonsense"}, BODY),
        ({"stripe-signature": f"t={int(AT)}"}, BODY),
        ({"stripe-signature": f"t=soon,v1={'0' * 64}"}, BODY),
        ({"stripe-signature": f"t={int(AT)},v1={'é' * 64}"}, BODY),
        ({"stripe-signature": FAKE.signed(BODY, at=AT)["stripe-signature"].replace("v1=", "v0=")}, BODY),
        (FAKE.signed(BODY, at=AT, secret="whsec_other"), BODY),
        (FAKE.signed(BODY, at=AT), BODY + b" "),
        (FAKE.signed(BODY, at=AT), b"\xff" + BODY),
        (FAKE.signed(BODY, at=AT - 301), BODY),
        (FAKE.signed(BODY, at=AT + 301), BODY),
        # Only the first time is signed.
        ({"stripe-signature": FAKE.signed(BODY, at=AT - 301)["stripe-signature"] + f",t={int(AT)}"}, BODY),
        ({"stripe-signature": f"t={int(AT)}," + FAKE.signed(BODY, at=AT - 301)["stripe-signature"]}, BODY),
    ],
)
def test_webhook_without_a_valid_signature_is_refused(stripe: Stripe, headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(WebhookSignatureInvalid) as refusal:
        stripe.parse_webhook(headers, body, now=NOW)
    assert refusal.value.reason == "WEBHOOK_SIGNATURE_INVALID"
    assert refusal.value.__cause__ is None
    assert "pi_1" not in str(refusal.value)


@pytest.mark.parametrize("secret", ["", " "])
def test_without_a_secret_every_webhook_is_refused(secret: str) -> None:
    with pytest.raises(WebhookSignatureInvalid):
        Stripe(SECRET_KEY, secret).parse_webhook(FAKE.signed(BODY, at=AT, secret=" "), BODY, now=NOW)


async def test_webhook_of_localstripe_is_accepted(stripe: Stripe, localstripe_url: str) -> None:
    received: asyncio.Future[tuple[dict[str, str], bytes]] = asyncio.get_running_loop().create_future()

    async def receive(request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        received.set_result((headers, await request.read()))
        return web.Response()

    app = web.Application()
    app.router.add_post("/", receive)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with httpx.AsyncClient(base_url=localstripe_url, auth=(SECRET_KEY, "")) as client:
            hook: dict[str, Any] = {"url": f"http://127.0.0.1:{runner.addresses[0][1]}/", "secret": WEBHOOK_SECRET}
            hook |= {"events": ["customer.created"]}
            (await client.post("/_config/webhooks/ours", json=hook)).raise_for_status()
            (await client.post("/v1/customers", json={})).raise_for_status()
            async with asyncio.timeout(TEST_TIMEOUT_S):
                headers, body = await received
            # It sends no more, so that nothing is under way when it is stopped.
            hook |= {"events": []}
            (await client.post("/_config/webhooks/ours", json=hook)).raise_for_status()
    finally:
        await runner.cleanup()
    webhook = stripe.parse_webhook(headers, body, now=datetime.now(UTC))
    assert (webhook.type, webhook.event_id) == ("customer.created", json.loads(body)["id"])
    with pytest.raises(WebhookSignatureInvalid):
        stripe.parse_webhook(headers, body.replace(b"evt_", b"evt-"), now=datetime.now(UTC))
