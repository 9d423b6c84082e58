"""Where the token comes from that a payment is charged with, and what is done while nobody tells it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import UUID

import pytest

from commerce.customer.v1 import customer_pb2
from mesh.errors import Internal, NotFound, PermissionDenied
from mesh.errors import Unavailable as DatabaseLost
from mesh.ids import new_id
from mesh.rpc import status
from mesh.rpc.call import Call
from mesh.rpc.clients import Peer
from mesh.rpc.server import Server
from payment_svc.charger import ProviderAnswer
from payment_svc.domain import Payment
from payment_svc.peers import CustomerPeer
from payment_svc.providers import Charge, Outcome, ProviderUnavailable, Voided
from payment_svc.providers.sandbox import Sandbox
from tests.payment.process import Broken, Deaf, House, Late, Wallets, method_of, order, tell, with_token
from tests.runtime.served import settings
from tests.services import Keys, eventually

Results = Sequence[customer_pb2.PaymentMethodResult]


async def test_a_payment_is_charged_with_the_token_of_its_method_which_it_never_keeps(house: House) -> None:
    process, placed = await house.process(Deaf), order("tok_insufficient_funds")
    await process.placed(placed)
    row = await house.row(placed)
    assert (row["status"], row["token"]) == ("PENDING", "")
    assert row["payment_method_id"] == method_of("tok_insufficient_funds")
    await process.kill()
    row = await house.becomes(placed, "DECLINED", sweeper=await house.process())
    assert (row["failure_reason"], row["token"]) == ("insufficient_funds", "")


async def test_payment_waits_for_its_token_and_is_charged_once(house: House) -> None:
    process, placed = await house.process(), order()
    house.wallets.is_away = True
    await process.placed(placed)
    await process.idle()
    row = await house.row(placed)
    assert (row["status"], row["attempts"], await house.asked(placed)) == ("PENDING", 1, 0)

    async def asked_again() -> bool:
        await process.payments.sweep()
        return bool((await house.row(placed))["attempts"] >= 3)

    await eventually(asked_again)
    assert await house.asked(placed) == 0
    house.wallets.is_away = False
    await house.becomes(placed, "CAPTURED", sweeper=process)
    assert (await house.asked(placed), await house.told(placed)) == (1, ["captured"])


async def test_outcome_that_the_provider_knows_is_recorded_without_a_token(house: House) -> None:
    first, second, placed = await house.process(Late, timeout=30), await house.process(), order("tok_slow")
    await first.placed(placed)
    await house.reached(placed)
    await first.kill()
    house.wallets.is_away = True
    await house.becomes(placed, "CAPTURED", sweeper=second)
    assert await house.asked(placed) == 1


async def test_payment_is_called_off_and_refunded_without_a_token(house: House) -> None:
    process, early, late = await house.process(), order(), order()
    await process.placed(early)
    await process.idle()
    house.wallets.is_away = True
    await process.placed(late)
    await process.idle()
    house.wallets.asked.clear()
    await process.cancelling(early, late)
    await process.idle()
    assert (await house.status(early), await house.status(late)) == ("REFUNDED", "VOIDED")
    assert house.wallets.asked == []


async def test_payments_that_wait_for_a_token_keep_no_other_from_the_provider(house: House) -> None:
    class Silent(Wallets):
        async def token_of(self, payment: Payment) -> str | None:
            if payment.payment_method_id == method_of("tok_slow"):
                await asyncio.Event().wait()
            return await super().token_of(payment)

    house.wallets = Silent()
    process, stuck, placed = await house.process(at_a_time=2), [order("tok_slow") for _ in range(5)], order()
    await process.placed(*stuck, placed)

    async def captured() -> bool:
        return await house.status(placed) == "CAPTURED"

    await eventually(captured)
    assert {await house.status(each) for each in stuck} == {"PENDING"}


async def test_a_payment_whose_method_is_forgotten_is_declined_by_name_and_never_charged(house: House) -> None:
    process, placed = await house.process(), order()
    del house.wallets.tokens[method_of("tok_visa")]
    await process.placed(placed)
    await process.idle()
    row = await house.row(placed)
    assert (row["status"], row["failure_reason"]) == ("DECLINED", "payment_method_not_found")
    [(name, _, event)] = await house.events(placed)
    assert (name, event.payment.failure_reason) == ("declined", "payment_method_not_found")
    late = Charge(row["provider_key"], "tok_visa", row["amount"], "EUR", row["order_id"])
    assert await process.sandbox.charge(late) == Voided(), "an attempt on its way there"
    assert await house.charged(placed) == []


async def test_an_event_that_names_no_payment_method_is_declined(house: House) -> None:
    process, placed = await house.process(), order()
    placed.order.payment_method_id = ""
    await process.placed(placed)
    await process.idle()
    assert (await house.row(placed))["failure_reason"] == "payment_method_not_found"


async def test_a_decline_that_could_not_be_written_down_is_made_again(house: House) -> None:
    first, second, placed = await house.process(), await house.process(), order()
    house.wallets.tokens.clear()

    async def lost(_: ProviderAnswer) -> Payment:
        raise DatabaseLost("the database does not answer")

    first.record.instead = lost
    await first.placed(placed)
    await first.idle()
    assert await house.status(placed) == "PENDING"
    row = await house.becomes(placed, "DECLINED", sweeper=second)
    assert row["failure_reason"] == "payment_method_not_found"


async def test_a_charge_made_before_its_method_was_forgotten_is_captured(house: House) -> None:
    here, there, placed = await house.process(Late, timeout=30), await house.process(), order("tok_slow")
    await here.placed(placed)
    await house.reached(placed)
    house.wallets.tokens.clear()
    await house.becomes(placed, "CAPTURED", sweeper=there)
    tell(here)
    await here.idle()
    assert (await house.status(placed), len(await house.charged(placed))) == ("CAPTURED", 1)


async def test_a_charge_that_another_process_makes_meanwhile_is_not_declined(house: House) -> None:
    there, placed = await house.process(), order()

    class Forgetful(Wallets):
        async def token_of(self, payment: Payment) -> str | None:
            # This takes longer than the lease, and the method is forgotten in the meantime.
            await house.becomes(placed, "CAPTURED", sweeper=there)
            self.tokens.clear()
            return await super().token_of(payment)

    house.wallets = Forgetful()
    here = await house.process()
    await here.placed(placed)
    await here.idle()
    assert (await house.status(placed), await house.told(placed)) == ("CAPTURED", ["captured"])


async def test_every_attempt_under_a_key_has_the_same_token(house: House) -> None:
    class Forgotten(Sandbox):
        """It forgets that it was asked: the charge is asked for again, under the same key."""

        async def charge(self, charge: Charge) -> Outcome:
            self.seen.append((charge.key, charge.token))
            return ProviderUnavailable("not now") if len(self.seen) < 4 else await super().charge(charge)

        seen: list[tuple[str, str]]

    process, placed = await house.process(Forgotten), order("tok_flaky")
    assert isinstance(process.sandbox, Forgotten)
    process.sandbox.seen = []
    await process.placed(placed)
    row = await house.becomes(placed, "CAPTURED", sweeper=process)
    assert len(process.sandbox.seen) > 4
    assert set(process.sandbox.seen) == {(row["provider_key"], "tok_flaky")}


async def test_an_event_that_carries_a_token_is_charged_with_it_and_the_token_is_not_kept(house: House) -> None:
    first, second, placed = await house.process(Deaf), await house.process(), with_token("tok_insufficient_funds")
    house.wallets.tokens.clear()
    await first.placed(placed)
    assert (await house.row(placed))["token"] == "tok_insufficient_funds"
    await first.kill()
    row = await house.becomes(placed, "DECLINED", sweeper=second)
    assert (row["failure_reason"], row["token"]) == ("insufficient_funds", "")
    assert house.wallets.asked == []


async def test_a_payment_that_was_pending_before_the_migration_is_charged(house: House) -> None:
    placed = order()
    await house.connection.execute(
        # As it was written before there was a payment method in the row.
        "INSERT INTO payments (id, order_id, customer_id, amount, currency, provider, token, provider_key, status,"
        " refunded_amount, provider_reference, failure_reason, cancel_requested, attempts, next_attempt_time,"
        " create_time, traceparent, version) "
        "VALUES ($1, $2, $3, 12.5, 'EUR', 'sandbox', 'tok_visa', 'payment-' || $1::uuid, 'PENDING', 0, '', '', false,"
        " 0, now(), now(), '', 1)",
        new_id(),
        UUID(placed.order.id),
        UUID(placed.order.customer_id),
    )
    row = await house.becomes(placed, "CAPTURED", sweeper=await house.process())
    assert (row["token"], row["payment_method_id"]) == ("", None)
    assert house.wallets.asked == []


async def test_a_failure_after_the_charge_needs_no_second_token(house: House) -> None:
    process, placed = await house.process(Broken), order()
    await process.placed(placed)
    await process.idle()
    assert await house.status(placed) == "CAPTURED"
    assert house.wallets.asked == [UUID(placed.order.id)]


# The customer service as a peer.


class Customers:
    """A customer service that answers as a test says."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[str, str]]] = []
        self.answer: Callable[[customer_pb2.ResolvePaymentMethodsRequest], Awaitable[Results]] = tokens_of

    async def ResolvePaymentMethods(  # named as in the contract
        self, request: customer_pb2.ResolvePaymentMethodsRequest, _: Call
    ) -> customer_pb2.ResolvePaymentMethodsResponse:
        self.asked.append([(query.customer_id, query.payment_method_id) for query in request.queries])
        return customer_pb2.ResolvePaymentMethodsResponse(results=await self.answer(request))


async def tokens_of(request: customer_pb2.ResolvePaymentMethodsRequest) -> Results:
    return [
        customer_pb2.PaymentMethodResult(
            payment_method=customer_pb2.PaymentMethodSecret(
                id=query.payment_method_id, provider="sandbox", token=f"tok_{query.payment_method_id}"
            )
        )
        for query in request.queries
    ]


@asynccontextmanager
async def asking(keys: Keys, customers: Customers, *, peer: str = "payment") -> AsyncIterator[CustomerPeer]:
    servicers = {"commerce.customer.v1.CustomerService": customers}
    server = Server(settings(keys, "customer"), servicers, checks=())
    await server.start()
    connection = Peer("customer", (f"127.0.0.1:{server.port}",), settings(keys, peer))
    try:
        yield CustomerPeer(connection, timeout=5)
    finally:
        await connection.stop()
        await server.stop()


@pytest.fixture
async def payment(house: House) -> Payment:
    """A payment that is to be charged."""
    placed = order()
    await (await house.process(Deaf)).placed(placed)
    return await house.payment(placed)


async def test_the_tokens_of_many_payments_take_one_question(keys: Keys, payment: Payment) -> None:
    customers = Customers()
    payments = [replace(payment, customer_id=new_id(), payment_method_id=new_id()) for _ in range(200)]
    async with asking(keys, customers) as peer:
        told = await asyncio.gather(*map(peer.token_of, payments))
    assert told == [f"tok_{each.payment_method_id}" for each in payments]
    assert customers.asked == [[(str(each.customer_id), str(each.payment_method_id)) for each in payments]]


async def test_only_what_is_not_found_counts_as_forgotten(keys: Keys, payment: Payment) -> None:
    customers = Customers()
    gone, lost, elsewhere = NotFound("gone", reason="PAYMENT_METHOD_NOT_FOUND"), Internal("lost"), "another"

    async def answer(_: customer_pb2.ResolvePaymentMethodsRequest) -> Results:
        foreign = customer_pb2.PaymentMethodSecret(provider=elsewhere, token="tok_visa")
        return [
            customer_pb2.PaymentMethodResult(error=status.to_status(gone)),
            customer_pb2.PaymentMethodResult(error=status.to_status(lost)),
            customer_pb2.PaymentMethodResult(payment_method=foreign),
        ]

    customers.answer = answer
    async with asking(keys, customers) as peer:
        told = await asyncio.gather(*(peer.token_of(payment) for _ in range(3)), return_exceptions=True)
    assert (told[0], type(told[1]), told[2]) == (None, Internal, None)


async def test_a_question_that_is_refused_is_not_asked_for_each_payment_again(keys: Keys, payment: Payment) -> None:
    customers = Customers()

    async def fail(_: customer_pb2.ResolvePaymentMethodsRequest) -> Results:
        raise Internal("lost")

    customers.answer = fail
    async with asking(keys, customers) as peer:
        told = await asyncio.gather(*(peer.token_of(payment) for _ in range(50)), return_exceptions=True)
    assert {type(each) for each in told} == {Internal}
    assert [len(each) for each in customers.asked] == [50]


async def test_no_other_service_gets_a_token(keys: Keys, payment: Payment) -> None:
    customers = Customers()
    for other in ("order", "product", "gateway", "operator"):
        async with asking(keys, customers, peer=other) as peer:
            with pytest.raises(PermissionDenied) as refusal:
                await peer.token_of(payment)
            assert refusal.value.reason == "ROLE_REQUIRED"
    assert customers.asked == []
