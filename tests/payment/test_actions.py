"""Payments that wait for their customer (3-D Secure), and a capture that comes after its order was cancelled."""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID

import asyncpg
from structlog.testing import capture_logs

from commerce.payment.v1 import payment_pb2
from mesh.ids import new_id
from payment_svc.providers import ChargeRef, Voided
from stack.servers import Servers
from tests.payment.process import House, LateAction, order
from tests.payment.served import CUSTOMER, Heard, Wire, charge, process, stub
from tests.services import Client, eventually, refused

AMOUNT = Decimal("12.5")
REQUIRES_ACTION = payment_pb2.PAYMENT_STATUS_REQUIRES_ACTION


async def test_payment_waits_for_its_customer_and_is_captured_once_they_have_acted(house: House) -> None:
    before, after, placed = await house.process(), await house.process(action_seconds=0), order("tok_3ds")
    await before.placed(placed)
    await before.idle()
    row = await house.row(placed)
    assert (row["status"], row["process_time"]) == ("REQUIRES_ACTION", None)
    assert row["provider_reference"]
    assert await house.charged(placed) == []
    await house.becomes(placed, "CAPTURED", sweeper=after)
    assert await house.asked(placed) == 1, "it is looked up, not charged again"
    [charged] = await house.charged(placed)
    assert charged["reference"] == row["provider_reference"]
    assert await house.ledger(placed) == [("CAPTURE", AMOUNT)]
    events = await house.events(placed)
    assert [name for name, _, _ in events] == ["action_required", "captured"]
    assert events[0][2].payment.status == REQUIRES_ACTION
    assert events[0][1] < events[1][1]


async def test_payment_whose_customer_has_not_acted_is_voided_for_good_with_its_order(house: House) -> None:
    process, late, placed = await house.process(), await house.process(action_seconds=0), order("tok_3ds")
    await process.placed(placed)
    await process.idle()
    await process.cancelling(placed)
    await process.idle()
    row = await house.row(placed)
    assert row["status"] == "VOIDED"
    assert await house.ledger(placed) == [("VOID", AMOUNT)]
    assert await house.told(placed) == ["action_required", "voided"]
    charge = ChargeRef(row["provider_key"], AMOUNT, "EUR", UUID(placed.order.id), row["create_time"])
    assert await late.sandbox.lookup(charge) == Voided()


async def test_payment_whose_customer_has_acted_before_the_cancellation_is_refunded(house: House) -> None:
    process, placed = await house.process(action_seconds=0), order("tok_3ds")
    await process.placed(placed)
    await process.idle()
    await process.cancelling(placed)
    await process.idle()
    assert await house.status(placed) == "REFUNDED"
    assert await house.refunds(placed) == [AMOUNT]
    assert await house.told(placed) == ["action_required", "captured", "refunded"]


async def test_payment_called_off_before_the_provider_asks_for_an_action_is_voided(house: House) -> None:
    process, placed = await house.process(LateAction), order("tok_3ds")
    await process.placed(placed)
    await house.reached(placed)
    await process.cancelling(placed)
    assert isinstance(process.sandbox, LateAction)
    process.sandbox.told.set()
    await process.idle()
    assert await house.status(placed) == "VOIDED"
    assert await house.told(placed) == ["voided"]


async def test_capture_that_comes_after_the_order_was_cancelled_is_refunded(house: House) -> None:
    process, placed = await house.process(), order("tok_late_capture")
    await process.placed(placed)
    await process.idle()
    assert (await house.status(placed), await house.charged(placed)) == ("PENDING", [])
    await process.cancelling(placed)
    await process.idle()
    assert await house.status(placed) == "REFUNDED"
    assert await house.ledger(placed) == [("CAPTURE", AMOUNT), ("REFUND", AMOUNT)]
    assert await house.told(placed) == ["captured", "refunded"]


async def read(client: Client, payment_id: str) -> payment_pb2.Payment:
    reply = await client(stub(client).GetPayment, payment_pb2.GetPaymentRequest(payment_id=payment_id))
    payment: payment_pb2.Payment = reply.payment
    return payment


async def test_next_action_is_shown_to_the_owner_and_written_nowhere(wire: Wire, servers: Servers) -> None:
    request = process("tok_3ds")
    with capture_logs() as lines:
        async with Heard(wire, request.order_id) as heard:
            payment = await charge(wire, request, key=str(new_id()))
            event_type, _, event = await heard.next()
        owner = wire.customer(CUSTOMER)
        shown = await read(owner, payment.id)
        by_order = payment_pb2.GetOrderPaymentRequest(order_id=payment.order_id)
        of_order = (await owner(stub(owner).GetOrderPayment, by_order)).payment
        error = await refused(read(wire.customer(str(new_id())), payment.id))
    secret, reference = shown.next_action.client_secret, shown.provider_reference
    assert (payment.status, shown.status) == (REQUIRES_ACTION, REQUIRES_ACTION)
    assert secret
    assert of_order == shown
    assert event_type == "commerce.payment.action_required"
    listing = payment_pb2.ListPaymentsRequest(order_id=payment.order_id)
    [listed] = (await wire.staff(stub(wire.gateway).ListPayments, listing)).payments
    for other in (payment, await read(wire.staff, payment.id), listed, event.payment):
        assert other.provider_reference == reference
        assert not other.HasField("next_action")
    assert error.reason == "PAYMENT_NOT_FOUND"
    assert secret not in repr(lines)
    assert "GetOrderPayment" in repr(lines)
    written = await everything_written(servers)
    for form in (secret, secret.encode().hex()):
        assert form not in written
    # Of the control value, the tables of payments and the outbox hold both forms.
    for form in (reference, reference.encode().hex()):
        assert form in written


async def everything_written(servers: Servers) -> str:
    """All rows of all tables of the payment service, but for the provider's own; bytes are in hexadecimal."""
    connection = await asyncpg.connect(servers.postgres.url_for("payment_svc"))
    tables = await connection.fetch(
        "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables "
        "WHERE schemaname NOT IN ('sandbox', 'pg_catalog', 'information_schema')"
    )
    texts = [
        str(row[0])
        for table in tables
        for row in await connection.fetch(f"SELECT string_agg(t::text, ' ') FROM {table['name']} AS t")
    ]
    await connection.close()
    return "\n".join(texts)


async def test_owner_who_has_acted_reads_that_the_payment_is_captured(wire: Wire, servers: Servers) -> None:
    payment, owner = await charge(wire, process("tok_3ds")), wire.customer(CUSTOMER)
    assert (await read(owner, payment.id)).status == REQUIRES_ACTION
    connection = await asyncpg.connect(servers.postgres.url_for("payment_svc"))
    acted = "UPDATE sandbox.charges SET create_time = create_time - interval '2 hours' WHERE order_id = $1"
    await connection.execute(acted, UUID(payment.order_id))
    await connection.close()

    async def captured() -> bool:
        seen = await read(owner, payment.id)
        assert seen.HasField("next_action") == (seen.status == REQUIRES_ACTION)
        return seen.status == payment_pb2.PAYMENT_STATUS_CAPTURED

    await eventually(captured)
