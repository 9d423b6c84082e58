"""Operations on the events of a mesh: they are found and shown, lost ones are backfilled, consumers are rebuilt."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import chain
from uuid import UUID

from commerce.order.v1 import order_pb2
from commerce.payment.v1 import payment_pb2
from ops.events import Filter, Streams, backfill, decoded, find, show
from stack.servers import DATABASES, Servers
from tests.mesh.house import House, another, house
from tests.services import Keys, eventually, running

CONSUMERS = {"PAYMENTS": ["order-payment"], "ORDERS": ["payment-order", "product-order"]}
EFFECTS = {
    "order_svc": ["SELECT id, status, version FROM orders", "SELECT * FROM order_history"],
    "payment_svc": [
        "SELECT id, status, version FROM payments",
        "SELECT * FROM payment_entries",
        "SELECT * FROM refunds",
        "SELECT * FROM sandbox.charges",
    ],
    "product_svc": [
        "SELECT order_id, state FROM holds",
        "SELECT * FROM stocks",
        "SELECT * FROM stock_movements",
    ],
}
"""What consumers change, and what their changes cause outside: charges and refunds at the provider."""


async def effects(mesh: House) -> dict[str, list[str]]:
    """All rows of these tables, and the number of events that each service has written."""
    found = {
        query: sorted(map(repr, await mesh.sql(role, query))) for role, queries in EFFECTS.items() for query in queries
    }
    return {**found, "events": await written(mesh)}


async def written(mesh: House) -> list[str]:
    """The number of events that each service has written."""
    return [repr(await mesh.sql(role, "SELECT count(*) FROM mesh.outbox")) for role in EFFECTS]


async def at_rest(mesh: House, streams: Streams) -> bool:
    """Whether all events are published and applied, and nothing was written while this was checked."""
    before = await written(mesh)
    for role in EFFECTS:
        if await mesh.sql(role, "SELECT FROM mesh.unpublished LIMIT 1"):
            return False
    for stream, names in CONSUMERS.items():
        for name in names:
            info = await streams.bus.jetstream.consumer_info(stream, name)
            if info.num_pending or info.num_ack_pending:
                return False
    return await written(mesh) == before


async def test_events_of_an_order_are_found_and_shown_with_their_consumers(mesh: House) -> None:
    buyer = await mesh.buyer("tok_visa")
    product = await mesh.product(5)
    begun = datetime.now(UTC) - timedelta(minutes=1)
    others = (await mesh.decided(buyer, (await mesh.order(buyer, {product: 1})).id)).id
    order = await mesh.decided(buyer, (await mesh.order(buyer, {product: 1})).id)
    await mesh.unreserved(product)
    async with Streams.of(mesh) as streams:
        found = await find(streams, Filter(order=UUID(order.id)), most=50)
        types = ["commerce.order.placed", "commerce.payment.captured", "commerce.order.confirmed"]
        assert [event.type for event in found] == types
        payload = decoded(found[1].type, found[1].data)
        assert payload["payment"]["orderId"] == order.id
        assert payload["payment"]["status"] == "PAYMENT_STATUS_CAPTURED"
        confirmed = await find(
            streams, Filter(types=["commerce.order.confirmed"], aggregate=UUID(order.id), since=begun), most=50
        )
        assert [event.id for event in confirmed] == [found[2].id]
        last = await find(streams, Filter(types=["commerce.order.placed"]), most=2)
        assert [event.headers["ce-subject"] for event in last] == [others, order.id]
        assert await find(streams, Filter(order=UUID(order.id), until=begun), most=50) == []
        details = await show(streams, UUID(found[2].id))
    assert details.written is not None
    assert (details.written["service"], details.written["is_published"]) == ("order", True)
    assert [copy.number for copy in details.copies] == [found[2].number]
    assert details.applied.keys() == {"product-order"}
    assert not details.unfinished
    assert not details.dead_letters


async def test_backfilled_events_bring_every_order_to_its_state(servers: Servers, keys: Keys) -> None:
    async with house(servers, keys, order={"deadline_sweep_seconds": 0.1}) as mesh, Streams.of(mesh) as streams:
        buyer = await mesh.buyer("tok_visa")
        product = await mesh.product(9)
        confirmed = (await mesh.decided(buyer, (await mesh.order(buyer, {product: 1})).id)).id
        await mesh.services["payment"].stop()
        late, waiting = [(await mesh.order(buyer, {product: 1})).id for _ in range(2)]

        async def are_published() -> bool:
            return not await mesh.sql("order_svc", "SELECT FROM mesh.unpublished LIMIT 1")

        await eventually(are_published)
        await streams.bus.jetstream.purge_stream("ORDERS")
        # The deadline of one passes while its event is lost.
        await mesh.sql("order_svc", "UPDATE orders SET payment_deadline = now() WHERE id = $1", UUID(late))
        async with running(another(mesh, "payment")):
            cancelled = await mesh.decided(buyer, late)
            assert cancelled.status == order_pb2.ORDER_STATUS_CANCELLED
            assert (await mesh.read(buyer, waiting)).status == order_pb2.ORDER_STATUS_PENDING
            lost = await backfill(streams, "order", dry_run=True)
            assert lost.lost >= 4
            assert lost.published == 0
            assert (await mesh.read(buyer, waiting)).status == order_pb2.ORDER_STATUS_PENDING
            done = await backfill(streams, "order")
            assert done.published == done.lost == lost.lost
            assert (await mesh.decided(buyer, waiting)).status == order_pb2.ORDER_STATUS_CONFIRMED
            await eventually(lambda: at_rest(mesh, streams))
            assert await mesh.read(buyer, late) == cancelled
            assert (await mesh.payment(buyer, late)).status == payment_pb2.PAYMENT_STATUS_VOIDED
            assert (await mesh.read(buyer, confirmed)).status == order_pb2.ORDER_STATUS_CONFIRMED
            assert (await mesh.unreserved(product)).on_hand == 7
            assert (await backfill(streams, "order")).lost == 0


async def test_consumers_rebuilt_from_position_zero_have_no_effect(mesh: House) -> None:
    buyer = await mesh.buyer("tok_visa", "tok_declined")
    product = await mesh.product(9)
    placed = [await mesh.order(buyer, {product: 1}) for _ in range(3)]
    placed.append(await mesh.order(buyer, {product: 1}, method=buyer.methods["tok_declined"]))
    for order in placed:
        await mesh.decided(buyer, order.id)
    await mesh.cancel(buyer, placed[0].id)
    await mesh.decided(buyer, placed[0].id)
    async with Streams.of(mesh) as streams:
        await eventually(lambda: at_rest(mesh, streams))
        before = await effects(mesh)
        applied = await applied_events(mesh)
        context = streams.bus.jetstream
        for stream, names in CONSUMERS.items():
            for name in names:
                await context.delete_consumer(stream, name)

        async def are_rebuilt() -> bool:
            known = {each.name for stream in CONSUMERS for each in await context.consumers_info(stream)}
            return known.issuperset(chain(*CONSUMERS.values())) and await at_rest(mesh, streams)

        await eventually(are_rebuilt)
        for stream, names in CONSUMERS.items():
            for name in names:
                info = await context.consumer_info(stream, name)
                assert info.delivered is not None
                assert info.delivered.consumer_seq, "it has got all events again"
    assert await effects(mesh) == before
    assert await applied_events(mesh) == applied


async def applied_events(mesh: House) -> dict[str, int]:
    """The number of events that each service has applied."""
    return {
        role: (await mesh.sql(role, "SELECT count(*) AS count FROM mesh.inbox"))[0]["count"]
        for role in DATABASES
        if role in EFFECTS
    }
