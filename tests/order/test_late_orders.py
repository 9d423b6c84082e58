"""Orders that are committed after the erasure of their customer has begun."""

from __future__ import annotations

from uuid import uuid4

from mesh.db.database import Database
from order_svc.domain import Status
from tests.order.process import message_of, placing, process_of
from tests.services import new_key


async def test_order_that_comes_late_is_cancelled_and_its_timeline_tells_by_whom(database: Database) -> None:
    process, customer = process_of(database), uuid4()
    await process.erasures.erase_customer(customer, only_check=False)
    wanted = placing(customer, new_key(), {uuid4(): 1})
    (placed,) = await process.place(wanted)
    assert message_of(placed).customer_id == str(customer)
    await process.erasures.repeat()
    async with database.reading() as reading:
        order = (await process.orders.read(reading, [wanted.order_id]))[wanted.order_id]
        steps = await process.orders.history(reading, order.id)
    assert order.status is Status.CANCELLING
    assert [(step.type, step.actor) for step in steps] == [
        ("commerce.order.placed", f"customer:{customer}"),
        ("commerce.order.cancelling", "service:order"),
    ]
