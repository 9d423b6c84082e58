"""The sweep of expired holds: the order service decides, and one hold does not delay the others."""

from __future__ import annotations

import pytest

from product_svc.domain import HoldDecision, HoldState
from tests.product.process import Warehouse, held, reservation


@pytest.fixture(autouse=True)
async def _nothing_has_expired(here: Warehouse) -> None:
    await here.admin.execute("UPDATE holds SET expire_time = now() + interval '1 day' WHERE state = 'HELD'")
    here.orders.asked.clear()
    here.orders.decisions = {}


async def test_sweep_resolves_expired_holds_as_the_order_service_decides(here: Warehouse) -> None:
    product = await here.product(10)
    kept, paid, gone = [
        held(result).order_id
        for result in await here.reserve(*(reservation({product: 2}, expires_in=-1) for _ in range(3)))
    ]
    alive = await here.hold(product, 2)
    with pytest.raises(KeyError):  # the order service does not answer
        await here.use.sweep.run()
    assert await here.stock(product) == (10, 8), "nothing is released on suspicion"

    here.orders.decisions = {kept: HoldDecision.KEEP, paid: HoldDecision.COMMIT, gone: HoldDecision.RELEASE}
    assert await here.use.sweep.run() is False
    assert {frozenset(asked) for asked in here.orders.asked} == {frozenset({kept, paid, gone})}
    assert alive not in here.orders.asked[-1]
    assert await here.stock(product) == (8, 4)
    states = await here.admin.fetch("SELECT order_id, state FROM holds WHERE order_id = ANY($1)", [kept, paid, gone])
    assert {row["order_id"]: HoldState(row["state"]) for row in states} == {
        kept: HoldState.HELD,
        paid: HoldState.COMMITTED,
        gone: HoldState.RELEASED,
    }

    here.orders.asked.clear()
    assert await here.use.sweep.run() is False
    assert not here.orders.asked, "a hold that is kept is not asked about again at once"
    await here.require_balance(product)


async def test_hold_that_cannot_be_resolved_does_not_delay_the_others(here: Warehouse) -> None:
    product, wrong = await here.product(10), await here.product(10)
    holds = [
        held(result).order_id
        for result in await here.reserve(*(reservation({each: 2}, expires_in=-1) for each in (product, wrong, product)))
    ]
    await here.admin.execute("UPDATE stocks SET reserved = 0 WHERE product_id = $1", wrong)
    here.orders.decisions = dict.fromkeys(holds, HoldDecision.RELEASE)
    assert await here.use.sweep.run() is False
    assert await here.stock(product) == (10, 0)
    here.orders.asked.clear()
    assert await here.use.sweep.run() is False
    assert not here.orders.asked, "and is not asked about again at once"
    await here.admin.execute("UPDATE stocks SET reserved = 2 WHERE product_id = $1", wrong)
    await here.release(holds[1])


async def test_sweep_reports_whether_there_may_be_more(here: Warehouse) -> None:
    product = await here.product(10)
    results = await here.reserve(*(reservation({product: 1}, expires_in=-1) for _ in range(3)))
    here.orders.decisions = {held(result).order_id: HoldDecision.RELEASE for result in results}
    assert await here.use.sweep.run(most=2) is True
    assert await here.use.sweep.run(most=2) is False
    assert await here.stock(product) == (10, 0)
