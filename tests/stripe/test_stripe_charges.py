"""The provider `stripe` against localstripe and against our own fake: neither is Stripe (docs/stripe.md)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import httpx
import pytest
from stripe import APIConnectionError

from payment_svc.providers.protocol import (
    Absent,
    ActionRequired,
    Approved,
    Charge,
    ChargeRef,
    Declined,
    MovementType,
    ProviderUnavailable,
    Refunded,
    RefundRequest,
    Refused,
    Unknown,
    Voided,
)
from payment_svc.providers.stripe.provider import Stripe
from tests.stripe.fake import AUTHENTICATED, DECLINED, DISPUTED, UNREFUNDABLE, VISA, FakeStripe
from tests.stripe.fake import Refused as ErrorReply
from tests.stripe.proxy import LossyProxy
from tests.stripe.servers import OurFake, StripeServer, provider_at, token

NOW = datetime.now(UTC)
CREATE = b"POST /v1/payment_intents HTTP"
REFUND = b"POST /v1/refunds HTTP"


async def charge_with(server: StripeServer, number: str = VISA, amount: str = "12.34", kept: str = "") -> Charge:
    """A charge of a card, or with the token that is kept of one."""
    return Charge(f"payment-{uuid4()}", kept or await token(server, number), Decimal(amount), "EUR", uuid4())


def ref(charge: Charge, reference: str = "") -> ChargeRef:
    return ChargeRef(charge.key, charge.amount, charge.currency, charge.order_id, NOW, reference)


def refund_of(charge: Charge, reference: str, amount: str) -> RefundRequest:
    return RefundRequest(f"refund-{uuid4()}", charge.key, reference, Decimal(amount), charge.currency)


async def paid(stripe: Stripe, charge: Charge) -> str:
    """Charge, and return the reference."""
    approved = await stripe.charge(charge)
    assert isinstance(approved, Approved), approved
    return approved.reference


async def test_card_is_charged_looked_up_and_refunded(server: StripeServer) -> None:
    async with provider_at(server.url) as stripe:
        charge = await charge_with(server)
        assert await stripe.lookup(ref(charge)) == Absent()
        reference = await paid(stripe, charge)
        [intent] = await server.captured(charge.key)
        assert (intent["amount"], intent["currency"]) == (1234, "eur")
        assert intent["metadata"] == {"key": charge.key, "order_id": str(charge.order_id)}
        assert await stripe.lookup(ref(charge)) == await stripe.lookup(ref(charge, reference)) == Approved(reference)
        assert await stripe.void(ref(charge)) == Approved(reference)
        first, second = refund_of(charge, reference, "2.34"), refund_of(charge, reference, "10")
        assert await stripe.lookup_refund(first) == Absent()
        refunded = [await stripe.refund(each) for each in (first, second)]
        assert [each.amount for each in refunded if isinstance(each, Refunded)] == [first.amount, second.amount]
        assert [await stripe.lookup_refund(each) for each in (first, second)] == refunded
        record = await stripe.record(ref(charge))
    assert not isinstance(record, Absent | ProviderUnavailable | Unknown)
    assert record.standing == Approved(reference)
    assert record.total(MovementType.CAPTURE) == record.total(MovementType.REFUND) == charge.amount
    assert {each.key for each in record.movements} == {"", first.key, second.key}


async def test_declined_card_stays_declined(server: StripeServer) -> None:
    async with provider_at(server.url) as stripe:
        charge = await charge_with(server, DECLINED)
        declined = await stripe.charge(charge)
        assert isinstance(declined, Declined)
        assert declined.reason in {"card_declined", "generic_decline"}
        assert await stripe.lookup(ref(charge)) == declined
        assert await stripe.void(ref(charge)) == Voided()
    assert await server.captured(charge.key) == []


@pytest.mark.parametrize("success", [True, False])
async def test_customer_passes_or_fails_3d_secure(server: StripeServer, success: bool) -> None:
    async with provider_at(server.url) as stripe:
        charge = await charge_with(server, AUTHENTICATED)
        waiting = await stripe.charge(charge)
        assert isinstance(waiting, ActionRequired)
        secret = waiting.next_action.client_secret
        assert secret.startswith(waiting.reference)
        assert secret not in repr(waiting)
        assert await stripe.lookup(ref(charge)) == waiting
        await server.authenticate(secret, success=success)
        ended = await stripe.lookup(ref(charge, waiting.reference))
        if success:
            assert ended == Approved(waiting.reference)
        else:
            assert ended == Declined("payment_intent_authentication_failure")
    assert len(await server.captured(charge.key)) == success


async def test_payment_that_waits_for_3d_secure_can_be_voided(server: StripeServer) -> None:
    async with provider_at(server.url) as stripe:
        charge = await charge_with(server, AUTHENTICATED)
        waiting = await stripe.charge(charge)
        assert isinstance(waiting, ActionRequired)
        assert await stripe.void(ref(charge)) == Voided()
        assert await stripe.void(ref(charge, waiting.reference)) == Voided()
        assert isinstance(await stripe.lookup(ref(charge)), Declined)
    with pytest.raises((httpx.HTTPStatusError, ErrorReply)):
        await server.authenticate(waiting.next_action.client_secret, success=True)


async def test_capture_whose_reply_is_lost_is_found_by_look_up(server: StripeServer) -> None:
    async with LossyProxy(server.url) as proxy, provider_at(proxy.url) as stripe:
        charge = await charge_with(server)
        proxy.lose_replies(CREATE)
        assert isinstance(await stripe.charge(charge), Unknown)
        assert proxy.lost == 1
        [captured] = await server.captured(charge.key)
        assert await stripe.lookup(ref(charge)) == Approved(captured["id"])
        refund = refund_of(charge, captured["id"], "12.34")
        proxy.lose_replies(REFUND)
        assert isinstance(await stripe.refund(refund), Unknown)
        assert proxy.lost == 2
        found = await stripe.lookup_refund(refund)
    assert isinstance(found, Refunded)
    assert found.amount == charge.amount
    assert len(await server.captured(charge.key)) == 1


async def test_charge_and_refund_under_one_key_move_money_once(fake: FakeStripe) -> None:
    async with provider_at(fake.url) as stripe:
        charge = await charge_with(OurFake(fake))
        reference = await paid(stripe, charge)
        again = await asyncio.gather(*(stripe.charge(charge) for _ in range(5)))
        assert {*again} == {Approved(reference)}
        refund = refund_of(charge, reference, "5")
        refunds = [await stripe.refund(refund) for _ in range(3)]
    assert isinstance(refunds[0], Refunded)
    assert refunds == [refunds[0]] * 3
    assert len(fake.captured) == len(fake.refunds) == 1


async def test_charge_asked_again_tells_what_stands_now_and_not_the_reply_of_before(fake: FakeStripe) -> None:
    async with provider_at(fake.url) as stripe:
        charge = await charge_with(OurFake(fake), AUTHENTICATED)
        waiting = await stripe.charge(charge)
        assert isinstance(waiting, ActionRequired)
        fake.authenticate(waiting.next_action.client_secret, success=True)
        assert await stripe.charge(charge) == Approved(waiting.reference)


async def test_charge_that_is_under_way_is_not_made_twice(fake: FakeStripe) -> None:
    fake.stalled = asyncio.Event()
    async with provider_at(fake.url) as stripe:
        charge = await charge_with(OurFake(fake))
        outcomes = [asyncio.create_task(stripe.charge(charge)) for _ in range(3)]
        done, _ = await asyncio.wait(outcomes, return_when=asyncio.FIRST_COMPLETED)
        fake.stalled.set()
        reference = fake.captured[0]["id"]
        assert {type(await each) for each in outcomes} <= {Approved, Unknown}
        assert await stripe.lookup(ref(charge)) == Approved(reference)
    assert len(done) > 0
    assert len(fake.captured) == 1


async def test_refunds_above_what_is_left_are_refused(fake: FakeStripe) -> None:
    async with provider_at(fake.url) as stripe:
        charge = await charge_with(OurFake(fake), amount="10")
        reference = await paid(stripe, charge)
        parts = [refund_of(charge, reference, "4") for _ in range(5)]
        outcomes = await asyncio.gather(*(stripe.refund(part) for part in parts))
        assert sorted(type(each).__name__ for each in outcomes) == ["Refunded", "Refunded", *["Refused"] * 3]
        assert isinstance(await stripe.refund(refund_of(charge, reference, "2")), Refunded)
        assert await stripe.refund(refund_of(charge, reference, "1")) == Refused("charge_already_refunded")
    assert sum(each["amount"] for each in fake.refunds.values()) == 1000


async def test_refund_that_fails_at_the_bank_is_refused_with_its_reason(fake: FakeStripe) -> None:
    async with provider_at(fake.url) as stripe:
        charge = await charge_with(OurFake(fake), UNREFUNDABLE)
        refund = refund_of(charge, await paid(stripe, charge), "1")
        assert await stripe.refund(refund) == Refused("expired_or_canceled_card")
        [made] = fake.refunds.values()
        made["status"] = "pending"
        assert isinstance(await stripe.lookup_refund(refund), Unknown)


async def test_void_before_the_charge_keeps_it_from_ever_being_made(fake: FakeStripe) -> None:
    async with provider_at(fake.url) as stripe:
        charge = await charge_with(OurFake(fake))
        assert await stripe.void(ref(charge)) == Voided()
        assert await stripe.charge(charge) == Declined("canceled")
        assert await stripe.void(ref(charge)) == Voided()
    assert fake.captured == []


async def test_void_of_a_charge_that_is_not_found_yet_waits_for_search(fake: FakeStripe) -> None:
    async with provider_at(fake.url) as stripe:
        charge = await charge_with(OurFake(fake))
        reference = await paid(stripe, charge)
        others = {f"pi_other_{number}": {**fake.intents[reference], "metadata": {}} for number in range(400)}
        fake.intents |= {name: {**other, "id": name} for name, other in others.items()}
        fake.search_lags = True
        # Too far back in the list: only its key says that it is there.
        assert isinstance(await stripe.void(ref(charge)), Unknown)
        assert await stripe.charge(charge) == Approved(reference)
        fake.search_lags = False
        assert await stripe.lookup(ref(charge)) == Approved(reference)
        assert await stripe.void(ref(charge)) == Approved(reference)


async def test_old_payments_are_not_paged_through_for_a_new_key(fake: FakeStripe) -> None:
    async with provider_at(fake.url) as stripe:
        charge = await charge_with(OurFake(fake))
        reference = await paid(stripe, charge)
        old = {**fake.intents[reference], "metadata": {}, "created": int((NOW - timedelta(days=1)).timestamp())}
        newer = fake.intents.copy()
        fake.intents.clear()
        fake.intents |= {f"pi_old_{number}": {**old, "id": f"pi_old_{number}"} for number in range(150)} | newer
        fake.requests.clear()
        assert await stripe.lookup(replace(ref(charge), key=f"payment-{uuid4()}")) == Absent()
    assert fake.requests == ["GET /v1/payment_intents"]


async def test_record_has_the_fee_and_the_dispute_and_no_inquiry(fake: FakeStripe) -> None:
    fake.fee = 60
    async with provider_at(fake.url) as stripe:
        charge = await charge_with(OurFake(fake), DISPUTED)
        reference = await paid(stripe, charge)
        fake.dispute(reference, status="warning_needs_response")
        record = await stripe.record(ref(charge))
    assert not isinstance(record, Absent | ProviderUnavailable | Unknown)
    assert record.total(MovementType.DISPUTE) == charge.amount
    assert sorted(each.amount for each in record.movements if each.type is MovementType.FEE) == [
        Decimal("0.6"),
        Decimal(15),
    ]
    assert len({(each.type, each.reference) for each in record.movements}) == len(record.movements) == 4


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ErrorReply(429, "invalid_request_error", "rate_limit"), ProviderUnavailable),
        (ErrorReply(401, "invalid_request_error"), ProviderUnavailable),
        (ErrorReply(403, "invalid_request_error"), ProviderUnavailable),
        (ErrorReply(409, "idempotency_error", "idempotency_key_in_use"), Unknown),
        (ErrorReply(500, "api_error"), Unknown),
    ],
)
async def test_errors_say_whether_anything_was_done(fake: FakeStripe, error: ErrorReply, kind: type) -> None:
    async with provider_at(fake.url) as stripe:
        charge = await charge_with(OurFake(fake))
        reference = await paid(stripe, await charge_with(OurFake(fake)))
        for call in (
            stripe.charge(charge),
            stripe.lookup(ref(charge)),
            stripe.void(ref(charge)),
            stripe.refund(refund_of(charge, reference, "1")),
            stripe.lookup_refund(refund_of(charge, reference, "1")),
            stripe.record(ref(charge)),
        ):
            fake.failures.append(error)
            assert isinstance(await call, kind)
        assert isinstance(await stripe.charge(charge), Approved)


async def test_requests_that_stripe_refuses_are_declined(fake: FakeStripe) -> None:
    async with provider_at(fake.url) as stripe:
        small = await charge_with(OurFake(fake), amount="0.49")
        assert await stripe.charge(small) == Declined("amount_too_small")
        assert await stripe.void(ref(small)) == Voided()
        gone = replace(await charge_with(OurFake(fake)), token="cus_gone/pm_gone")
        assert await stripe.charge(gone) == Declined("resource_missing")


async def test_stripe_that_cannot_be_reached_did_nothing_and_gives_no_sign_of_life(fake: FakeStripe) -> None:
    async with provider_at("http://127.0.0.1:1") as stripe:
        assert isinstance(await stripe.charge(await charge_with(OurFake(fake))), ProviderUnavailable)
        with pytest.raises(APIConnectionError):
            await stripe.probe()
    async with provider_at(fake.url, secret_key="sk_test_of_another") as stripe:
        await stripe.probe()
